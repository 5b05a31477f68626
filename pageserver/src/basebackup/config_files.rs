//! Configuration of a server that starts from a backup: little, and what WAL tells.
//!
//! A server with lower values than those in `pg_control` cannot hold what the old one left behind (prepared transactions), and a standby of it does not
//! start. All else is for whoever runs it to say.

use std::fmt::Write as _;

use postgres_ffi::PgVersion;
use postgres_ffi::control_file::ControlFile;

/// Origins that a server has room for unless told otherwise. PG 14-18: `max_replication_slots`, from 18 `max_active_replication_origins`.
const ORIGINS_DEFAULT: usize = 10;

/// `postgresql.conf`.
pub(super) fn postgresql_conf(control_file: &ControlFile, origin_count: usize) -> String {
    let on_off = |on| if on { "on" } else { "off" };
    let mut text =
        "# Written by the page server with the base backup: the parameters of the old server that WAL tells.\n"
            .to_owned();
    let parameters = [
        ("max_connections", control_file.max_connections.to_string()),
        ("max_worker_processes", control_file.max_worker_processes.to_string()),
        ("max_wal_senders", control_file.max_wal_senders.to_string()),
        ("max_prepared_transactions", control_file.max_prepared_xacts.to_string()),
        ("max_locks_per_transaction", control_file.max_locks_per_xact.to_string()),
        ("wal_level", wal_level(control_file.wal_level).to_owned()),
        ("wal_log_hints", on_off(control_file.wal_log_hints).to_owned()),
        ("track_commit_timestamp", on_off(control_file.track_commit_timestamp).to_owned()),
    ];
    for (name, value) in parameters {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name} = {value}");
    }
    if origin_count > ORIGINS_DEFAULT {
        let name = if control_file.version >= PgVersion::V18 {
            "max_active_replication_origins"
        } else {
            "max_replication_slots"
        };
        let _ = writeln!(text, "{name} = {origin_count}");
    }
    text
}

/// PG 14-18: src/include/access/xlog.h, WalLevel.
fn wal_level(number: i32) -> &'static str {
    match number {
        2 => "logical",
        _ => "replica",
    }
}

/// `pg_hba.conf`: this machine, by password over TCP. The users and passwords are the old server's.
pub(super) const PG_HBA_CONF: &str = "\
# Written by the page server with the base backup.
local all         all               peer
local replication all               peer
host  all         all 127.0.0.1/32  scram-sha-256
host  all         all ::1/128       scram-sha-256
host  replication all 127.0.0.1/32  scram-sha-256
host  replication all ::1/128       scram-sha-256
";

/// `pg_ident.conf`: none.
pub(super) const PG_IDENT_CONF: &str = "# Written by the page server with the base backup.\n";
