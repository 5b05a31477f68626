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

use std::path::Path;
use std::{fs, io};

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
/// Tag behind the last field of such a file.
const END_OF_FILE_FIELDS: u64 = 1;

/// The name of the MANIFEST that CURRENT names.
pub(super) fn current(rocks_dir: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(rocks_dir.join("CURRENT"))?.trim_end().to_owned())
}

/// Errs if the last record of the MANIFEST that CURRENT names has lost its length: what is wrong. Whatever else may be wrong is RocksDB's to say.
pub(super) fn check_tail(rocks_dir: &Path) -> Result<(), String> {
    let Ok(name) = current(rocks_dir) else { return Ok(()) };
    let Ok(manifest) = fs::read(rocks_dir.join(&name)) else { return Ok(()) };
    match tail_is_whole(&manifest) {
        true => Ok(()),
        false => Err(format!("the length of the last record of {name} is damaged")),
    }
}

/// False: what looks like a record that was cut off is a whole one.
fn tail_is_whole(log: &[u8]) -> bool {
    let mut pieces = Pieces { log, at: 0 };
    !pieces.any(|piece| piece.is_cut_off && piece.has_its_checksum(log))
}

/// A piece of a record, as its length says.
struct Piece<'a> {
    start: usize,
    /// With the type.
    body: &'a [u8],
    /// It reaches over the end of its block or of the log: the body is what there is. Nothing follows.
    is_cut_off: bool,
}

impl Piece<'_> {
    fn has_its_checksum(&self, log: &[u8]) -> bool {
        masked(crc32c::crc32c(self.body)) == LittleEndian::read_u32(&log[self.start..])
    }

    fn end(&self) -> usize {
        self.start + HEADER_BYTES - 1 + self.body.len()
    }
}

/// The pieces of a log, one after the other.
struct Pieces<'a> {
    log: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        let left = BLOCK_BYTES - self.at % BLOCK_BYTES;
        let start = if left < HEADER_BYTES { self.at + left } else { self.at };
        if start + HEADER_BYTES > self.log.len() {
            return None;
        }
        let end = start + HEADER_BYTES + usize::from(LittleEndian::read_u16(&self.log[start + 4..]));
        let end_max = ((start / BLOCK_BYTES + 1) * BLOCK_BYTES).min(self.log.len());
        let is_cut_off = end > end_max;
        self.at = if is_cut_off { self.log.len() } else { end };
        Some(Piece { start, body: &self.log[start + HEADER_BYTES - 1..end.min(end_max)], is_cut_off })
    }
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

/// A whole record.
pub(super) struct Record {
    /// Where it begins.
    pub start: usize,
    /// Behind it.
    pub end: usize,
    pub payload: Vec<u8>,
}

/// The whole records of a log, up to the first that is none.
pub(super) fn records(log: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    let mut open: Option<Record> = None;
    let whole = |piece: &Piece<'_>| !piece.is_cut_off && piece.has_its_checksum(log);
    for piece in (Pieces { log, at: 0 }).take_while(whole) {
        let (kind, content) = (piece.body[0], &piece.body[1..]);
        let mut record = match (kind, open.take()) {
            (FULL | FIRST, None) => Record { start: piece.start, end: piece.end(), payload: Vec::new() },
            (MIDDLE | LAST, Some(record)) => Record { end: piece.end(), ..record },
            _ => break,
        };
        record.payload.extend_from_slice(content);
        match kind {
            FULL | LAST => records.push(record),
            _ => open = Some(record),
        }
    }
    records
}

/// Numbers of the SST files that a record adds, if it is one of an ingestion: it adds files and takes none away. `None`: it is another one.
pub(super) fn files_ingested(payload: &[u8]) -> Option<Vec<u64>> {
    let mut fields = Fields(payload);
    let mut files = Vec::new();
    while !fields.0.is_empty() {
        match fields.varint()? {
            // Log number, next file, last sequence, previous log, oldest log, column family, highest one.
            2 | 3 | 4 | 9 | 10 | 200 | 203 => drop(fields.varint()?),
            tag if tag == u64::from(NEW_FILE) => {
                fields.varint()?; // Level.
                files.push(fields.varint()?);
                fields.varint()?; // Size.
                fields.bytes()?; // Smallest and largest key.
                fields.bytes()?;
                fields.varint()?; // Smallest and largest sequence number.
                fields.varint()?;
                while fields.varint()? != END_OF_FILE_FIELDS {
                    fields.bytes()?;
                }
            }
            _ => return None,
        }
    }
    (!files.is_empty()).then_some(files)
}

/// RocksDB 11: util/coding.h.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// Something with its length in front.
    fn bytes(&mut self) -> Option<()> {
        let length = usize::try_from(self.varint()?).ok()?;
        self.0 = self.0.get(length..)?;
        Some(())
    }
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

    /// As RocksDB 11 writes it.
    fn addition(numbers: &[u64]) -> Vec<u8> {
        let mut payload = vec![3, 9, 4, 8];
        for number in numbers {
            payload.extend([NEW_FILE, 6]);
            put_varint(&mut payload, *number);
            payload.extend([77, 2, 103, 6, 1, 5, 8, 8]); // Size; keys that look like something else; sequence numbers.
            payload.extend([5, 2, 103, 6, 1]);
        }
        payload.extend([200, 1, 1]);
        payload
    }

    #[test]
    fn records_are_told_apart() {
        let mut log = record(&vec![7; BLOCK_BYTES - 2 * HEADER_BYTES - 5]);
        append(&mut log, &addition(&[300])); // In two blocks.
        append(&mut log, &addition(&[301, 5]));
        let found = records(&log);
        assert_eq!(
            found.iter().map(|it| files_ingested(&it.payload)).collect::<Vec<_>>(),
            [None, Some(vec![300]), Some(vec![301, 5])]
        );
        assert_eq!(
            (found[1].start, found[1].end, found[2].end),
            (BLOCK_BYTES - HEADER_BYTES - 5, found[2].start, log.len())
        );
        for cut in found[2].start..log.len() {
            assert_eq!(records(&log[..cut]).len(), 2, "{cut}");
        }
        let mut flipped = log.clone();
        flipped[found[1].start + 9] ^= 1;
        assert_eq!(records(&flipped).len(), 1);
        assert!(records(&[]).is_empty());
    }

    #[test]
    fn only_an_ingestion_is_taken_for_one() {
        let with = |more: &[u8]| [&addition(&[300])[..], more].concat();
        assert_eq!(files_ingested(&addition(&[300])), Some(vec![300]));
        assert_eq!(files_ingested(&with(&[6, 6, 12])), None, "it takes a file away");
        assert_eq!(files_ingested(&with(&[1, 2, 65, 65])), None, "a comparator: the first record");
        assert_eq!(files_ingested(&with(&[201, 1, 1, 65])), None, "a new column family");
        assert_eq!(files_ingested(&[3, 9]), None, "no file");
        let whole = addition(&[300]);
        assert!((1..whole.len() - 3).all(|end| files_ingested(&whole[..end]).is_none_or(|files| files == [300])));
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
