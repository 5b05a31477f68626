//! Servers of each version from backups at three moments of one history.

use anyhow::{Result, ensure};
use postgres_ffi::{Lsn, PgVersion};
use tests::{Postgres, backup_server};

use super::clone::{self, check_first_start};
use super::primary::{self, Followed, backup};

/// What was committed by when.
struct Moments {
    /// The LSN of the first commit.
    after_first: Lsn,
    /// In the middle of a transaction whose rows are there already; the prepared one is prepared.
    in_transaction: Lsn,
    /// All of it.
    last: Lsn,
}

fn insert_mark(server: &Postgres, mark: &str) -> Result<Lsn> {
    server.execute(&format!("INSERT INTO marks VALUES ('{mark}', '')"))?;
    Ok(server.query_text("SELECT pg_current_wal_flush_lsn()")?.parse()?)
}

fn make_history(followed: &Followed) -> Result<Moments> {
    let primary = &followed.primary;
    primary::transactions(primary, 200, 1)?;
    let after_first = insert_mark(primary, "first")?;
    primary.execute("BEGIN; INSERT INTO marks VALUES ('prepared', ''); PREPARE TRANSACTION 'prepared'")?;
    let mut open = primary.connect()?;
    open.batch_execute(
        "BEGIN; INSERT INTO marks SELECT 'open', n FROM generate_series(1, 2000) n; CREATE TABLE open ()",
    )?;
    let in_transaction = insert_mark(primary, "second")?;
    open.batch_execute("COMMIT")?;
    primary::transactions(primary, 200, 2)?;
    primary.execute("COMMIT PREPARED 'prepared'; ")?;
    primary.execute("CREATE UNLOGGED TABLE unlogged_later AS SELECT 1 n")?;
    insert_mark(primary, "third")?;
    Ok(Moments { after_first, in_transaction, last: followed.catch_up()? })
}

fn count(server: &Postgres, mark: &str) -> Result<i64> {
    Ok(server.connect()?.query_one("SELECT count(*) FROM marks WHERE mark = $1", &[&mark])?.get(0))
}

fn check_marks(server: &Postgres, expect: &[(&str, i64)]) -> Result<()> {
    for (mark, expect) in expect {
        let count = count(server, mark)?;
        ensure!(count == *expect, "{count} rows with `{mark}`");
    }
    Ok(())
}

/// Start, rows, prepared transaction, writes, tools, crash.
fn check_backup(
    followed: &Followed,
    request_lsn: Option<Lsn>,
    options: &[&str],
    expect: &[(&str, i64)],
    is_prepared: bool,
) -> Result<()> {
    let version = followed.primary.version();
    let mut server = backup_server::unpacked(&followed.dir, version, backup(followed, request_lsn, options)?)?;
    server.start()?;
    check_first_start(&server)?;
    check_marks(&server, expect)?;
    let prepared = server.query_text("SELECT count(*) FROM pg_prepared_xacts")?;
    ensure!(prepared == if is_prepared { "1" } else { "0" }, "{prepared} prepared transactions");
    if is_prepared {
        server.execute("COMMIT PREPARED 'prepared'")?;
        check_marks(&server, &[("prepared", 1)])?;
    }
    clone::check_timeline(&server)?;
    clone::check_unlogged(&server)?;
    ensure!(server.query_text("SELECT remote_lsn FROM pg_replication_origin_status")? == "0/ABCD");
    ensure!(
        server.query_text("SHOW max_connections")? == "60" && server.query_text("SHOW track_commit_timestamp")? == "on"
    );
    let stamped = "SELECT count(*) FROM marks WHERE mark = 'first' AND pg_xact_commit_timestamp(xmin) IS NOT NULL";
    ensure!(server.query_text(stamped)? == "1", "the last transactions have no commit timestamp");
    clone::check_relations(&server)?;
    clone::check_writable(&server)?;
    clone::check_crash(&mut server)?;
    clone::check_relations(&server)?;
    clone::check_checksums(&mut server)?;
    clone::check_start_log(&server)
}

fn check_version(version: PgVersion) -> Result<()> {
    let followed = Followed::start("basebackup", version, "")?;
    let moments = make_history(&followed)?;
    let all = [("first", 1), ("open", 2000), ("second", 1), ("prepared", 1), ("third", 1), ("subtransaction", 100)];
    check_backup(&followed, None, &[], &all, false)?;
    let middle = [("first", 1), ("open", 0), ("second", 1), ("prepared", 0), ("third", 0), ("subtransaction", 100)];
    check_backup(&followed, Some(moments.in_transaction), &[], &middle, true)?;
    let early = [("first", 1), ("open", 0), ("second", 0), ("prepared", 0), ("third", 0), ("subtransaction", 100)];
    check_backup(&followed, Some(moments.after_first), &[], &early, false)?;
    ensure!(moments.in_transaction < moments.last);
    Ok(())
}

#[test]
fn servers_start_from_backups_at_any_moment() {
    for version in tests::versions() {
        check_version(version).unwrap_or_else(|error| panic!("{version}: {error:?}"));
    }
}
