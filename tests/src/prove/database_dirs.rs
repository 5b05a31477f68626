//! Directories of databases that the primary has made or removed without a word of it in the WAL that survived.
//!
//! PostgreSQL makes a directory first and logs that afterwards: a crash in the middle of CREATE DATABASE (by copying files) or ALTER DATABASE SET
//! TABLESPACE leaves what was copied. It also removes first and logs afterwards, if at all (PG 15, 18: src/backend/commands/dbcommands.c):
//! - ALTER DATABASE SET TABLESPACE that is ended between the record of its copy and its commit removes the copy, and logs nothing:
//!   movedb_failure_callback.
//! - One that is done removes the old directory behind its commit. That is logged, and nobody waits until it is flushed (movedb, at the end): a
//!   crash soon after it takes the record back, and no file comes back.
//! - CREATE DATABASE that fails and DROP DATABASE remove, then log (remove_dbtablespaces): a crash in between. The latter has marked the database
//!   as invalid before: nobody can connect to it any more.
//!
//! Whoever follows the WAL has it otherwise, a stock standby as well as we. The proof that a mismatch is one of these: no catalog of a valid
//! database names a relation in the directory, and the last record about it in the surviving WAL creates what is not there, or none creates
//! what is there. What is in the WAL is for the page server to follow.

use std::cell::OnceCell;
use std::collections::BTreeSet;

use anyhow::{Context, Result};
use postgres_ffi::records::dbase::{self, DatabaseDir, DatabaseRecord};
use postgres_ffi::wal::rmgr;
use postgres_ffi::{Lsn, RelTag};
use serde_json::Value;

use super::lost_wal::WalArchive;

/// What catalogs and WAL say of directories of databases.
#[derive(Clone, Debug, Default)]
pub struct DatabaseDirs {
    /// Those that a catalog names: relations of valid databases are there.
    named: BTreeSet<DatabaseDir>,
    /// Those that exist by the word of the WAL: read when the first mismatch asks for it. `None`: the WAL has a gap.
    by_wal: OnceCell<Option<BTreeSet<DatabaseDir>>>,
}

impl DatabaseDirs {
    /// `named`: the relations that catalogs of valid databases name.
    pub fn new(named: &BTreeSet<RelTag>) -> Self {
        let named = named.iter().map(|rel| DatabaseDir { spc_oid: rel.spc_oid, db_oid: rel.db_oid }).collect();
        Self { named, by_wal: OnceCell::new() }
    }

    /// True if `mismatch` is something in a directory that is gone, and the WAL in `archive`, which ends at `end_lsn`, does not tell that it
    /// went; or the relation map of one that is there, and the WAL does not tell that it came.
    pub fn explain(&self, mismatch: &Value, archive: &WalArchive, end_lsn: Lsn) -> Result<bool> {
        let Some((dir, side)) = dir_of_one_side(mismatch).filter(|(dir, _)| !self.named.contains(dir)) else {
            return Ok(false);
        };
        Ok(self.by_wal(archive, end_lsn)?.is_some_and(|dirs| dirs.contains(&dir) == (side == Side::Ours)))
    }

    fn by_wal(&self, archive: &WalArchive, end_lsn: Lsn) -> Result<Option<&BTreeSet<DatabaseDir>>> {
        if let Some(known) = self.by_wal.get() {
            return Ok(known.as_ref());
        }
        let dirs = created_dirs(archive, end_lsn)?;
        Ok(self.by_wal.get_or_init(|| dirs).as_ref())
    }
}

/// Directories whose last record up to `end_lsn` creates them. `None`: there is no WAL without a gap up to `end_lsn`.
fn created_dirs(archive: &WalArchive, end_lsn: Lsn) -> Result<Option<BTreeSet<DatabaseDir>>> {
    let mut dirs: BTreeSet<DatabaseDir> = BTreeSet::new();
    let is_whole = archive.for_each_record_up_to(end_lsn, &[rmgr::DBASE, rmgr::TBLSPC], |record| {
        if record.rmid == rmgr::TBLSPC {
            let spc_oid = dbase::parse_tablespace(record.main_data())?;
            dirs.retain(|dir| dir.spc_oid != spc_oid || record.operation() != dbase::TABLESPACE_DROP);
            return Ok(());
        }
        let parsed = DatabaseRecord::parse(archive.version, record.operation(), record.main_data())?;
        match parsed.with_context(|| format!("an unknown Database record at {}", record.start_lsn))? {
            DatabaseRecord::CreateFileCopy { target, .. } | DatabaseRecord::CreateWalLog { target } => {
                dirs.insert(target);
            }
            DatabaseRecord::Drop { db_oid, tablespaces } => {
                for spc_oid in tablespaces.iter() {
                    dirs.remove(&DatabaseDir { spc_oid, db_oid });
                }
            }
        }
        Ok(())
    })?;
    Ok(is_whole.then_some(dirs))
}

