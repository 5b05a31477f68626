//! Databases and tablespaces come and go. PG: src/backend/commands/dbcommands.c, dbase_redo; tablespace.c, tblspc_redo.

use std::collections::{HashMap, HashSet};

use keyenc::{Key, Kind, Object};
use postgres_ffi::records::RecordError;
use postgres_ffi::records::dbase::{self, DatabaseDir, DatabaseRecord};
use postgres_ffi::{BlockNumber, ForkNumber, Oid, RelTag};

use super::step::{Step, number_of};
use super::{IngestError, WalIngest};

/// Pages of a template read at a time: half a megabyte, enough for redo to work on several at once.
const COPIED_PAGES_AT_ONCE: usize = 64;

/// A fork and its length.
type Fork = (RelTag, ForkNumber, BlockNumber);

impl WalIngest {
    pub(super) fn ingest_database(&mut self, step: &mut Step<'_>) -> Result<(), IngestError> {
        let record = step.record;
        let parsed = DatabaseRecord::parse(self.version, record.operation(), record.main_data());
        match parsed.map_err(|source| step.bad_body(source))? {
            Some(DatabaseRecord::CreateFileCopy { target, template }) => self.copy_database(step, target, template),
            Some(DatabaseRecord::CreateWalLog { target }) => {
                self.file_copies.note_change_in(target);
                self.ensure_database_dir(step, target.spc_oid, target.db_oid)
            }
            Some(DatabaseRecord::Drop { db_oid, tablespaces }) => {
                for spc_oid in tablespaces.iter() {
                    self.drop_database_dir(step, DatabaseDir { spc_oid, db_oid })?;
                }
                Ok(())
            }
            None => Err(step.unknown_operation()),
        }
    }

    /// A tablespace is a link to a directory that we do not keep; what goes with it are the directories of databases. The primary has made sure that
    /// they are empty. Here one may not be, because the record of its removal is not in the WAL (`tests::prove::database_dirs` tells when).
    pub(super) fn ingest_tablespace(&mut self, step: &mut Step<'_>) -> Result<(), IngestError> {
        let tablespace = dbase::parse_tablespace(step.record.main_data());
        let spc_oid = tablespace.map_err(|source| step.bad_body(source))?;
        match step.record.operation() {
            dbase::TABLESPACE_CREATE => Ok(()),
            dbase::TABLESPACE_DROP => self.drop_tablespace(step, spc_oid),
            _ => Err(step.unknown_operation()),
        }
    }

    /// Every fork and page of the template as of the record before, and its relation map. What the target had goes.
    ///
    /// One record, any number of pages: they leave in parts, and become visible together when the record is whole.
    fn copy_database(
        &mut self,
        step: &mut Step<'_>,
        target: DatabaseDir,
        template: DatabaseDir,
    ) -> Result<(), IngestError> {
        if target == template {
            let value = target.db_oid.into();
            return Err(step.bad_body(RecordError::Value {
                body: "xl_dbase_create_file_copy_rec",
                field: "db_id",
                value,
            }));
        }
        let forks = self.forks_of(step, template)?;
        let is_template_there = step.object(database(template))?.is_some();
        self.unmade.retain(|(rel, _)| (rel.spc_oid, rel.db_oid) != (target.spc_oid, target.db_oid));
        self.file_copies.note_change_in(target);
        self.file_copies.note_copy(target, template, is_template_there);
        let copied: HashSet<_> = forks.iter().map(|(rel, fork, _)| (rel.rel_number, *fork)).collect();
        let mut copied_over = HashMap::new();
        for (rel, fork, block_count) in self.forks_of(step, target)? {
            // A key gets one version at this LSN: what is copied over is not removed first.
            if copied.contains(&(rel.rel_number, fork)) {
                copied_over.insert((rel.rel_number, fork), block_count);
            } else {
                self.remove_fork(step, rel, fork, Some(block_count));
            }
        }
        self.ensure_database_dir(step, target.spc_oid, target.db_oid)?;
        self.copy_relation_map(step, target, template)?;
        for (rel, fork, block_count) in forks {
            let copy = RelTag { spc_oid: target.spc_oid, db_oid: target.db_oid, rel_number: rel.rel_number };
            let before = copied_over.get(&(rel.rel_number, fork)).copied();
            self.set_fork_size(step, copy, fork, before, block_count);
            copy_pages(step, rel, copy, fork, block_count)?;
        }
        Ok(())
    }

