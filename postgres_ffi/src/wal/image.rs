//! Page images in WAL records: the hole put back, pglz, lz4 and zstd undone.
//!
//! PG 15, 17, 18: src/backend/access/transam/xlogreader.c, RestoreBlockImage.

use crate::page::{BLCKSZ, Page};

/// How a page image is compressed. Version 14 has pglz alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// PostgreSQL's own. PG: src/common/pg_lzcompress.c.
    Pglz,
    /// An LZ4 block without a frame.
    Lz4,
    /// A zstd frame.
    Zstd,
}

/// Why an image is no page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The compressed bytes are broken.
    #[error("page image cannot be decompressed. compression=`{compression:?}`")]
    Corrupt {
        /// The method.
        compression: Compression,
    },
    /// More or fewer bytes than the page without its hole.
    #[error("page image has the wrong length. len=`{len}`, expected=`{expected}`")]
    Length {
        /// Bytes that came out.
        len: usize,
        /// Bytes that should have.
        expected: usize,
    },
    /// The hole reaches beyond the page.
    #[error("hole of a page image does not fit in a page. hole_offset=`{hole_offset}`, hole_len=`{hole_len}`")]
    Hole {
        /// Start of the hole.
        hole_offset: u16,
        /// Length of the hole.
        hole_len: u16,
    },
}

/// The page made of image bytes: decompressed, then `hole_len` zeroes put in at `hole_offset`.
///
/// Errors: the bytes do not give exactly a page. Never allocates more than two pages.
pub fn restore(
    bytes: &[u8],
    compression: Option<Compression>,
    hole_offset: u16,
    hole_len: u16,
) -> Result<Box<Page>, ImageError> {
    let (hole_start, hole_end) = (usize::from(hole_offset), usize::from(hole_offset) + usize::from(hole_len));
    if hole_end > BLCKSZ {
        return Err(ImageError::Hole { hole_offset, hole_len });
    }
    let expected = BLCKSZ - usize::from(hole_len);
    let mut unpacked = [0; BLCKSZ];
    let content = match compression {
        None if bytes.len() == expected => bytes,
        None => return Err(ImageError::Length { len: bytes.len(), expected }),
        Some(compression) => {
            decompress(bytes, compression, &mut unpacked[..expected])?;
            &unpacked[..expected]
        }
    };
    let mut page: Box<Page> = Box::new([0; BLCKSZ]);
    page[..hole_start].copy_from_slice(&content[..hole_start]);
    page[hole_end..].copy_from_slice(&content[hole_start..]);
    Ok(page)
}

/// Fills `out` to its last byte from `bytes`, or refuses.
fn decompress(bytes: &[u8], compression: Compression, out: &mut [u8]) -> Result<(), ImageError> {
    let expected = out.len();
    let len = match compression {
        Compression::Pglz => pglz_decompress(bytes, out),
        Compression::Lz4 => lz4_flex::block::decompress_into(bytes, out).ok(),
        Compression::Zstd => zstd::bulk::decompress_to_buffer(bytes, out).ok(),
    }
    .ok_or(ImageError::Corrupt { compression })?;
    if len == expected { Ok(()) } else { Err(ImageError::Length { len, expected }) }
}

/// Undoes pglz. The number of bytes written to `out`, or `None` if `source` is broken or does not end where `out` is full.
///
/// A control byte says for each of the next eight items, lowest bit first, whether it is one literal byte (0) or a copy of bytes
/// already written (1): two bytes hold a length of 3 to 17 in the lower nibble of the first (15 there means 18, plus the value of
/// a third byte) and the distance back in the upper nibble (high part) and the second byte.
/// PG: src/common/pg_lzcompress.c, pglz_decompress with check_complete; but a copy that goes beyond the end, which PostgreSQL cuts
/// (it may want only the start of a value) and its compressor never writes, is refused.
pub fn pglz_decompress(source: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut source = source.iter().copied();
    let mut written = 0;
    while written < out.len() && source.len() > 0 {
        let control = source.next()?;
        for item in 0..8 {
            if written == out.len() || source.len() == 0 {
                break;
            }
            if control >> item & 1 == 0 {
                *out.get_mut(written)? = source.next()?;
                written += 1;
                continue;
            }
            let (first, second) = (source.next()?, source.next()?);
            let mut len = usize::from(first & 0x0F) + 3;
            if len == 18 {
                len += usize::from(source.next()?);
            }
            let distance = usize::from(first & 0xF0) << 4 | usize::from(second);
            written = copy_within(out, written, distance, len)?;
        }
    }
    (written == out.len() && source.len() == 0).then_some(written)
}

