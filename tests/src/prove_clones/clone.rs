//! One clone: a stock server on a base backup as of an LSN, and all that must be true of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use pageserver::client::{Client, ClientConfig};
use pageserver::page_service::basebackup::BackupBegin;
use postgres_ffi::page::{BLCKSZ, Page, compute_checksum, page_is_new, stored_checksum};
use postgres_ffi::{Lsn, PgVersion, TransactionId};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::contents::{self, CLIENT_PROGRAMS, IsReplayedByBoth, column};
use super::markers::{self, Markers};
use super::primary::OTHER_DATABASE;
use super::wal_history::WalHistory;
use crate::process::run;
use crate::workload::tpcb;
use crate::{PageServer, Postgres, Stop, TestDir, backup_server};

/// Transactions around the LSN whose fate is asked for.
const FATES: usize = 400;
/// Blocks in a file of a relation. PG: pg_config.h, RELSEG_SIZE.
const BLOCKS_PER_FILE: u32 = 131_072;
/// Lines of the log that speak of the test itself: its questions while the server starts, its sessions that have not quite ended when it is stopped.
const OF_THE_TEST: [&str; 3] = [
    "FATAL:  the database system is starting up",
    "FATAL:  the database system is not yet accepting connections",
    "FATAL:  terminating connection due to administrator command",
];

/// Prepared transactions, all of each.
const PREPARED: &str =
    "SELECT concat_ws(' ', transaction, gid, prepared, owner, database) FROM pg_prepared_xacts ORDER BY 1";
/// When the transactions that wrote the last rows committed.
const COMMIT_TIMES: &str =
    "SELECT concat_ws(' ', xmin, pg_xact_commit_timestamp(xmin)) FROM markers ORDER BY n DESC LIMIT 200";

/// What is known of every LSN.
pub struct Known<'a> {
    /// From the WAL.
    pub history: &'a WalHistory,
    /// From the writers.
    pub markers: &'a [Markers],
    /// Branches of the bank.
    pub scale: i32,
}

/// A running clone.
pub struct Cloned {
    /// The server.
    pub server: Postgres,
    /// The LSN that the page server took.
    pub branch_lsn: Lsn,
}

impl Cloned {
    /// From a base backup of `timeline` as of `request_lsn`, its last record without; started.
    pub fn start(
        page_server: &PageServer,
        timeline: &str,
        request_lsn: Option<Lsn>,
        version: PgVersion,
        dir: &TestDir,
    ) -> Result<Self> {
        let mut client = Client::connect(&ClientConfig::new(format!("127.0.0.1:{}", page_server.port())))?;
        let lsn = request_lsn.map(|lsn| format!(" '{lsn}'")).unwrap_or_default();
        let archive = client.copy_out(&format!("BASEBACKUP {timeline}{lsn}"))?;
        let begin: Option<BackupBegin> = archive.notices().iter().find_map(|notice| notice.parse().ok());
        let branch_lsn = begin.context("the backup does not say what it is of")?.branch_lsn;
        let mut server = backup_server::unpacked(dir, version, archive)?;
        server.set("autovacuum", "off")?; // What is compared is to stay as it is.
        server.start()?;
        let cloned = Cloned { server, branch_lsn };
        cloned.check_log()?;
        ensure!(cloned.server.log()?.contains("redo is not required"), "it replayed something");
        Ok(cloned)
    }

