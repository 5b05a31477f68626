//! Databases that were made by copying files while a base backup was taken.
//!
//! The record of such a copy names a directory, and its pages at that LSN are what is copied. Below the backup's end LSN they may be *newer*: the
//! backup copied them later, with what was changed in between. Where WAL brings a page to its right state later that does no harm; but what was copied
//! from it stays. PostgreSQL's recovery copies such pages without a word, and its manual asks for templates to be left alone during a backup
//! (doc/src/sgml/backup.sgml, Caveats).
//!
//! - **Never:** a page is readable that was copied from files which changed, or went, between the copy's record and the backup's end. Ingest stops at
//!   that end instead, unless the copy was dropped by then.
//! - What a copy depends on is its *origin*: the directory whose files are in the backup. A copy of a copy has the first one's, as it was then.
//! - Stored as the value of the copy's database object, so that a restart goes on with it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use keyenc::{Key, Kind, Object};
use postgres_ffi::records::dbase::DatabaseDir;
use postgres_ffi::{Lsn, Oid, RelTag};

use super::step::Step;
use super::{IngestError, TimelineReader};

/// Where a copy came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileCopy {
    /// The directory whose files the backup has.
    pub origin: DatabaseDir,
    /// Something in the origin came, changed or went behind the copy's record.
    pub is_origin_changed: bool,
}

impl FileCopy {
    /// Tablespace and database of the origin, u32 big-endian each, then 0 or 1.
    pub fn encode(&self) -> [u8; 9] {
        let mut value = [0; 9];
        value[..4].copy_from_slice(&self.origin.spc_oid.to_be_bytes());
        value[4..8].copy_from_slice(&self.origin.db_oid.to_be_bytes());
        value[8] = self.is_origin_changed.into();
        value
    }

    /// `None`: this is no value of [`FileCopy::encode`].
    pub fn decode(value: &[u8]) -> Option<Self> {
        let (spc_oid, rest) = value.split_first_chunk()?;
        let (db_oid, rest) = rest.split_first_chunk()?;
        let is_origin_changed = match rest {
            [0] => false,
            [1] => true,
            _ => return None,
        };
        let origin = DatabaseDir { spc_oid: Oid::from_be_bytes(*spc_oid), db_oid: Oid::from_be_bytes(*db_oid) };
        Some(FileCopy { origin, is_origin_changed })
    }
}

/// The copies that are there, while pages below the first readable LSN may be newer than that.
#[derive(Default)]
pub(super) struct FileCopies {
    /// The backup's end LSN. `None`: it has been passed, nothing is watched any more.
    first_readable_lsn: Option<Lsn>,
    by_target: BTreeMap<DatabaseDir, FileCopy>,
    /// Those whose value this record changes.
    targets_to_put: Vec<DatabaseDir>,
}

impl FileCopies {
    /// Those at `last_record_lsn`, which is below `first_readable_lsn`.
    pub fn watch_until(
        first_readable_lsn: Lsn,
        last_record_lsn: Lsn,
        state: &dyn TimelineReader,
    ) -> Result<Self, IngestError> {
        let (first, last) = Key::class_of(Object::Database { spc_oid: 0, db_oid: 0 });
        let mut copies = FileCopies { first_readable_lsn: Some(first_readable_lsn), ..FileCopies::default() };
        let mut bad_value = None;
        let scanned = state.scan(&first, &last, last_record_lsn, &mut |key, value| match key.object() {
            Ok(Object::Database { .. }) if value.is_empty() => ControlFlow::Continue(()),
            Ok(Object::Database { spc_oid, db_oid }) if let Some(copy) = FileCopy::decode(&value) => {
                copies.by_target.insert(DatabaseDir { spc_oid, db_oid }, copy);
                ControlFlow::Continue(())
            }
            _ => {
                bad_value = Some(IngestError::StoredValue { key, length: value.len() });
                ControlFlow::Break(())
            }
        });
        scanned.map_err(|source| IngestError::State { source })?;
        bad_value.map_or(Ok(copies), Err)
    }

