//! Redo without a server: pages, records and PostgreSQL's own results, recorded from real clusters of every version.
//!
//! Method: each recorded application must give PostgreSQL's page. Then the same applications with something changed, in the record, in the page, in both: they may
//! give a page or an error, but never a panic, and what was applied is not applied twice. The recordings are made by `prove-redo --cases`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use postgres_ffi::PgVersion;
use postgres_ffi::redo::MANAGERS;
use postgres_ffi::redo::case::{Changes, RedoCase, fuzz};
use postgres_ffi::wal::describe::operation_name;
use postgres_ffi::wal::{RecordHeader, rmgr};

/// Of each case.
const CHANGED_COPIES: u64 = 60;

fn cases(version: PgVersion) -> Result<Vec<RedoCase>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/redo/{version}.cases.zst"));
    let packed = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let mut bytes = Bytes::from(zstd::stream::decode_all(&packed[..])?);
    let mut cases = Vec::new();
    while !bytes.is_empty() {
        cases.push(RedoCase::take(&mut bytes)?);
    }
    Ok(cases)
}

fn header(case: &RedoCase) -> Result<RecordHeader> {
    RecordHeader::parse(&case.record).context("a record")
}

#[test]
fn recorded_applications_give_postgresqls_page() -> Result<()> {
    for version in PgVersion::ALL {
        let mut operations = BTreeSet::new();
        for (number, case) in cases(version)?.iter().enumerate() {
            let header = header(case)?;
            let name = operation_name(version, header.rmid, header.info & 0xF0);
            case.check()
                .with_context(|| format!("PostgreSQL {version}, case {number}, rmid {}, {name:?}", header.rmid))?;
            operations.insert((header.rmid, header.info & 0xF0));
        }
        // Those of XLOG are images alone: there is nothing to compare them with.
        for rmid in MANAGERS.into_iter().filter(|rmid| *rmid != rmgr::XLOG) {
            ensure!(operations.iter().any(|(found, _)| *found == rmid), "nothing recorded of rmid {rmid} of {version}");
        }
        ensure!(operations.len() >= 60, "{} operations of {version}", operations.len());
    }
    Ok(())
}

/// A generator that gives the same numbers everywhere. (SplitMix64.)
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        number ^ (number >> 31)
    }
}

impl Changes for Numbers {
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// One to four bytes: to an extreme, by a bit, by one, or to anything. Of one change in four some bytes go or come as well.
    fn change(&mut self, bytes: &mut Vec<u8>, len_max: usize) {
        if self.below(4) == 0 {
            let at = self.below(bytes.len() + 1);
            let count = 1 + self.below(8);
            if self.below(2) == 0 {
                bytes.drain(at..bytes.len().min(at + count));
            } else {
                bytes.splice(at..at, std::iter::repeat_n(self.next() as u8, count));
            }
            bytes.truncate(len_max);
        }
        if bytes.is_empty() {
            return;
        }
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            bytes[at] = match self.below(6) {
                0 => 0,
                1 => 0xFF,
                2 => bytes[at].wrapping_add(1),
                3 => bytes[at].wrapping_sub(1),
                4 => bytes[at] ^ 1 << self.below(8),
                _ => self.next() as u8,
            };
        }
    }
}

#[test]
fn changed_cases_give_a_page_or_an_error() -> Result<()> {
    let mut numbers = Numbers(1);
    for version in PgVersion::ALL {
        for case in cases(version)? {
            let rmid = header(&case)?.rmid;
            for number in 0..CHANGED_COPIES {
                let mut changed = case.clone();
                changed.change(&mut numbers);
                if let Some(page) = &mut changed.page {
                    page[..8].fill(0); // So that the record still applies.
                }
                if number % 10 == 0 {
                    // Its headers, or a record that is cut; the length is set right by `fuzz`.
                    let mut record = changed.record.to_vec();
                    let mut tail = record.split_off(24);
                    let tail_len = tail.len();
                    numbers.change(&mut tail, tail_len);
                    record.extend(tail);
                    changed.record = record.into();
                }
                let mut bytes = Vec::new();
                changed.encode(&mut bytes);
                fuzz(rmid, &bytes);
            }
        }
    }
    Ok(())
}
