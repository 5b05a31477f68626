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
/// PG: src/common/pg_lzcompress.c, pglz_decompress with check_complete.
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

/// Copies `len` bytes from `distance` before `written` to `written`, as many as fit; the two ranges may overlap, then bytes repeat.
/// The new `written`, or `None` when the distance is 0 or points before the start.
fn copy_within(out: &mut [u8], written: usize, distance: usize, len: usize) -> Option<usize> {
    let from = written.checked_sub(distance).filter(|_| distance != 0)?;
    let end = written.saturating_add(len).min(out.len());
    let mut written = written;
    // Each turn doubles what can be copied at once, because everything from `from` on repeats with the same period.
    while written < end {
        let step = (written - from).min(end - written);
        out.copy_within(from..from + step, written);
        written += step;
    }
    Some(end)
}