/// Who has what the other one has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Ours,
    OnDisk,
}

/// The directory of what one side alone has: relation `28331/28354/112 main`, which we have, or the relation map of
/// `tablespace 28331 database 28354`. Relations that are on disk alone are for `orphans` to judge.
fn dir_of_one_side(mismatch: &Value) -> Option<(DatabaseDir, Side)> {
    let text = |key: &str| mismatch[key].as_str();
    let what = text("what")?;
    let of_map = || {
        let (spc_oid, db_oid) = what.strip_prefix("tablespace ")?.split_once(" database ")?;
        Some(DatabaseDir { spc_oid: spc_oid.parse().ok()?, db_oid: db_oid.parse().ok()? })
    };
    match (text("kind")?, text("detail")?) {
        ("relation maps", "not in the directory") => Some((of_map()?, Side::Ours)),
        ("relation maps", "in the directory only") => Some((of_map()?, Side::OnDisk)),
        ("relations", detail) if detail.starts_with("not in the directory,") => {
            let rel: RelTag = what.split(' ').next()?.parse().ok()?;
            Some((DatabaseDir { spc_oid: rel.spc_oid, db_oid: rel.db_oid }, Side::Ours))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    //! Real servers do it: a move that is ended, and crashes that take the record of a copy or a removal back. A stock standby says what a
    //! follower of the WAL has.

    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::prove::comparison::{Comparison, CrashRemains, compare};
    use crate::prove::dropped_before::DroppedBefore;
    use crate::prove::orphans;
    use crate::standby::start_standby;
    use crate::{PageServer, Postgres, Stop, TestDir, wait_until};
    use postgres_ffi::PgVersion;

    const LIMIT: Duration = Duration::from_secs(60);
    const SEGMENT_MB: u32 = 1;

    /// A primary with all of its WAL in `pg_wal`, and a database that lies in a tablespace.
    struct Cluster {
        primary: Postgres,
        standby: Postgres,
        pageserver: PageServer,
        spc_oid: u32,
        db_oid: u32,
    }

    impl Cluster {
        fn start(version: PgVersion) -> Self {
            let dir = TestDir::new("database-dirs").unwrap();
            let builder = Postgres::builder(version).wal_segment_mb(SEGMENT_MB).setting("wal_keep_size", "4GB");
            // Nothing but commits flushes WAL.
            let builder = builder.setting("wal_writer_delay", "10s").setting("autovacuum", "off");
            let primary = builder.start(&dir).unwrap();
            let mut pageserver = PageServer::builder().start(&dir).unwrap();
            for expected in ["connection to the primary", "wal receiver", "redo process"] {
                pageserver.expect_in_log(expected);
            }
            pageserver.import("main", &primary.conninfo()).unwrap();
            let standby = start_standby(&primary).unwrap();
            let mut session = primary.connect().unwrap();
            for sql in ["CREATE TABLESPACE there LOCATION ''", "CREATE DATABASE moved TABLESPACE there"] {
                session.batch_execute(sql).unwrap();
            }
            let oid = |sql: &str| primary.query_text(sql).unwrap().parse().unwrap();
            let spc_oid = oid("SELECT oid FROM pg_tablespace WHERE spcname = 'there'");
            let db_oid = oid("SELECT oid FROM pg_database WHERE datname = 'moved'");
            Self { primary, standby, pageserver, spc_oid, db_oid }
        }

        fn dir_of(server: &Postgres, spc_oid: u32, db_oid: u32) -> PathBuf {
            match spc_oid {
                1663 => server.data_dir().join(format!("base/{db_oid}")),
                _ => {
                    let tablespace = server.data_dir().join(format!("pg_tblspc/{spc_oid}"));
                    let version_dir = std::fs::read_dir(tablespace).unwrap().next().unwrap().unwrap().path();
                    version_dir.join(db_oid.to_string())
                }
            }
        }

        /// The directory is on one side alone.
        fn check_only_one_has(&self, spc_oid: u32, side: Side) {
            let lsn = self.primary.current_lsn().unwrap();
            wait_until("the standby", LIMIT, || Ok(self.standby.current_lsn()? >= lsn)).unwrap();
            for server in [&self.primary, &self.standby] {
                let dir = Self::dir_of(server, spc_oid, self.db_oid);
                let is_expected = std::ptr::eq(server, &self.standby) == (side == Side::Ours);
                for file in ["PG_VERSION", "1259", "pg_filenode.map"] {
                    assert_eq!(dir.join(file).exists(), is_expected, "{}", dir.display());
                }
            }
        }

        /// Stops the primary and compares with its directory.
        fn compare(&mut self) -> (Result<Comparison>, CrashRemains) {
            self.primary.execute("SELECT pg_logical_emit_message(true, 'harness', 'flush')").unwrap();
            let (orphans, database_dirs) = orphans::find(&self.primary).unwrap();
            let archive = WalArchive {
                dirs: vec![self.primary.data_dir().join("pg_wal")],
                version: self.primary.version(),
                segment_bytes: SEGMENT_MB << 20,
            };
            let lsn = self.primary.current_lsn().unwrap();
            wait_until("the page server", LIMIT, || {
                Ok(self.pageserver.timeline("main", "last_record_lsn")?.parse::<Lsn>()? >= lsn)
            })
            .unwrap();
            self.standby.stop(Stop::Fast).unwrap();
            self.primary.stop(Stop::Fast).unwrap();
            let remains = CrashRemains {
                orphans,
                database_dirs,
                dropped_before: DroppedBefore::default(),
                archive,
                recoveries: Vec::new(),
            };
            (compare(&self.pageserver, "main", self.primary.data_dir(), &remains), remains)
        }

        fn map_of(spc_oid: u32, db_oid: u32, side: Side) -> Value {
            let what = format!("tablespace {spc_oid} database {db_oid}");
            let detail = if side == Side::Ours { "not in the directory" } else { "in the directory only" };
            serde_json::json!({ "kind": "relation maps", "what": what, "detail": detail })
        }

        /// The comparison has forgiven the database's directory in `spc_oid`, and would not have forgiven any other.
        fn check_is_forgiven(&mut self, spc_oid: u32, side: Side) {
            let (comparison, remains) = self.compare();
            let comparison = comparison.unwrap();
            assert!(comparison.forgiven > 200, "a whole database: {comparison:?}");
            let end_lsn: Lsn = self.pageserver.timeline("main", "last_record_lsn").unwrap().parse().unwrap();
            let explains = |dirs: &DatabaseDirs, mismatch: &Value, end_lsn: Lsn| {
                dirs.explain(mismatch, &remains.archive, end_lsn).unwrap()
            };
            let dirs = &remains.database_dirs;
            let map = Self::map_of(spc_oid, self.db_oid, side);
            assert!(explains(dirs, &map, end_lsn));
            let other_side = if side == Side::Ours { Side::OnDisk } else { Side::Ours };
            assert!(!explains(dirs, &Self::map_of(spc_oid, self.db_oid, other_side), end_lsn));
            assert!(!explains(dirs, &Self::map_of(1663, 5, side), end_lsn), "a database in use");
            assert!(!explains(dirs, &Self::map_of(1663, 99_999, Side::Ours), end_lsn), "not in the WAL at all");
            let mut other = map.clone();
            other["detail"] = "differs from byte 8 on".into();
            assert!(!explains(dirs, &other, end_lsn));
            // A catalog names something in it.
            let rel = RelTag { spc_oid, db_oid: self.db_oid, rel_number: 1 };
            assert!(!explains(&DatabaseDirs::new(&BTreeSet::from([rel])), &map, end_lsn));
            // The WAL does not reach so far, or is not there.
            let behind_the_end = Lsn::new(end_lsn.as_u64() + (1 << 40));
            assert!(!explains(&DatabaseDirs::default(), &map, behind_the_end));
        }
    }

    impl Cluster {
        /// A move to the default tablespace that has copied the directory, logged that, and now waits for the row of pg_database, until the first
        /// session ends its transaction. The process, and its session.
        fn move_halfway(&self) -> (postgres::Client, i32, std::thread::JoinHandle<Result<(), postgres::Error>>) {
            let mut holder = self.primary.connect().unwrap();
            holder.batch_execute("BEGIN; ALTER DATABASE moved CONNECTION LIMIT 7").unwrap();
            let mut mover = self.primary.connect().unwrap();
            let pid: i32 = mover.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
            let moving =
                std::thread::spawn(move || mover.batch_execute("ALTER DATABASE moved SET TABLESPACE pg_default"));
            let waits = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event_type = 'Lock'");
            wait_until("the move to wait", LIMIT, || Ok(self.primary.query_text(&waits)? == "1")).unwrap();
            assert!(Self::dir_of(&self.primary, 1663, self.db_oid).join("PG_VERSION").exists());
            (holder, pid, moving)
        }
    }

    fn an_ended_move_is_known(version: PgVersion) {
        let mut cluster = Cluster::start(version);
        let (mut holder, pid, moving) = cluster.move_halfway();
        cluster.primary.query_text(&format!("SELECT pg_terminate_backend({pid})")).unwrap();
        assert!(moving.join().unwrap().is_err());
        holder.batch_execute("COMMIT").unwrap();
        let copy = Cluster::dir_of(&cluster.primary, 1663, cluster.db_oid);
        wait_until("the copy to go", LIMIT, || Ok(!copy.exists())).unwrap();
        cluster.check_only_one_has(1663, Side::Ours);
        cluster.check_is_forgiven(1663, Side::Ours);
    }

    #[test]
    fn the_copy_of_an_ended_move_stays_with_every_follower_on_15() {
        an_ended_move_is_known(PgVersion::V15);
    }

    #[test]
    fn the_copy_of_an_ended_move_stays_with_every_follower_on_17() {
        an_ended_move_is_known(PgVersion::V17);
    }

    #[test]
    fn a_copy_whose_record_a_crash_took_back_is_on_the_primary_alone() {
        let mut cluster = Cluster::start(PgVersion::V15);
        let (_holder, _, moving) = cluster.move_halfway();
        cluster.primary.kill().unwrap();
        assert!(moving.join().unwrap().is_err());
        cluster.primary.start().unwrap();
        cluster.check_only_one_has(1663, Side::OnDisk);
        cluster.check_is_forgiven(1663, Side::OnDisk);
    }

    #[test]
    fn a_directory_whose_removal_a_crash_took_back_stays_with_every_follower() {
        let mut cluster = Cluster::start(PgVersion::V15);
        cluster.primary.connect().unwrap().batch_execute("ALTER DATABASE moved SET TABLESPACE pg_default").unwrap();
        cluster.primary.kill().unwrap();
        cluster.primary.start().unwrap();
        cluster.check_only_one_has(cluster.spc_oid, Side::Ours);
        cluster.check_is_forgiven(cluster.spc_oid, Side::Ours);
    }

    #[test]
    fn a_dropped_tablespace_takes_along_what_the_wal_has_left_in_it() {
        let mut cluster = Cluster::start(PgVersion::V15);
        cluster.primary.connect().unwrap().batch_execute("ALTER DATABASE moved SET TABLESPACE pg_default").unwrap();
        cluster.primary.kill().unwrap();
        cluster.primary.start().unwrap();
        cluster.check_only_one_has(cluster.spc_oid, Side::Ours);
        cluster.primary.connect().unwrap().batch_execute("DROP TABLESPACE there").unwrap();
        let (comparison, remains) = cluster.compare();
        assert_eq!(comparison.unwrap().forgiven, 0);
        let end_lsn = cluster.pageserver.timeline("main", "last_record_lsn").unwrap().parse().unwrap();
        let map = Cluster::map_of(cluster.spc_oid, cluster.db_oid, Side::Ours);
        assert!(!remains.database_dirs.explain(&map, &remains.archive, end_lsn).unwrap());
    }

    #[test]
    fn what_is_in_the_wal_is_for_us_to_follow() {
        let mut cluster = Cluster::start(PgVersion::V15);
        cluster.primary.connect().unwrap().batch_execute("ALTER DATABASE moved SET TABLESPACE pg_default").unwrap();
        let (comparison, remains) = cluster.compare();
        assert_eq!(comparison.unwrap().forgiven, 0);
        let end_lsn = cluster.pageserver.timeline("main", "last_record_lsn").unwrap().parse().unwrap();
        let explains = |dirs: &DatabaseDirs, spc_oid: u32, side: Side| {
            dirs.explain(&Cluster::map_of(spc_oid, cluster.db_oid, side), &remains.archive, end_lsn).unwrap()
        };
        let nameless = DatabaseDirs::default();
        // The old directory, whose removal is in the WAL, and the new one, which is in the WAL.
        assert!(!explains(&nameless, cluster.spc_oid, Side::Ours));
        assert!(!explains(&nameless, 1663, Side::OnDisk));
        assert!(explains(&nameless, 1663, Side::Ours), "but for the catalogs, it could be gone");
        assert!(!explains(&remains.database_dirs, 1663, Side::Ours));
    }

    #[test]
    fn what_one_side_alone_has_says_where_it_is() {
        let dir = |kind: &str, what: &str, detail: &str| {
            dir_of_one_side(&serde_json::json!({ "kind": kind, "what": what, "detail": detail }))
        };
        let expected = DatabaseDir { spc_oid: 28_331, db_oid: 28_354 };
        let map = "tablespace 28331 database 28354";
        assert_eq!(dir("relation maps", map, "not in the directory"), Some((expected, Side::Ours)));
        assert_eq!(dir("relation maps", map, "in the directory only"), Some((expected, Side::OnDisk)));
        assert_eq!(dir("relation maps", map, "differs from byte 8 on"), None);
        let rel = "28331/28354/112 main";
        assert_eq!(dir("relations", rel, "not in the directory, 1 blocks"), Some((expected, Side::Ours)));
        assert_eq!(dir("relations", rel, "in the directory only, 1 blocks"), None);
        assert_eq!(dir("relation sizes", rel, "we have 2 blocks, the directory 1"), None);
        assert_eq!(dir("main heap", "28331/28354/112 main block 0", "differs from byte 16 on"), None);
    }
}
