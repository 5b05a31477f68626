//! Records that hold nothing but main data. PG 15, 18: src/backend/access/transam/xloginsert.c, XLogRecordAssemble.

use crate::Lsn;
use crate::wal::record::{CRC_OFFSET, ID_DATA_LONG, ID_DATA_SHORT, RECORD_HEADER_LEN, compute_crc};
use crate::wal::rmgr;

/// Bytes that name the length of main data: id and u8, or id and u32.
const SHORT_DATA_HEADER_LEN: usize = 2;
const LONG_DATA_HEADER_LEN: usize = 5;
/// The longest main data with a short header.
const SHORT_DATA_LEN_MAX: usize = 255;

/// The whole record of the XLOG resource manager with the operation `info` and `main_data`, by no transaction. `prev_lsn`: start of the record before.
/// Requires: `main_data` is shorter than 4 GiB.
pub fn xlog_record(info: u8, prev_lsn: Option<Lsn>, main_data: &[u8]) -> Vec<u8> {
    let mut record = vec![0; RECORD_HEADER_LEN];
    match main_data.len() {
        0 => {}
        length if length <= SHORT_DATA_LEN_MAX => record.extend([ID_DATA_SHORT, length as u8]),
        length => {
            record.push(ID_DATA_LONG);
            record.extend((length as u32).to_le_bytes());
        }
    }
    record.extend(main_data);
    let total_len = record.len() as u32;
    record[..4].copy_from_slice(&total_len.to_le_bytes());
    record[8..16].copy_from_slice(&prev_lsn.map_or(0, Lsn::as_u64).to_le_bytes());
    record[16] = info;
    record[17] = rmgr::XLOG;
    let crc = compute_crc(&record).unwrap_or_default();
    record[CRC_OFFSET..RECORD_HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
    record
}

/// Length of the main data that makes a record `total_len` long. Requires: `total_len` is [`RECORD_HEADER_LEN`], or at least two more.
pub fn main_data_len(total_len: usize) -> usize {
    let behind_header = total_len.saturating_sub(RECORD_HEADER_LEN);
    match behind_header {
        0 => 0,
        length if length <= SHORT_DATA_HEADER_LEN + SHORT_DATA_LEN_MAX => length - SHORT_DATA_HEADER_LEN,
        length => length - LONG_DATA_HEADER_LEN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_aligned_length_can_be_had() {
        for total_len in (24..2000).step_by(8) {
            let record = xlog_record(0x20, Some(Lsn::new(0x1000)), &vec![0; main_data_len(total_len)]);
            assert_eq!(record.len(), total_len);
            assert!(crate::wal::record::crc_is_right(&record));
        }
    }
}
