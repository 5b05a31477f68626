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

use super::database_dirs::DatabaseDirs;
use crate::Postgres;
use crate::postgres_server::DATABASE_IS_VALID;

/// Relations that have files in the data directory of the running, idle `server` and that no catalog of any valid database names; and what
/// these catalogs say of directories.
/// Requires: no transaction is under way; what it makes would count as left behind.
pub fn find(server: &Postgres) -> Result<(BTreeSet<RelTag>, DatabaseDirs)> {
    server.execute("CHECKPOINT")?; // Files of dropped relations are kept until then.
    let mut on_disk = BTreeSet::new();
    for (spc_oid, db_oid, dir) in database_dirs(server.data_dir())? {
        add_files(&dir, spc_oid, db_oid, &mut on_disk)?;
    }
    let named = named(server)?;
    Ok((on_disk.difference(&named).copied().collect(), DatabaseDirs::new(&named)))
}

/// Every relation that the catalogs of valid databases name.
fn named(server: &Postgres) -> Result<BTreeSet<RelTag>> {
    let mut session = server.connect()?;
    let mut named = BTreeSet::new();
    for row in
        session.query(&format!("SELECT datname, datallowconn FROM pg_database WHERE {DATABASE_IS_VALID}"), &[])?
    {
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
        assert_eq!(find(&server).unwrap().0, BTreeSet::new());
        let orphan = |db_oid: Oid| RelTag { spc_oid: DEFAULTTABLESPACE_OID, db_oid, rel_number: 99_999 };
        fs::write(server.data_dir().join("base/1/99999_vm"), [0; 8192]).unwrap();
        assert_eq!(find(&server).unwrap().0, BTreeSet::from([orphan(1)]));
        // What a crash within CREATE DATABASE leaves.
        fs::create_dir(server.data_dir().join("base/88888")).unwrap();
        fs::write(server.data_dir().join("base/88888/99999"), [0; 8192]).unwrap();
        assert_eq!(find(&server).unwrap().0, BTreeSet::from([orphan(1), orphan(88_888)]));
        // What DROP DATABASE that was interrupted leaves.
        server.connect().unwrap().batch_execute("CREATE DATABASE half_dropped").unwrap();
        let before = find(&server).unwrap().0;
        server.execute("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'half_dropped'").unwrap();
        assert!(server.connect_to("half_dropped").is_err());
        assert!(find(&server).unwrap().0.len() > before.len() + 200, "all relations of a database");
        server.stop(Stop::Fast).unwrap();
    }
}