/// Copies `len` bytes from `distance` before `written` to `written`; the two ranges may overlap, then bytes repeat.
/// The new `written`, or `None` when the distance is 0 or points before the start, or the bytes do not fit.
fn copy_within(out: &mut [u8], written: usize, distance: usize, len: usize) -> Option<usize> {
    let from = written.checked_sub(distance).filter(|_| distance != 0)?;
    let end = written.checked_add(len).filter(|end| *end <= out.len())?;
    let mut written = written;
    // Each turn doubles what can be copied at once, because everything from `from` on repeats with the same period.
    while written < end {
        let step = (written - from).min(end - written);
        out.copy_within(from..from + step, written);
        written += step;
    }
    Some(end)
}

#[cfg(test)]
mod tests {
    //! Goal: each compression gives back the page, and broken bytes an error.
    //! Method: bytes compressed by the libraries, pglz streams written by hand and by a small compressor of our own, everything cut and flipped.

    use proptest::prelude::*;

    use super::*;

    /// A page as a heap page looks: header, some text, zeroes, some text.
    fn page() -> Page {
        let mut page = [0; BLCKSZ];
        for (i, byte) in page.iter_mut().enumerate() {
            if !(200..7000).contains(&i) {
                *byte = b"a page of a table "[i % 18] ^ (i / 900) as u8;
            }
        }
        page
    }

    fn without_hole(page: &Page) -> Vec<u8> {
        [&page[..200], &page[7000..]].concat()
    }

    /// Greedy pglz: for each position the longest earlier match within 4095 bytes.
    fn pglz_compress(data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut at = 0;
        while at < data.len() {
            let control_at = out.len();
            out.push(0);
            for bit in 0..8 {
                if at == data.len() {
                    break;
                }
                let longest = (1..=at.min(4095))
                    .map(|back| {
                        (data[at..].iter().zip(&data[at - back..]).take(273).take_while(|(a, b)| a == b).count(), back)
                    })
                    .max_by_key(|(len, back)| (*len, usize::MAX - back));
                match longest {
                    Some((len, back)) if len >= 3 => {
                        out[control_at] |= 1 << bit;
                        let high = (back >> 8 << 4) as u8;
                        if len < 18 {
                            out.extend([high | (len - 3) as u8, back as u8]);
                        } else {
                            out.extend([high | 0x0F, back as u8, (len - 18) as u8]);
                        }
                        at += len;
                    }
                    _ => {
                        out.push(data[at]);
                        at += 1;
                    }
                }
            }
        }
        out
    }

    fn compress(compression: Compression, data: &[u8]) -> Vec<u8> {
        match compression {
            Compression::Pglz => pglz_compress(data),
            Compression::Lz4 => lz4_flex::block::compress(data),
            Compression::Zstd => zstd::bulk::compress(data, 3).expect("compresses"),
        }
    }

    const ALL: [Compression; 3] = [Compression::Pglz, Compression::Lz4, Compression::Zstd];

