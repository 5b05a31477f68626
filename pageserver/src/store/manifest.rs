//! The end of RocksDB's MANIFEST, looked at before RocksDB does.
//!
//! Every record of it has a checksum, but the checksum does not cover the record's length. A flipped bit in the length of the very last record makes it look like one
//! that a crash has cut off, which RocksDB drops without a word; the files that it named would be deleted. A record that was really cut off does not have
//! the right checksum over what is left of it.
//!
//! ```text
//! blocks of 32 KiB: | crc u32 | length u16 | type u8 | payload | ...      little-endian; no record begins in the last 6 bytes of a block
//! ```
//! RocksDB 11: db/log_format.h, db/log_reader.cc, util/crc32c.h (Mask).

use std::fs;
use std::path::Path;

use byteorder::{ByteOrder, LittleEndian};

const BLOCK_BYTES: usize = 32 << 10;
const HEADER_BYTES: usize = 7;
/// What a piece is of its record.
const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;
/// Tag of a file that is added: | 103 varint | level varint | file number varint | ... RocksDB 11: db/version_edit.cc, EncodeToNewFile4.
const NEW_FILE: u8 = 103;
/// RocksDB's default.
const LEVELS: u8 = 7;

/// Errs if the last record of the MANIFEST that CURRENT names has lost its length: what is wrong. Whatever else may be wrong is RocksDB's to say.
pub(super) fn check_tail(rocks_dir: &Path) -> Result<(), String> {
    let Ok(current) = fs::read_to_string(rocks_dir.join("CURRENT")) else { return Ok(()) };
    let name = current.trim_end();
    let Ok(manifest) = fs::read(rocks_dir.join(name)) else { return Ok(()) };
    match tail_is_whole(&manifest) {
        true => Ok(()),
        false => Err(format!("the length of the last record of {name} is damaged")),
    }
}

/// False: what looks like a record that was cut off is a whole one.
fn tail_is_whole(log: &[u8]) -> bool {
    let mut at = 0;
    while at + HEADER_BYTES <= log.len() {
        let block_end = (at / BLOCK_BYTES + 1) * BLOCK_BYTES;
        if at + HEADER_BYTES > block_end {
            at = block_end;
            continue;
        }
        let length = usize::from(LittleEndian::read_u16(&log[at + 4..]));
        let end = at + HEADER_BYTES + length;
        if end > block_end.min(log.len()) {
            let left = &log[at + HEADER_BYTES - 1..block_end.min(log.len())]; // With the type.
            return masked(crc32c::crc32c(left)) != LittleEndian::read_u32(&log[at..]);
        }
        at = end;
    }
    true
}

/// Adds a record to a log, in as many pieces as its blocks ask for.
pub(super) fn append(log: &mut Vec<u8>, payload: &[u8]) {
    let mut left = payload;
    let mut is_first = true;
    loop {
        let room = BLOCK_BYTES - log.len() % BLOCK_BYTES;
        if room < HEADER_BYTES {
            log.resize(log.len() + room, 0);
            continue;
        }
        let (here, later) = left.split_at(left.len().min(room - HEADER_BYTES));
        let kind = match (is_first, later.is_empty()) {
            (true, true) => FULL,
            (true, false) => FIRST,
            (false, false) => MIDDLE,
            (false, true) => LAST,
        };
        let body = [&[kind], here].concat();
        log.extend_from_slice(&masked(crc32c::crc32c(&body)).to_le_bytes());
        log.extend_from_slice(&(here.len() as u16).to_le_bytes());
        log.extend_from_slice(&body);
        (left, is_first) = (later, false);
        if left.is_empty() {
            return;
        }
    }
}

/// The log without its last record, if that adds the SST file with this number; `None`: it does not.
pub(super) fn without_last_addition(log: &[u8], file_number: u64) -> Option<&[u8]> {
    let (start, payload) = last_record(log)?;
    let adds = |level: u8| {
        let mut addition = vec![NEW_FILE, level];
        put_varint(&mut addition, file_number);
        payload.windows(addition.len()).any(|bytes| bytes == addition)
    };
    (0..LEVELS).any(adds).then(|| &log[..start])
}

