//! PostgreSQL's own point-in-time recovery, to hold clones against: a base backup of the primary, its WAL, and where to stop.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use postgres_ffi::Lsn;

use crate::ports::free_port;
use crate::standby::{self, Tablespaces};
use crate::test_dir::give_to_server_user;
use crate::{Postgres, TestDir};

/// A base backup that recoveries start from.
#[derive(Debug)]
pub struct Base {
    data_dir: PathBuf,
    /// Where the primary's WAL stood when it was complete: no recovery can stop below.
    pub end_lsn: Lsn,
}

impl Base {
    /// Takes it, under `dir`.
    pub fn take(primary: &Postgres, dir: &TestDir) -> Result<Self> {
        let data_dir = dir.create_subdir("base for recoveries")?.join("data");
        standby::base_backup(primary, &data_dir, Tablespaces::Beside)?;
        Ok(Base { data_dir, end_lsn: primary.current_lsn()? })
    }

    /// A server that has replayed every record that starts below `stop_lsn`, a record's end, and then went on as a primary. Its WAL comes from
    /// where `primary` keeps its own.
    pub fn recover(&self, primary: &Postgres, stop_lsn: Lsn) -> Result<Postgres> {
        let port = free_port()?;
        let root = primary.test_dir().create_subdir(&format!("recovered{}-{port}", primary.version()))?;
        let mut server = primary.sibling(root, port)?;
        standby::copy_data_dir(&self.data_dir, server.data_dir(), Tablespaces::Beside)?;
        let wal = primary.data_dir().join("pg_wal");
        for (name, value) in [
            ("restore_command", format!("cp '{}/%f' '%p'", wal.display())),
            ("recovery_target_lsn", stop_lsn.to_string()),
            // Stops before the first record that starts there. PG 15: xlogrecovery.c, recoveryStopsBefore.
            ("recovery_target_inclusive", "off".to_owned()),
            ("recovery_target_timeline", "current".to_owned()),
            ("recovery_target_action", "promote".to_owned()),
            // Nobody is let in before that.
            ("hot_standby", "off".to_owned()),
            ("autovacuum", "off".to_owned()),
        ] {
            server.set(name, &value)?;
        }
        let signal = server.data_dir().join("recovery.signal");
        fs::write(&signal, "")?;
        give_to_server_user(&signal)?;
        server.start().context("start PostgreSQL's recovery")?;
        let log = server.log()?;
        ensure!(log.contains("recovery stopping before WAL location (LSN)"), "it did not stop there:\n{log}");
        ensure!(server.query_text("SELECT pg_is_in_recovery()")? == "f", "still in recovery:\n{log}");
        Ok(server)
    }
}
