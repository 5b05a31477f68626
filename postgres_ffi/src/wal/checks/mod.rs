//! What must hold whatever bytes come in. For tests and fuzz targets: these functions panic when it does not hold.
//!
//! [`build`] makes records, [`layout`] writes them as a server does; both are written from the format's description and share
//! no code with the decoder, so that a mistake in one shows.

#[cfg(test)]
pub(crate) mod arbitrary;
pub mod build;
pub mod layout;

use bytes::Bytes;

use self::build::RecordBuilder;
use self::layout::WalWriter;
use super::describe::describe;
use super::trim::trim_for_block;
use super::{DecodedRecord, WalStreamDecoder};
use crate::{Lsn, PgVersion};

const SEGMENT_BYTES: u32 = 1 << 20;

/// Takes `data` as a version (first byte) and a record, whose length field is set right so that more than the length gets checked.
pub fn check_record(data: &[u8]) {
    let Some((&selector, body)) = data.split_first() else { return };
    let mut raw = body.to_vec();
    if let Some(field) = raw.get_mut(..4)
        && selector & 0x80 == 0
    {
        field.copy_from_slice(&(body.len() as u32).to_le_bytes());
    }
    let version = PgVersion::ALL[usize::from(selector & 0x7F) % PgVersion::ALL.len()];
    if let Ok(record) = DecodedRecord::decode(version, Lsn::new(8), Lsn::new(16), Bytes::from(raw)) {
        check_decoded(version, &record);
    }
}

/// What holds for every record that could be decoded: its parts fill it, its images give a page or an error, it has a description of a
/// length that its own bounds, and cut down for any block it is still a record with the same references.
pub fn check_decoded(version: PgVersion, record: &DecodedRecord) {
    let mut payload = record.main_data().len();
    for block in &record.blocks {
        assert_eq!(block.has_data, !record.block_data(block).is_empty());
        payload += record.block_data(block).len();
        if let Some(image) = &block.image {
            assert!(!record.image_bytes(image).is_empty());
            payload += record.image_bytes(image).len();
            let _page_or_error = record.restore_image(image);
        }
        check_trimmed(version, record, block.block_id);
    }
    assert!(payload <= record.raw.len());
    let description = describe(record, version);
    assert!(!description.operation.is_empty());
    assert!(description.detail.len() <= DESCRIPTION_LEN_MAX + DESCRIPTION_GROWTH_MAX * record.raw.len());
}

/// Words that do not repeat: a checkpoint's are the most.
const DESCRIPTION_LEN_MAX: usize = 600;
/// Characters for a byte of a list: a segment's deletion in a GIN page has two bytes and thirteen characters.
const DESCRIPTION_GROWTH_MAX: usize = 16;

fn check_trimmed(version: PgVersion, record: &DecodedRecord, block_id: u8) {
    let mut bytes = b"before".to_vec();
    trim_for_block(record, block_id, &mut bytes);
    assert_eq!(&bytes[..6], b"before");
    let raw = Bytes::from(bytes).slice(6..);
    assert!(raw.len() <= record.raw.len());
    assert_eq!(raw[20..24], [0; 4], "a record cut down has no CRC");

    let trimmed = DecodedRecord::decode(version, record.start_lsn, record.end_lsn, raw.clone());
    let Ok(trimmed) = trimmed else { panic!("cut down, the record is none: {trimmed:?}") };
    let header = |record: &DecodedRecord| (record.xid, record.prev_lsn, record.rmid, record.info);
    assert_eq!(header(&trimmed), header(record));
    assert_eq!(trimmed.main_data(), record.main_data());
    assert_eq!((trimmed.origin_id, trimmed.top_xid), (None, None));
    assert_eq!(trimmed.blocks.len(), record.blocks.len());
    for (after, before) in trimmed.blocks.iter().zip(&record.blocks) {
        let address =
            |block: &super::DecodedBlock| (block.block_id, block.rel, block.fork, block.block_no, block.will_init);
        assert_eq!(address(after), address(before));
        if before.block_id == block_id {
            assert_eq!(trimmed.block_data(after), record.block_data(before));
        }
        assert!(after.image.as_ref().is_none_or(|image| image.apply));
    }
    let mut again = Vec::new();
    trim_for_block(&trimmed, block_id, &mut again);
    assert_eq!(again, raw, "cutting down twice changes nothing");
}