    /// Nothing in its log says that something is wrong.
    pub fn check_log(&self) -> Result<()> {
        let is_alarming =
            |line: &&str| ["WARNING:", "ERROR:", "FATAL:", "PANIC:"].iter().any(|level| line.contains(level));
        let is_ours = |line: &&str| OF_THE_TEST.iter().any(|text| line.contains(text));
        let log = self.server.log()?;
        let lines: Vec<&str> = log.lines().filter(is_alarming).filter(|line| !is_ours(line)).collect();
        ensure!(lines.is_empty(), "in its log: {lines:#?}");
        Ok(())
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let log = self.server.log().unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Every marker that was committed at or before the LSN is there, and no other. How many.
    pub fn check_markers(&self, known: &Known<'_>) -> Result<usize> {
        let mut count = 0;
        for markers in known.markers {
            let expected = markers.expected_at(known.history, self.branch_lsn)?;
            let rows = self.server.connect_to(markers.database)?.query("SELECT n FROM markers", &[])?;
            let found: BTreeSet<i32> = rows.iter().map(|row| row.get(0)).collect();
            ensure!(found.len() == rows.len(), "markers in {} are there twice", markers.database);
            let missing: Vec<_> = expected.difference(&found).collect();
            let early: Vec<_> = found.difference(&expected).collect();
            ensure!(
                missing.is_empty() && early.is_empty(),
                "markers in {}: missing {missing:?}, not committed yet {early:?}",
                markers.database
            );
            count += found.len();
        }
        Ok(count)
    }

    /// What the server knows of transactions that ended shortly before and after the LSN, subtransactions too. How many it knows.
    pub fn check_fates(&self, known: &Known<'_>) -> Result<usize> {
        let prepared = known.history.prepared_at(self.branch_lsn);
        let mut nearest: Vec<_> = known.history.ended().collect();
        nearest.sort_by_key(|(xid, end)| (end.lsn.as_u64().abs_diff(self.branch_lsn.as_u64()), *xid));
        nearest.truncate(FATES);
        let xids: Vec<i64> = nearest.iter().map(|(xid, _)| i64::from(*xid)).collect();
        // Of a transaction of the future it says that, with an error.
        let rows = self.server.connect()?.query(
            "SELECT xid, pg_xact_status(xid::text::xid8) FROM unnest($1::bigint[]) xid
             WHERE xid < pg_snapshot_xmax(pg_current_snapshot())::text::bigint",
            &[&xids],
        )?;
        for row in &rows {
            let (xid, found): (i64, &str) = (row.get(0), row.get(1));
            let xid = xid as TransactionId;
            let end = known.history.end(xid).context("asked for above")?;
            // Of a prepared transaction's subtransactions the server says so, too; the WAL's list has the top ones.
            let is_right = match found {
                "committed" => end.committed && end.lsn <= self.branch_lsn,
                "aborted" => !end.committed || self.branch_lsn < end.lsn,
                "in progress" => self.branch_lsn < end.lsn && !prepared.is_empty(),
                _ => false,
            };
            ensure!(is_right, "transaction {xid} is {found}, and in the WAL it ended so: {end:?}");
            ensure!((found == "in progress") || !prepared.contains(&xid), "prepared transaction {xid} is {found}");
        }
        Ok(rows.len())
    }

    /// The checks can fail: taken for a clone of an LSN with one marker less or one more, this one has a marker too many or lacks one.
    pub fn check_that_checks_fail(&mut self, known: &Known<'_>) -> Result<()> {
        let branch_lsn = self.branch_lsn;
        let (last, next) = markers::neighbours(known.markers, known.history, branch_lsn);
        let earlier = last.map(|last_lsn| Lsn::new(last_lsn.as_u64() - 8));
        for other_lsn in earlier.into_iter().chain(next) {
            self.branch_lsn = other_lsn;
            // Of the transaction of the next marker the server may know nothing at all.
            let fails =
                self.check_markers(known).is_err() && (Some(other_lsn) == next || self.check_fates(known).is_err());
            self.branch_lsn = branch_lsn;
            ensure!(fails, "a clone of {branch_lsn} passes for one of {other_lsn}");
        }
        Ok(())
    }

    /// The prepared transactions are those of the WAL. How many.
    pub fn check_prepared(&self, known: &Known<'_>) -> Result<usize> {
        let found: BTreeSet<TransactionId> =
            column(&mut self.server.connect()?, "SELECT transaction FROM pg_prepared_xacts")?
                .iter()
                .map(|xid| Ok(xid.parse()?))
                .collect::<Result<_>>()?;
        let expected = known.history.prepared_at(self.branch_lsn);
        ensure!(found == expected, "prepared transactions: {found:?}, in the WAL: {expected:?}");
        Ok(found.len())
    }

    /// Commits one prepared transaction, chosen by the LSN, and rolls the others back: the same everywhere.
    pub fn end_prepared(&self) -> Result<()> {
        end_prepared(&self.server, self.branch_lsn)
    }

    /// Prepared transactions, commit times, rows and dump are those of `recovered`, a server of PostgreSQL's own recovery. In words.
    pub fn compare(&self, recovered: &Postgres, is_replayed_by_both: IsReplayedByBoth<'_>) -> Result<String> {
        // Which transaction was the last to commit (pg_last_committed_xact) is known to who replayed it alone, and to nobody after a restart.
        for sql in [PREPARED, COMMIT_TIMES] {
            let (ours, theirs) = (column(&mut self.server.connect()?, sql)?, column(&mut recovered.connect()?, sql)?);
            ensure!(ours == theirs, "{sql}: {ours:?}, recovered: {theirs:?}");
        }
        // Nobody can read what a prepared transaction holds locked.
        end_prepared(&self.server, self.branch_lsn)?;
        end_prepared(recovered, self.branch_lsn)?;
        let amount = contents::compare(&self.server, recovered, is_replayed_by_both)?;
        let dumped = contents::can_be_dumped(self.server.version());
        if dumped {
            contents::compare_dumps(&self.server, recovered)?;
        }
        let contents::Amount { databases, relations, rows, sequences_from_files } = amount;
        let dumps = if dumped { ", dumps" } else { "" };
        let sequences = match sequences_from_files {
            0 => String::new(),
            count => format!(", {count} sequences from files"),
        };
        Ok(format!("; as recovered: {databases} databases, {relations} relations, {rows} rows{sequences}{dumps}"))
    }

    /// TPC-B: whatever was given to branches was given to tellers and accounts, and is in the history.
    pub fn check_bank(&self) -> Result<()> {
        let sums = self.server.query_text(
            "SELECT concat_ws(' ', (SELECT coalesce(sum(delta), 0) FROM pgbench_history), (SELECT sum(abalance) FROM pgbench_accounts),
               (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches))",
        )?;
        let distinct: BTreeSet<&str> = sums.split(' ').collect();
        ensure!(distinct.len() == 1, "the bank's sums differ: {sums}");
        Ok(())
    }