/// Where the last whole record begins, and what is in it; whatever was cut off behind it does not count.
fn last_record(log: &[u8]) -> Option<(usize, Vec<u8>)> {
    let (mut at, mut open, mut last) = (0, None, None);
    while at + HEADER_BYTES <= log.len() {
        let block_end = (at / BLOCK_BYTES + 1) * BLOCK_BYTES;
        if at + HEADER_BYTES > block_end {
            at = block_end;
            continue;
        }
        let length = usize::from(LittleEndian::read_u16(&log[at + 4..]));
        let end = at + HEADER_BYTES + length;
        if end > block_end.min(log.len()) {
            break;
        }
        let body = &log[at + HEADER_BYTES - 1..end]; // With the type.
        if masked(crc32c::crc32c(body)) != LittleEndian::read_u32(&log[at..]) {
            break;
        }
        let piece = &body[1..];
        match (body[0], open.take()) {
            (FULL, _) => last = Some((at, piece.to_vec())),
            (FIRST, _) => open = Some((at, piece.to_vec())),
            (kind @ (MIDDLE | LAST), Some((start, mut payload))) => {
                payload.extend_from_slice(piece);
                let whole = Some((start, payload));
                if kind == LAST { last = whole } else { open = whole }
            }
            _ => break,
        }
        at = end;
    }
    last
}

/// Seven bits a byte, the lowest first.
pub(super) fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xA282_EAD8)
}

#[cfg(test)]
mod tests {
    //! Goal: a damaged length at the end is told from a record that was cut off. Method: a log of two records, cut and flipped everywhere.

    use super::*;

    fn record(payload: &[u8]) -> Vec<u8> {
        let mut log = Vec::new();
        append(&mut log, payload);
        log
    }

    #[test]
    fn a_length_that_grew_is_told_from_a_record_that_was_cut_off() {
        let log = [record(b"first"), record(b"the second and last")].concat();
        let last = record(b"first").len();
        for end in 0..=log.len() {
            assert!(tail_is_whole(&log[..end]), "cut off at {end}");
        }
        for bit in 0..16 {
            let mut flipped = log.clone();
            flipped[last + 4 + bit / 8] ^= 1 << (bit % 8);
            let grew = LittleEndian::read_u16(&flipped[last + 4..]) > 19;
            assert_eq!(!tail_is_whole(&flipped), grew, "bit {bit}");
        }
    }

    #[test]
    fn records_go_on_in_the_next_block() {
        let mut log = record(&vec![7; BLOCK_BYTES - 2 * HEADER_BYTES - 3]);
        append(&mut log, &[]); // Three bytes are left of the block.
        append(&mut log, b"last");
        let last = BLOCK_BYTES;
        assert_eq!(log[last..], record(b"last"));
        assert!(tail_is_whole(&log));
        log[last + 5] ^= 1;
        assert!(!tail_is_whole(&log));
    }

    #[test]
    fn the_last_record_goes_if_it_adds_the_file() {
        let addition = |number| {
            let mut payload = vec![2, 9, NEW_FILE, 6];
            put_varint(&mut payload, number);
            payload.extend([1, 2, 3]);
            payload
        };
        let mut log = record(&vec![7; BLOCK_BYTES - 2 * HEADER_BYTES - 5]);
        append(&mut log, &addition(300));
        let before = log.len();
        append(&mut log, &addition(301));
        assert_eq!(without_last_addition(&log, 301), Some(&log[..before]));
        assert_eq!(without_last_addition(&log, 300), None, "not the last one");
        let cut_off = [&log[..], &record(b"another")[..9]].concat();
        assert_eq!(without_last_addition(&cut_off, 301), Some(&log[..before]));
        // In two blocks.
        assert_eq!(without_last_addition(&log[..before], 300).map(<[u8]>::len), Some(BLOCK_BYTES - HEADER_BYTES - 5));
        assert_eq!(without_last_addition(&[], 300), None);
    }

    #[test]
    fn a_record_that_does_not_fit_goes_on_in_the_next_block() {
        let mut log = record(&vec![7; BLOCK_BYTES - 2 * HEADER_BYTES - 5]); // Room for a header and five bytes.
        append(&mut log, b"in two pieces");
        assert_eq!(log.len(), BLOCK_BYTES + HEADER_BYTES + 8);
        let (first, last) = (&log[BLOCK_BYTES - 5 - HEADER_BYTES..BLOCK_BYTES], &log[BLOCK_BYTES..]);
        assert_eq!((first[6], &first[7..], last[6], &last[7..]), (2, &b"in tw"[..], 4, &b"o pieces"[..]));
        assert!(tail_is_whole(&log));
    }
}
