//! Pages that the primary has under an older LSN than its own WAL.
//!
//! With checksums or `wal_log_hints` the first hint bit on a page after a checkpoint logs the page's whole image. Whoever sets the bit stamps the page with the record, unless
//! the page is dirty by then: it is being written, or another session was faster (PG 15, 18: src/backend/storage/buffer/bufmgr.c, MarkBufferDirtyHint). Then it keeps its LSN,
//! and what follows the WAL has the record's. The proof that a mismatch is this one: nothing but the LSN differs, and ours is that of such a record for this page.

use anyhow::Result;
use postgres_ffi::records::xlog::operation;
use postgres_ffi::wal::rmgr;
use postgres_ffi::{ForkNumber, Lsn, RelTag};
use serde_json::Value;

use super::lost_wal::WalArchive;

/// True if `mismatch` is the LSN alone, and the WAL in `archive` has a hint's image of the page that ends at ours.
pub fn explains(mismatch: &Value, archive: &WalArchive) -> Result<bool> {
    let Some((rel, fork, block_no, our_lsn)) = lsn_alone(mismatch) else { return Ok(false) };
    let mut found = false;
    let is_whole = archive.for_each_record_up_to(our_lsn, &[rmgr::XLOG], |record| {
        let has_page =
            record.blocks.iter().any(|block| (block.rel, block.fork, block.block_no) == (rel, fork, block_no));
        found |= record.end_lsn == our_lsn && record.operation() == operation::FPI_FOR_HINT && has_page;
        Ok(())
    })?;
    Ok(is_whole && found)
}

/// A page, and the LSN that we have for it.
type Found = (RelTag, ForkNumber, u32, Lsn);

fn lsn_alone(mismatch: &Value) -> Option<Found> {
    let words: Vec<&str> = mismatch["what"].as_str()?.split_whitespace().collect();
    let [rel, fork, "block", block_no] = words[..] else { return None };
    let lsns = mismatch["detail"].as_str()?.strip_prefix("only the lsn differs; lsn of ours ")?;
    let (ours, on_disk) = lsns.split_once(", on disk ")?;
    let (ours, on_disk): (Lsn, Lsn) = (ours.parse().ok()?, on_disk.parse().ok()?);
    (on_disk < ours).then_some((rel.parse().ok()?, fork.parse().ok()?, block_no.parse().ok()?, ours))
}

#[cfg(test)]
mod tests {
    use postgres_ffi::PgVersion;
    use postgres_ffi::wal::DecodedRecord;

    use super::*;
    use crate::{Postgres, Stop, TestDir};

    /// The images are real ones; that the primary kept its LSN is said, since it is a matter of microseconds.
    #[test]
    fn only_the_image_of_a_hint_on_this_page_explains_its_lsn() {
        let dir = TestDir::new("hint-images").unwrap();
        let builder = Postgres::builder(PgVersion::V15).checksums(true).wal_segment_mb(1);
        let mut primary = builder.setting("autovacuum", "off").start(&dir).unwrap();
        primary.connect().unwrap().batch_execute("VACUUM").unwrap();
        primary.execute("CREATE TABLE t AS SELECT proname FROM pg_proc").unwrap();
        let end_lsn = primary.current_lsn().unwrap();
        primary.stop(Stop::Fast).unwrap();
        let dirs = vec![primary.data_dir().join("pg_wal")];
        let archive = WalArchive { dirs, version: PgVersion::V15, segment_bytes: 1 << 20 };
        let (mut hints, mut others) = (Vec::new(), Vec::new());
        let each = |record: &DecodedRecord| {
            let is_hint = record.rmid == rmgr::XLOG && record.operation() == operation::FPI_FOR_HINT;
            let list = if is_hint { &mut hints } else { &mut others };
            list.extend(record.blocks.first().map(|block| (block.rel, block.fork, block.block_no, record.end_lsn)));
            Ok(())
        };
        archive.for_each_record_up_to(end_lsn, &[rmgr::XLOG, rmgr::HEAP, rmgr::HEAP2], each).unwrap();
        let explains = |(rel, fork, block_no, _): Found, detail: String| {
            let what = format!("{rel} {fork} block {block_no:6}");
            explains(&serde_json::json!({ "kind": "main heap", "what": what, "detail": detail }), &archive).unwrap()
        };
        let only = |ours: Lsn| format!("only the lsn differs; lsn of ours {ours}, on disk 0/28");
        let (hint, other) = (*hints.last().unwrap(), *others.last().unwrap());
        assert!(explains(hint, only(hint.3)));
        assert!(!explains(other, only(other.3)), "no hint's");
        assert!(!explains((hint.0, hint.1, hint.2 + 1, hint.3), only(hint.3)), "another page's");
        assert!(!explains(hint, format!("only the lsn differs; lsn of ours {}, on disk F/0", hint.3)), "newer on disk");
        assert!(!explains(hint, format!("differs from byte 16 on; lsn of ours {}, on disk 0/28", hint.3)));
    }
}