/// Takes `data` as a stream: first anything at all, then as the description of a good log that must come out as it went in.
pub fn check_stream(data: &[u8]) {
    check_any_bytes(data);
    check_round_trip(data);
}

fn check_any_bytes(data: &[u8]) {
    let (settings, body) = data.split_at(data.len().min(3));
    let [selector, piece_len, at] = [0, 1, 2].map(|i| settings.get(i).copied().unwrap_or_default());
    let version = PgVersion::ALL[usize::from(selector) % PgVersion::ALL.len()];
    let mut decoder = if selector & 0x80 == 0 {
        WalStreamDecoder::new_at_page(version, Lsn::new(u64::from(at) * 8192), SEGMENT_BYTES)
    } else {
        WalStreamDecoder::new(version, Lsn::new(u64::from(at) * 1032), SEGMENT_BYTES)
    };
    let mut end_lsn = decoder.last_record_end();
    for piece in body.chunks(usize::from(piece_len).max(1)) {
        decoder.feed(Bytes::copy_from_slice(piece));
        while let Ok(Some((start, end, raw))) = decoder.next_record() {
            assert!(end_lsn <= start && start < end, "{end_lsn} {start} {end}");
            assert!(raw.len() as u64 <= end.saturating_sub(start));
            end_lsn = end;
        }
    }
    assert!(end_lsn <= decoder.last_record_end());
}

/// The bytes of `data` become lengths and contents of records; these are written to a log, cut anywhere, and read.
fn check_round_trip(data: &[u8]) {
    let (settings, body) = data.split_at(data.len().min(4));
    let [selector, piece_len, at_low, at_high] = [0, 1, 2, 3].map(|i| settings.get(i).copied().unwrap_or_default());
    let version = PgVersion::ALL[usize::from(selector) % PgVersion::ALL.len()];
    // Close before a segment end, so that it is crossed; not where a page header is.
    let before_end = u64::from(u16::from_le_bytes([at_low, at_high])) / 8 * 8;
    let anywhere = 2 * u64::from(SEGMENT_BYTES) - before_end;
    let start_lsn = Lsn::new(if anywhere % 8192 < 24 { anywhere / 8192 * 8192 } else { anywhere });
    let mut writer = WalWriter::new(version, start_lsn, SEGMENT_BYTES);
    let mut written = Vec::new();
    for description in body.chunks(8).take(16) {
        let long = if description[0] & 1 == 1 { 40 } else { 1 };
        let main_data = description.repeat(usize::from(description[0]) * long / 8);
        written.push(writer.append(&RecordBuilder { main_data, ..RecordBuilder::default() }));
    }
    let log = Bytes::from(writer.into_bytes());
    let mut decoder = WalStreamDecoder::new(version, start_lsn, SEGMENT_BYTES);
    let piece_len = usize::from(piece_len) * 37 + 1;
    let mut read = Vec::new();
    for from in (0..log.len()).step_by(piece_len) {
        decoder.feed(log.slice(from..log.len().min(from + piece_len)));
        loop {
            match decoder.next_record() {
                Ok(Some(record)) => read.push(record),
                Ok(None) => break,
                Err(error) => panic!("{error}: {}", error.reason),
            }
        }
    }
    assert_eq!(read, written);
}

#[cfg(test)]
mod tests {
    //! The fuzz targets' bodies on a short run of made-up input, the same each time.

    use super::*;

    /// SplitMix64, so that the inputs are the same on every machine.
    fn bytes(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        };
        (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(len).collect()
    }

    #[test]
    fn made_up_records_never_panic() {
        for seed in 0..3000 {
            let mut data = bytes(seed, 30 + seed as usize % 300);
            // Mostly small numbers where headers stand, or nothing would get beyond the first.
            for (i, byte) in data.iter_mut().enumerate().skip(25) {
                *byte &= [0xFF, 0x7F, 0x13, 0x01][(seed as usize + i) % 4];
            }
            check_record(&data);
        }
    }

    #[test]
    fn made_up_streams_never_panic_and_good_ones_come_back() {
        for seed in 0..60 {
            check_stream(&bytes(seed, 40 + (seed as usize % 9) * 50));
        }
        check_stream(&[]);
        check_stream(&[0, 0, 0, 0, 1]);
    }
}
