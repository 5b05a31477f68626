//! Files that a crash of the primary left behind: no catalog names them, and what stands in them was never in the WAL that survived.
//!
//! PostgreSQL makes a relation's file before the record that says so is flushed, and writes the pages of a relation that nobody can see
//! yet (an index being built, a table being rewritten, a database being copied) without waiting for their WAL. After a crash in that
//! time the file stays for ever, and nothing refers to it. PG 15: src/backend/catalog/storage.c, RelationCreateStorage;
//! access/heap/rewriteheap.c; access/nbtree/nbtsort.c; commands/dbcommands.c, movedb. They are in no server's WAL, so no page server has them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use postgres_ffi::rel::{DEFAULTTABLESPACE_OID, GLOBALTABLESPACE_OID};
use postgres_ffi::{Oid, RelTag};

use super::removed_dirs::RemovedDirs;
use crate::Postgres;

/// A database of which DROP DATABASE was interrupted; nobody can connect to it. PG: pg_database.h, DATCONNLIMIT_INVALID_DB.
const INVALID: &str = "datconnlimit = -2";

/// What no catalog names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orphans {
    /// Relations that have files.
    pub relations: BTreeSet<RelTag>,
    /// Databases that have a directory: a crash came while they were being created, or dropped.
    pub databases: BTreeSet<Oid>,
}

/// What stands in the data directory of the running, idle `server` and no catalog of any valid database names; and the directories that they name.
/// Requires: no transaction is under way; what it makes would count as left behind.
pub fn find(server: &Postgres) -> Result<(Orphans, RemovedDirs)> {
    server.execute("CHECKPOINT")?; // Files of dropped relations are kept until then.
    let mut on_disk = BTreeSet::new();
    let mut databases = BTreeSet::new();
    for (spc_oid, db_oid, dir) in database_dirs(server.data_dir())? {
        databases.insert(db_oid);
        add_files(&dir, spc_oid, db_oid, &mut on_disk)?;
    }
    for row in server.connect()?.query(&format!("SELECT oid FROM pg_database WHERE NOT {INVALID}"), &[])? {
        databases.remove(&row.get(0));
    }
    databases.remove(&0); // The shared relations' directory.
    let named = named(server)?;
    let orphans = Orphans { relations: on_disk.difference(&named).copied().collect(), databases };
    Ok((orphans, RemovedDirs::new(&named)))
}

/// Every relation that the catalogs of valid databases name.
fn named(server: &Postgres) -> Result<BTreeSet<RelTag>> {
    let mut session = server.connect()?;
    let mut named = BTreeSet::new();
    for row in session.query(&format!("SELECT datname, datallowconn FROM pg_database WHERE NOT {INVALID}"), &[])? {
        let (database, allows_connections): (String, bool) = (row.get(0), row.get(1));
        let allow =
            |allow: bool| format!("ALTER DATABASE \"{}\" ALLOW_CONNECTIONS {allow}", database.replace('"', "\"\""));
        if !allows_connections {
            session.batch_execute(&allow(true))?;
        }
        named.extend(named_in(server, &database).with_context(|| format!("relations of {database}"))?);
        if !allows_connections {
            session.batch_execute(&allow(false))?;
        }
    }
    Ok(named)
}

fn named_in(server: &Postgres, database: &str) -> Result<Vec<RelTag>> {
    let sql = "SELECT CASE WHEN c.reltablespace = 0 THEN d.dattablespace ELSE c.reltablespace END,
                      CASE WHEN c.relisshared THEN 0::oid ELSE d.oid END, pg_relation_filenode(c.oid)
                 FROM pg_class c, pg_database d
                WHERE d.datname = current_database() AND pg_relation_filenode(c.oid) IS NOT NULL";
    let rows = server.connect_to(database)?.query(sql, &[])?;
    Ok(rows.iter().map(|row| RelTag { spc_oid: row.get(0), db_oid: row.get(1), rel_number: row.get(2) }).collect())
}

/// Every directory that holds relations: its tablespace, its database (0 for the shared ones), where it is.
fn database_dirs(data_dir: &Path) -> Result<Vec<(Oid, Oid, PathBuf)>> {
    let mut found = vec![(GLOBALTABLESPACE_OID, 0, data_dir.join("global"))];
    for (db_oid, dir) in numbered(&data_dir.join("base"))? {
        found.push((DEFAULTTABLESPACE_OID, db_oid, dir));
    }
    for (spc_oid, dir) in numbered(&data_dir.join("pg_tblspc"))? {
        // One directory, named for the catalog version.
        for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
            for (db_oid, dir) in numbered(&entry?.path())? {
                found.push((spc_oid, db_oid, dir));
            }
        }
    }
    Ok(found)
}

/// The entries of a directory whose names are numbers.
fn numbered(dir: &Path) -> Result<Vec<(Oid, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        if let Some(oid) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) {
            found.push((oid, path));
        }
    }
    Ok(found)
}

/// The relations of a directory: files named NUMBER, NUMBER_fork, NUMBER.segment.
fn add_files(dir: &Path, spc_oid: Oid, db_oid: Oid, found: &mut BTreeSet<RelTag>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(rel_number) = name.split(['_', '.']).next().and_then(|number| number.parse().ok()) {
            found.insert(RelTag { spc_oid, db_oid, rel_number });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Stop, TestDir};
    use postgres_ffi::PgVersion;

    #[test]
    fn an_untouched_cluster_has_none_and_a_foreign_file_or_directory_is_one() {
        let dir = TestDir::new("orphans").unwrap();
        let mut server = Postgres::builder(PgVersion::V15).start(&dir).unwrap();
        server.execute("CREATE TABLE t AS SELECT 1; CREATE UNLOGGED TABLE u (a int)").unwrap();
        assert_eq!(find(&server).unwrap().0, Orphans::default());
        fs::write(server.data_dir().join("base/1/99999_vm"), [0; 8192]).unwrap();
        let orphan = RelTag { spc_oid: DEFAULTTABLESPACE_OID, db_oid: 1, rel_number: 99_999 };
        let mut orphans = Orphans { relations: BTreeSet::from([orphan]), ..Orphans::default() };
        assert_eq!(find(&server).unwrap().0, orphans);
        // What a crash within CREATE DATABASE leaves.
        fs::create_dir(server.data_dir().join("base/88888")).unwrap();
        fs::copy(
            server.data_dir().join("base/1/pg_filenode.map"),
            server.data_dir().join("base/88888/pg_filenode.map"),
        )
        .unwrap();
        orphans.databases.insert(88_888);
        assert_eq!(find(&server).unwrap().0, orphans);
        server.stop(Stop::Fast).unwrap();
    }
}