    /// True below the backup's end.
    pub fn is_over_backup(&self) -> bool {
        self.first_readable_lsn.is_some()
    }

    /// `rel` comes, changes or goes, whether or not we have it.
    #[inline]
    pub fn note_change_of(&mut self, rel: RelTag) {
        if !self.by_target.is_empty() {
            self.note_change_in(DatabaseDir { spc_oid: rel.spc_oid, db_oid: rel.db_oid });
        }
    }

    /// Something in `dir` comes, changes or goes, whether or not we have it.
    pub fn note_change_in(&mut self, dir: DatabaseDir) {
        self.note_changes(|origin| origin == dir);
    }

    /// A whole tablespace goes.
    pub fn note_end_of_tablespace(&mut self, spc_oid: Oid) {
        self.note_changes(|origin| origin.spc_oid == spc_oid);
    }

    fn note_changes(&mut self, is_changed: impl Fn(DatabaseDir) -> bool) {
        for (target, copy) in &mut self.by_target {
            if !copy.is_origin_changed && is_changed(copy.origin) {
                copy.is_origin_changed = true;
                self.targets_to_put.push(*target);
            }
        }
    }

    /// The record copies `template` to `target`. `is_there`: we have the template's directory.
    pub fn note_copy(&mut self, target: DatabaseDir, template: DatabaseDir, is_there: bool) {
        if self.first_readable_lsn.is_none() {
            return;
        }
        let from_backup = FileCopy { origin: template, is_origin_changed: !is_there };
        let copy = self.by_target.get(&template).copied().unwrap_or(from_backup);
        self.by_target.insert(target, copy);
        self.targets_to_put.push(target);
    }

    /// `dir` goes, and with it what was copied to it.
    pub fn note_end_of(&mut self, dir: DatabaseDir) {
        self.note_change_in(dir);
        self.by_target.remove(&dir);
    }

    /// To be called behind each record: puts what changed, and ends the watch where everything becomes readable.
    #[inline]
    pub fn end_record(&mut self, step: &mut Step<'_>) -> Result<(), IngestError> {
        match self.first_readable_lsn {
            Some(first_readable_lsn) => self.end_watched_record(step, first_readable_lsn),
            None => Ok(()),
        }
    }

    #[cold]
    fn end_watched_record(&mut self, step: &mut Step<'_>, first_readable_lsn: Lsn) -> Result<(), IngestError> {
        for target in self.targets_to_put.drain(..) {
            // One that this same record has removed has its tombstone.
            if let Some(copy) = self.by_target.get(&target) {
                let DatabaseDir { spc_oid, db_oid } = target;
                step.put(Object::Database { spc_oid, db_oid }, Kind::Image, &copy.encode());
            }
        }
        if step.lsn() < first_readable_lsn {
            return Ok(());
        }
        if let Some((target, copy)) = self.by_target.iter().find(|(_, copy)| copy.is_origin_changed) {
            return Err(IngestError::OriginChanged { target: *target, origin: copy.origin, first_readable_lsn });
        }
        *self = FileCopies::default();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the value comes back, and nothing else is taken for one. Method: plain cases; what it does with records is in `ingest::tests::databases`.

    use super::*;

    #[test]
    fn a_value_comes_back() {
        for is_origin_changed in [false, true] {
            let copy = FileCopy { origin: DatabaseDir { spc_oid: 1663, db_oid: 5 }, is_origin_changed };
            assert_eq!(copy.encode(), [0, 0, 6, 0x7f, 0, 0, 0, 5, is_origin_changed.into()]);
            assert_eq!(FileCopy::decode(&copy.encode()), Some(copy));
        }
        for bad in [&[][..], &[0; 8], &[0; 10], &[0, 0, 0, 0, 0, 0, 0, 0, 2]] {
            assert_eq!(FileCopy::decode(bad), None);
        }
    }
}
