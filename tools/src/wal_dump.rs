//! `pagectl wal dump`: WAL segment files as text, record by record.
//!
//! Records are shown only after their CRC was checked. Where the log ends, the reason is said on standard error.

use std::path::PathBuf;

use anyhow::{Result, bail};
use postgres_ffi::inspect::record::RecordView;
use postgres_ffi::wal::{DecodedRecord, rmgr};
use postgres_ffi::{BlockNumber, Lsn, RelTag, TimeLineId};

use crate::output::{Outcome, Output};
use crate::wal_segments::Segments;

/// Shows WAL records, one line each.
#[derive(Debug, clap::Args)]
pub struct WalDump {
    /// A WAL segment file, or a folder of them (pg_wal)
    path: PathBuf,
    /// Show only records that start at or behind this LSN
    #[arg(long)]
    start: Option<Lsn>,
    /// Stop at the first record that starts at or behind this LSN
    #[arg(long)]
    end: Option<Lsn>,
    /// Show only records of this resource manager, by pg_waldump's name (Heap, Btree, Transaction, ...)
    #[arg(long)]
    rmgr: Option<String>,
    /// Show only records that touch this relation: TABLESPACE/DATABASE/RELFILENODE
    #[arg(long)]
    rel: Option<RelTag>,
    /// With --rel, show only records that touch this block
    #[arg(long, requires = "rel")]
    block: Option<BlockNumber>,
    /// Show only records of this transaction
    #[arg(long)]
    xid: Option<u32>,
    /// Stop after so many records
    #[arg(long)]
    limit: Option<u64>,
    /// PostgreSQL timeline of the segments to read from a folder; the highest there is without it
    #[arg(long)]
    timeline_id: Option<TimeLineId>,
}

impl WalDump {
    /// Dumps.
    pub fn run(&self, output: &mut Output) -> Result<Outcome> {
        let rmid = self.rmgr.as_deref().map(rmgr_number).transpose()?;
        let segments = Segments::find(&self.path, self.start, self.timeline_id)?;
        let mut records = segments.records(self.start)?;
        let mut shown = 0;
        while let Some(record) = records.next_record()? {
            if self.end.is_some_and(|end| record.start_lsn >= end) || self.limit.is_some_and(|limit| shown >= limit) {
                break;
            }
            if self.wants(&record, rmid) {
                output.value(&RecordView::new(segments.version, &record))?;
                shown += 1;
            }
        }
        Ok(Outcome::Good)
    }

    fn wants(&self, record: &DecodedRecord, rmid: Option<u8>) -> bool {
        rmid.is_none_or(|rmid| rmid == record.rmid)
            && self.xid.is_none_or(|xid| xid == record.xid)
            && self.rel.is_none_or(|rel| {
                let is_wanted = |block_no| self.block.is_none_or(|wanted| wanted == block_no);
                record.blocks.iter().any(|block| block.rel == rel && is_wanted(block.block_no))
            })
    }
}

fn rmgr_number(name: &str) -> Result<u8> {
    let position = rmgr::BUILTIN_NAMES.iter().position(|known| known.eq_ignore_ascii_case(name));
    let custom = || name.strip_prefix("custom").and_then(|digits| digits.parse::<u8>().ok());
    match position.and_then(|number| u8::try_from(number).ok()).or_else(custom) {
        Some(number) => Ok(number),
        None => bail!("unknown resource manager, expected one of {}. value=`{name}`", rmgr::BUILTIN_NAMES.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    //! Names; dumps of real segments are held against pg_waldump in `tests/`.

    use super::*;

    #[test]
    fn resource_managers_have_pg_waldumps_names() {
        assert_eq!(rmgr_number("heap").ok(), Some(rmgr::HEAP));
        assert_eq!(rmgr_number("custom128").ok(), Some(128));
        assert!(rmgr_number("nothing").is_err());
    }
}