    fn copy_relation_map(
        &mut self,
        step: &mut Step<'_>,
        target: DatabaseDir,
        template: DatabaseDir,
    ) -> Result<(), IngestError> {
        let map_of = |dir: DatabaseDir| Object::RelationMap { spc_oid: dir.spc_oid, db_oid: dir.db_oid };
        match step.object(map_of(template))? {
            Some(map) => step.put(map_of(target), Kind::Image, &map),
            None if step.object(map_of(target))?.is_some() => step.put(map_of(target), Kind::Tombstone, &[]),
            None => {}
        }
        Ok(())
    }

    fn drop_database_dir(&mut self, step: &mut Step<'_>, dir: DatabaseDir) -> Result<(), IngestError> {
        self.file_copies.note_end_of(dir);
        for (rel, fork, block_count) in self.forks_of(step, dir)? {
            self.remove_fork(step, rel, fork, Some(block_count));
            step.commit_if_full()?;
        }
        let DatabaseDir { spc_oid, db_oid } = dir;
        let map = Object::RelationMap { spc_oid, db_oid };
        if step.object(map)?.is_some() {
            step.put(map, Kind::Tombstone, &[]);
        }
        self.remove_database_dir(step, spc_oid, db_oid);
        Ok(())
    }

    fn drop_tablespace(&mut self, step: &mut Step<'_>, spc_oid: Oid) -> Result<(), IngestError> {
        self.file_copies.note_end_of_tablespace(spc_oid);
        let bound = |db_oid| Key::from(Object::Database { spc_oid, db_oid });
        for (object, _) in step.scan(&bound(0), &bound(Oid::MAX))? {
            if let Object::Database { spc_oid, db_oid } = object {
                self.drop_database_dir(step, DatabaseDir { spc_oid, db_oid })?;
            }
        }
        Ok(())
    }

    fn remove_database_dir(&mut self, step: &mut Step<'_>, spc_oid: Oid, db_oid: Oid) {
        step.put(Object::Database { spc_oid, db_oid }, Kind::Tombstone, &[]);
        self.known.database_dirs.insert((spc_oid, db_oid), false);
    }

    /// All forks in a database's directory before this record.
    fn forks_of(&mut self, step: &mut Step<'_>, dir: DatabaseDir) -> Result<Vec<Fork>, IngestError> {
        let (first, last) = Key::relation_sizes_of_database(dir.spc_oid, dir.db_oid);
        let mut forks = Vec::new();
        for (object, value) in step.scan(&first, &last)? {
            if let Object::RelationSize { rel, fork } = object {
                forks.push((rel, fork, number_of(Key::from(object), &value)?));
            }
        }
        Ok(forks)
    }
}

fn database(dir: DatabaseDir) -> Object {
    Object::Database { spc_oid: dir.spc_oid, db_oid: dir.db_oid }
}

fn copy_pages(
    step: &mut Step<'_>,
    rel: RelTag,
    copy: RelTag,
    fork: ForkNumber,
    block_count: BlockNumber,
) -> Result<(), IngestError> {
    let mut keys = Vec::with_capacity(COPIED_PAGES_AT_ONCE);
    for first in (0..block_count).step_by(COPIED_PAGES_AT_ONCE) {
        let blocks = first..block_count.min(first.saturating_add(COPIED_PAGES_AT_ONCE as u32));
        keys.clear();
        keys.extend(blocks.clone().map(|block_no| Key::block(rel, fork, block_no)));
        for (block_no, page) in blocks.zip(step.pages(&keys)?) {
            step.put_page(Key::block(copy, fork, block_no), &page);
        }
        step.commit_if_full()?;
    }
    Ok(())
}