    /// Unlogged tables and sequences of every database are empty. How many.
    pub fn check_unlogged(&self) -> Result<usize> {
        let mut count = 0;
        for database in contents::databases(&self.server)? {
            let mut session = self.server.connect_to(&database)?;
            let sql = "SELECT oid::regclass FROM pg_class WHERE relpersistence = 'u' AND relkind IN ('r', 'm', 't')";
            for relation in column(&mut session, sql)? {
                let rows = column(&mut session, &format!("SELECT count(*) FROM {relation}"))?;
                ensure!(rows == ["0"], "{relation} of {database} is unlogged and has {rows:?} rows");
                count += 1;
            }
        }
        ensure!(count > 0, "no unlogged table");
        Ok(count)
    }

    /// PostgreSQL's own check of every table and B-tree.
    pub fn check_relations(&self, options: &[&str]) -> Result<()> {
        let mut command = Command::new(Path::new(CLIENT_PROGRAMS).join("pg_amcheck"));
        command.args(["--heapallindexed", "--install-missing"]).args(options);
        command.args(["--host", "127.0.0.1", "--username", "postgres", "--port", &self.server.port().to_string()]);
        let said = run(&mut command)?;
        ensure!(said.is_empty(), "pg_amcheck says: {said}");
        Ok(())
    }

    /// Every row can be read, and the dump runs.
    pub fn check_dump(&self) -> Result<()> {
        if contents::can_be_dumped(self.server.version()) {
            contents::dump(&self.server)?;
        } else {
            contents::read_all(&self.server)?;
        }
        Ok(())
    }

    /// Everything can be written to: tables of each kind, tablespaces, sequences, databases; indexes can be made, rows frozen.
    pub fn check_writable(&self, known: &Known<'_>) -> Result<()> {
        let mut session = self.server.connect()?;
        session.batch_execute(
            "INSERT INTO unlogged SELECT n, md5(n::text) FROM generate_series(1, 500) n;
             INSERT INTO many_rows SELECT n, md5(n::text) FROM generate_series(1, 3000) n;
             INSERT INTO far_away SELECT n, md5(n::text) FROM generate_series(1, 1000) n;
             INSERT INTO markers SELECT -n, 'clone' FROM generate_series(1, 1000) n;
             UPDATE markers SET filler = 'written' WHERE n % 7 = 0;
             DELETE FROM far_away WHERE n % 5 = 0;
             SELECT nextval('numbers');
             CREATE TABLE made_outside (n int PRIMARY KEY USING INDEX TABLESPACE outside) TABLESPACE outside;
             INSERT INTO made_outside SELECT generate_series(1, 1000);
             CREATE INDEX ON markers (filler);
             CREATE INDEX ON pgbench_accounts (bid, abalance)",
        )?;
        session
            .batch_execute("CREATE TABLE made_in_empty TABLESPACE empty AS SELECT generate_series(1, 100) n")
            .context("write into a tablespace in which nothing was")?;
        let written = column(&mut session, "SELECT count(*) FROM unlogged WHERE n BETWEEN 1 AND 500")?;
        ensure!(written == ["500"], "rows of an unlogged table: {written:?}");
        let mut rng = SmallRng::seed_from_u64(self.branch_lsn.as_u64());
        for _ in 0..20 {
            tpcb::transaction(&mut session, &mut rng, known.scale)?;
        }
        session.batch_execute(&format!("CREATE DATABASE made_here TEMPLATE {OTHER_DATABASE}"))?;
        for database in contents::databases(&self.server)? {
            let vacuum = self.server.connect_to(&database)?.batch_execute("VACUUM (FREEZE)");
            vacuum.with_context(|| format!("freeze {database}"))?;
        }
        self.check_bank()
    }

