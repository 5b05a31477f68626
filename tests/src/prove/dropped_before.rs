//! Empty files of relations that were dropped just before the base backup.
//!
//! The end of a transaction drops files a moment after its record. When the backup's checkpoint begins in between, the record lies below the WAL that is followed
//! from the backup on, and the file, cut to nothing, stays until the checkpoint after that one: it is in the backup (PG 15, 17: src/backend/storage/smgr/md.c,
//! mdunlink; storage/sync/sync.c, SyncPostCheckpoint). A stock server that starts from the backup keeps it for ever, and so do we. The proof that a
//! mismatch is one of these: we have no block of it, and a record that ends at or below the backup's start dropped it.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use postgres_ffi::records::xact::{self, XactEnd};
use postgres_ffi::wal::rmgr;
use postgres_ffi::{Lsn, RelTag};
use serde_json::Value;

use super::lost_wal::WalArchive;

/// The label of the backups that the page server imports from.
const LABEL: &str = "pageserver import";

/// What the WAL before the backup dropped.
#[derive(Clone, Debug, Default)]
pub struct DroppedBefore {
    /// Read when the first mismatch asks for it.
    rels: OnceCell<BTreeSet<RelTag>>,
}

impl DroppedBefore {
    /// True if `mismatch` is an empty relation that we alone have, and the WAL in `archive`, which ends at `end_lsn`, dropped it before the backup.
    pub fn explain(&self, mismatch: &Value, archive: &WalArchive, end_lsn: Lsn) -> Result<bool> {
        let Some(rel) = empty_relation(mismatch) else { return Ok(false) };
        if let Some(rels) = self.rels.get() {
            return Ok(rels.contains(&rel));
        }
        let rels = dropped_before_backup(archive, end_lsn)?;
        Ok(self.rels.get_or_init(|| rels).contains(&rel))
    }
}

/// The main fork of a relation without a block that we have and the directory has not.
fn empty_relation(mismatch: &Value) -> Option<RelTag> {
    let rel = mismatch["what"].as_str()?.strip_suffix(" main")?;
    let is_empty = mismatch["kind"] == "relations" && mismatch["detail"] == "not in the directory, 0 blocks";
    rel.parse().ok().filter(|_| is_empty)
}

/// Nothing if the WAL has a gap, or there is no backup.
fn dropped_before_backup(archive: &WalArchive, end_lsn: Lsn) -> Result<BTreeSet<RelTag>> {
    let mut rels = BTreeSet::new();
    let Some(backup_lsn) = backup_start(archive)? else { return Ok(rels) };
    let is_whole = archive.for_each_record_up_to(end_lsn, &[rmgr::XACT], |record| {
        let ends = [xact::COMMIT, xact::COMMIT_PREPARED, xact::ABORT, xact::ABORT_PREPARED];
        if record.end_lsn <= backup_lsn && ends.contains(&(record.info & xact::OPERATION_MASK)) {
            rels.extend(XactEnd::parse(archive.version, record.info, record.main_data())?.dropped.iter());
        }
        Ok(())
    })?;
    Ok(if is_whole { rels } else { BTreeSet::new() })
}

/// Where the WAL of the import's backup starts: its history file, which is archived with the WAL. PG: xlogbackup.c, build_backup_content.
fn backup_start(archive: &WalArchive) -> Result<Option<Lsn>> {
    for dir in &archive.dirs {
        for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "backup") {
                continue;
            }
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            if line("LABEL") == Some(LABEL) {
                let start = line("START WAL LOCATION").and_then(|start| start.split(' ').next());
                return Ok(Some(start.with_context(|| format!("no start in {text}"))?.parse()?));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use postgres_ffi::PgVersion;

    use super::*;
    use crate::{PageServer, Postgres, Stop, TestDir, wait_until};

    #[test]
    fn only_an_empty_relation_that_was_dropped_before_the_backup_is_explained() {
        for version in [PgVersion::V15, PgVersion::V17] {
            let dir = TestDir::new("dropped-before").unwrap();
            let archived = dir.create_subdir("archive").unwrap();
            let mut primary = Postgres::builder(version)
                .wal_segment_mb(1)
                .setting("archive_mode", "on")
                .setting("archive_command", &format!("cp %p '{}/%f'", archived.display()))
                .start(&dir)
                .unwrap();
            let [before, aborted, after] = ["before", "aborted", "after"].map(|table| {
                let path = primary
                    .query_text(&format!("CREATE TABLE {table} (a int); SELECT pg_relation_filepath('{table}')"))
                    .unwrap();
                rel_of(&path)
            });
            primary.execute("DROP TABLE before").unwrap();
            // Dropped by the end of a transaction, too: the file that the second table has for the time of a transaction.
            let rewritten = primary
                .query_text("BEGIN; TRUNCATE aborted; SELECT pg_relation_filepath('aborted'); ROLLBACK")
                .map(|path| rel_of(&path))
                .unwrap();
            let mut pageserver = PageServer::builder().start(&dir).unwrap();
            pageserver.import("main", &primary.conninfo()).unwrap();
            primary.execute("DROP TABLE after; SELECT pg_switch_wal()").unwrap();
            let end_lsn = primary.current_lsn().unwrap();
            pageserver.stop().unwrap();
            primary.stop(Stop::Fast).unwrap();
            let is_there =
                || Ok(archived.read_dir()?.any(|entry| entry.is_ok_and(|entry| entry.path().extension().is_some())));
            wait_until("the backup's history file", Duration::from_secs(60), is_there).unwrap();

            let dirs = vec![archived.clone(), primary.data_dir().join("pg_wal")];
            let archive = WalArchive { dirs, version, segment_bytes: 1 << 20 };
            let explains = |rel: RelTag, fork: &str, detail: &str| {
                let mismatch =
                    serde_json::json!({ "kind": "relations", "what": format!("{rel} {fork}"), "detail": detail });
                DroppedBefore::default().explain(&mismatch, &archive, end_lsn).unwrap()
            };
            const EMPTY: &str = "not in the directory, 0 blocks";
            assert!(explains(before, "main", EMPTY) && explains(rewritten, "main", EMPTY));
            assert!(!explains(after, "main", EMPTY), "its end is in the WAL that we follow");
            assert!(!explains(aborted, "main", EMPTY), "never dropped");
            assert!(!explains(before, "main", "not in the directory, 1 blocks"));
            assert!(!explains(before, "main", "in the directory only, 0 blocks"));
            assert!(!explains(before, "init", EMPTY));
            let no_backup = WalArchive { dirs: vec![primary.data_dir().join("base")], ..archive.clone() };
            let mismatch =
                serde_json::json!({ "kind": "relations", "what": format!("{before} main"), "detail": EMPTY });
            assert!(!DroppedBefore::default().explain(&mismatch, &no_backup, end_lsn).unwrap());
        }
    }

    fn rel_of(path: &str) -> RelTag {
        let numbers: Vec<u32> = path.split('/').filter_map(|part| part.parse().ok()).collect();
        RelTag { spc_oid: 1663, db_oid: numbers[0], rel_number: numbers[1] }
    }
}