    #[test]
    fn the_hole_is_put_back() {
        let page = page();
        let bytes = without_hole(&page);
        assert_eq!(restore(&bytes, None, 200, 6800).as_deref(), Ok(&page));
        assert_eq!(restore(&page, None, 0, 0).as_deref(), Ok(&page));
        for compression in ALL {
            let image = compress(compression, &bytes);
            assert!(image.len() < bytes.len() / 2, "{compression:?} {}", image.len());
            assert_eq!(restore(&image, Some(compression), 200, 6800).as_deref(), Ok(&page), "{compression:?}");
            let whole = compress(compression, &page);
            assert_eq!(restore(&whole, Some(compression), 0, 0).as_deref(), Ok(&page), "{compression:?}");
        }
    }

    #[test]
    fn a_wrong_amount_of_bytes_is_refused() {
        let page = page();
        let bytes = without_hole(&page);
        assert_eq!(
            restore(&bytes, None, 200, 6799),
            Err(ImageError::Length { len: bytes.len(), expected: bytes.len() + 1 })
        );
        assert_eq!(restore(&bytes, None, 8000, 200), Err(ImageError::Hole { hole_offset: 8000, hole_len: 200 }));
        for compression in ALL {
            let image = compress(compression, &bytes);
            for hole_len in [6799, 6801, 0, 8191] {
                assert!(restore(&image, Some(compression), 200, hole_len).is_err(), "{compression:?} {hole_len}");
            }
            for len in 0..image.len() {
                assert!(restore(&image[..len], Some(compression), 200, 6800).is_err(), "{compression:?} {len}");
            }
        }
    }

    #[test]
    fn a_small_image_that_claims_to_be_huge_costs_a_page() {
        let bomb = zstd::bulk::compress(&vec![0; 50_000_000], 3).expect("compresses");
        assert!(restore(&bomb, Some(Compression::Zstd), 0, 0).is_err());
        let bomb = lz4_flex::block::compress(&vec![0; 500_000]);
        assert!(restore(&bomb, Some(Compression::Lz4), 0, 0).is_err());
    }

    #[test]
    fn pglz_by_hand() {
        let unpack = |source: &[u8], len: usize| {
            let mut out = vec![0; len];
            pglz_decompress(source, &mut out).map(|_| out)
        };
        assert_eq!(unpack(&[0, b'a', b'b'], 2).as_deref(), Some(&b"ab"[..]));
        // "ab", then 5 bytes from 2 back: the copy overlaps itself.
        assert_eq!(unpack(&[0b100, b'a', b'b', 0x02, 2], 7).as_deref(), Some(&b"abababa"[..]));
        // The longest copy: 273 bytes.
        assert_eq!(unpack(&[0b10, b'x', 0x0F, 1, 255], 274), Some(vec![b'x'; 274]));
        assert_eq!(unpack(&[0b10, b'x', 0x0F, 1, 255], 273), None, "beyond the end");
        assert_eq!(unpack(&[0b10, b'x', 0x00, 0], 4), None, "distance 0");
        assert_eq!(unpack(&[0b10, b'x', 0x00, 2], 4), None, "before the start");
        assert_eq!(unpack(&[0b10, b'x', 0x00], 4), None, "cut within a copy");
        assert_eq!(unpack(&[0b10, b'x', 0x0F, 1], 30), None, "cut before the long length");
        assert_eq!(unpack(&[0, b'a', b'b'], 1), None, "bytes left");
        assert_eq!(unpack(&[0, b'a', b'b'], 3), None, "bytes missing");
        assert_eq!(unpack(&[], 0).as_deref(), Some(&b""[..]));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_page_or_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            hole_offset in any::<u16>(),
            hole_len in any::<u16>(),
        ) {
            for compression in ALL.map(Some).into_iter().chain([None]) {
                let _ = restore(&bytes, compression, hole_offset, hole_len);
                let _ = restore(&bytes, compression, hole_offset % 4096, hole_len % 4096);
            }
        }

        #[test]
        fn pglz_gives_back_what_was_compressed(data in proptest::collection::vec(0..4_u8, 0..600)) {
            let mut out = vec![0; data.len()];
            prop_assert_eq!(pglz_decompress(&pglz_compress(&data), &mut out), Some(data.len()));
            prop_assert_eq!(out, data);
        }
    }
}