    /// A crash: what was committed is there, and unlogged tables are empty once more.
    pub fn check_crash(&mut self) -> Result<()> {
        self.server.execute("INSERT INTO markers VALUES (-5000, 'before the crash')")?;
        let count = "SELECT count(*) FROM markers";
        let before = self.server.query_text(count)?;
        self.server.kill()?;
        self.server.start()?;
        ensure!(self.server.query_text(count)? == before, "markers after a crash: {before} before");
        ensure!(self.server.query_text("SELECT count(*) FROM unlogged")? == "0", "an unlogged table outlived a crash");
        self.check_bank()
    }

    /// Stops it and looks at the checksum of every page on disk. How many pages.
    pub fn check_checksums(&mut self) -> Result<u64> {
        self.server.stop(Stop::Fast)?;
        let mut pages = 0;
        for directory in ["base", "global", "pg_tblspc"] {
            pages += count_right_checksums(&self.server.data_dir().join(directory))?;
        }
        if self.server.version() == PgVersion::V15 {
            // The only one at hand: it refuses the directories of other versions.
            let mut command = Command::new(Path::new(CLIENT_PROGRAMS).join("pg_checksums"));
            let said = run(command.arg("--check").arg("-D").arg(self.server.data_dir()))?;
            ensure!(said.contains("Bad checksums:  0"), "{said}");
        }
        Ok(pages)
    }
}

fn end_prepared(server: &Postgres, branch_lsn: Lsn) -> Result<()> {
    let rows = server.connect()?.query("SELECT gid, database::text FROM pg_prepared_xacts ORDER BY gid", &[])?;
    for (index, row) in rows.iter().enumerate() {
        let (gid, database): (String, String) = (row.get(0), row.get(1));
        let is_chosen = index as u64 == branch_lsn.as_u64() / 8 % rows.len() as u64;
        let end = if is_chosen { "COMMIT PREPARED" } else { "ROLLBACK PREPARED" };
        let ended = server.connect_to(&database)?.batch_execute(&format!("{end} '{gid}'"));
        ended.with_context(|| format!("{end} '{gid}' in {database}"))?;
    }
    Ok(())
}

/// Pages of all relations below `dir`. Errors: a wrong checksum.
fn count_right_checksums(dir: &Path) -> Result<u64> {
    let mut count = 0;
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            count += count_right_checksums(&path)?;
        } else if let Some(file_no) = path.file_name().and_then(|name| relation_file_no(name.to_str()?)) {
            count += count_right_pages(&path, file_no * BLOCKS_PER_FILE)?;
        }
    }
    Ok(count)
}

/// Which part of a fork a file is: `16384_fsm.2` is the third. `None`: no file of a relation.
fn relation_file_no(name: &str) -> Option<u32> {
    let (fork, number) = name.split_once('.').unwrap_or((name, "0"));
    let (relation, suffix) = fork.split_once('_').unwrap_or((fork, "main"));
    let is_relation = relation.parse::<u32>().is_ok() && ["main", "fsm", "vm", "init"].contains(&suffix);
    if is_relation { number.parse().ok() } else { None }
}

fn count_right_pages(path: &Path, first_block_no: u32) -> Result<u64> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let (pages, rest) = bytes.as_chunks::<BLCKSZ>();
    ensure!(rest.is_empty(), "{} has half a page", path.display());
    for (block_no, page) in (first_block_no..).zip(pages) {
        let page: &Page = page;
        let is_right = page_is_new(page) || stored_checksum(page) == compute_checksum(page, block_no);
        ensure!(is_right, "wrong checksum: {}, block {block_no}", path.display());
    }
    Ok(pages.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_relations_are_told_by_their_names() {
        for (name, file_no) in [("16384", Some(0)), ("16384.2", Some(2)), ("16384_fsm.1", Some(1)), ("1_init", Some(0))]
        {
            assert_eq!(relation_file_no(name), file_no, "{name}");
        }
        for name in ["PG_VERSION", "pg_filenode.map", "t3_16384", "16384_x", "16384.x"] {
            assert_eq!(relation_file_no(name), None, "{name}");
        }
    }
}
