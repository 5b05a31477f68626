//! Everything that two servers hold, row by row: catalogs, tables, TOAST, sequences of every database, and what PostgreSQL's dump makes of it.
//!
//! - Rows are read in the order of their places, with place, inserter and deleter: both servers are to have the same pages, not only the same rows.
//! - The only `pg_dump` at hand is that of 15, which refuses newer servers: 14 and 15 are dumped as well.

use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use postgres::{Client, SimpleQueryMessage};
use postgres_ffi::{Oid, PgVersion};

use crate::Postgres;
use crate::postgres_server::DATABASE_IS_VALID;
use crate::process::run;

/// Debian's programs: the only ones at hand, for servers of all versions.
pub const CLIENT_PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
/// The same plan everywhere: from the first block to the last.
const READ_IN_ORDER: &str = "SET search_path = ''; SET synchronize_seqscans = off; SET max_parallel_workers_per_gather = 0; SET lock_timeout = '1min'";
/// Whatever has rows of its own.
const RELATIONS: &str =
    "SELECT oid::regclass FROM pg_class WHERE relkind IN ('r', 'm', 't', 'S') AND relpersistence <> 't' ORDER BY oid";

/// What tells of a sequence, by database and relfilenode, whether its last record was replayed by both servers.
pub type IsReplayedByBoth<'a> = &'a dyn Fn(Oid, Oid) -> bool;

/// How much was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Databases.
    pub databases: u64,
    /// Relations with rows of their own.
    pub relations: u64,
    /// Rows.
    pub rows: u64,
    /// Sequences that one server has from a file and the other from the same record: see [`compare`].
    pub sequences_from_files: u64,
}

/// Databases that can be connected to.
pub fn databases(server: &Postgres) -> Result<Vec<String>> {
    let sql = format!("SELECT datname FROM pg_database WHERE datallowconn AND {DATABASE_IS_VALID} ORDER BY 1");
    column(&mut server.connect()?, &sql)
}

/// The first column of every row, as text.
pub fn column(session: &mut Client, sql: &str) -> Result<Vec<String>> {
    let messages = session.simple_query(sql).with_context(|| sql.to_owned())?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
        _ => None,
    });
    Ok(rows.collect())
}

/// Reads every row that `server` has.
pub fn read_all(server: &Postgres) -> Result<Amount> {
    let mut amount = Amount::default();
    for database in databases(server)? {
        let mut session = session(server, &database)?;
        amount.databases += 1;
        for relation in column(&mut session, RELATIONS)? {
            amount.relations += 1;
            amount.rows += Rows::read(&mut session, &relation)?.count;
        }
    }
    Ok(amount)
}

/// Reads every row of both. Errors: the first difference.
///
/// One may be: a record of a sequence runs ahead (PG: sequence.c, SEQ_LOG_VALS), and the file tells how much of that has not been given out yet. A base
/// backup that began behind the record has the file, recovery from an older one has the record. Then both are set to what the record says.
pub fn compare(ours: &Postgres, theirs: &Postgres, is_replayed_by_both: IsReplayedByBoth<'_>) -> Result<Amount> {
    let (our_databases, their_databases) = (databases(ours)?, databases(theirs)?);
    ensure!(our_databases == their_databases, "databases: {our_databases:?}, recovered: {their_databases:?}");
    let mut amount = Amount::default();
    for database in our_databases {
        let (mut ours, mut theirs) = (session(ours, &database)?, session(theirs, &database)?);
        let relations = column(&mut ours, RELATIONS)?;
        ensure!(relations == column(&mut theirs, RELATIONS)?, "relations of {database}");
        amount.databases += 1;
        for relation in relations {
            let (our_rows, their_rows) = (Rows::read(&mut ours, &relation)?, Rows::read(&mut theirs, &relation)?);
            if our_rows != their_rows
                && is_one_record(&mut ours, &mut theirs, &relation, is_replayed_by_both)
                    .with_context(|| relation.clone())?
            {
                amount.sequences_from_files += 1;
            } else if our_rows != their_rows {
                let difference = first_difference(&text(&mut ours, &relation)?, &text(&mut theirs, &relation)?);
                anyhow::bail!("{relation} of {database} differs from what was recovered: {difference}");
            }
            amount.relations += 1;
            amount.rows += our_rows.count;
        }
    }
    Ok(amount)
}

/// Whether the relation is a sequence that both have from one record, ours from its file, and no later record was replayed. Both are then the same.
fn is_one_record(
    ours: &mut Client,
    theirs: &mut Client,
    relation: &str,
    is_replayed_by_both: IsReplayedByBoth<'_>,
) -> Result<bool> {
    let literal = relation.replace('\'', "''");
    let sql = format!(
        "SELECT d.oid, c.relfilenode, s.seqincrement FROM pg_class c, pg_sequence s, pg_database d
         WHERE c.oid = '{literal}'::regclass AND s.seqrelid = c.oid AND d.datname = current_database()"
    );
    let Some(row) = ours.query_opt(&sql, &[])? else { return Ok(false) };
    let (database, relfilenode, increment): (Oid, Oid, i64) = (row.get(0), row.get(1), row.get(2));
    let state = |session: &mut Client| -> Result<(i64, i64, bool)> {
        let row = session.query_one(&format!("SELECT last_value, log_cnt, is_called FROM {relation}"), &[])?;
        Ok((row.get(0), row.get(1), row.get(2)))
    };
    let (last_value, log_count, is_called) = state(ours)?;
    let recorded = (last_value + log_count * increment, 0, is_called);
    if is_replayed_by_both(database, relfilenode) || state(theirs)? != recorded {
        return Ok(false);
    }
    for session in [ours, theirs] {
        session.batch_execute(&format!("SELECT setval('{literal}', {}, {is_called})", recorded.0))?;
    }
    Ok(true)
}

fn session(server: &Postgres, database: &str) -> Result<Client> {
    let mut session = server.connect_to(database)?;
    session.batch_execute(READ_IN_ORDER)?;
    Ok(session)
}

/// The rows of a relation in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rows {
    count: u64,
    hash: u64,
}

impl Rows {
    fn read(session: &mut Client, relation: &str) -> Result<Self> {
        let mut reader = copy_out(session, relation)?;
        let (mut hasher, mut count, mut piece) = (DefaultHasher::new(), 0, vec![0; 64 << 10]);
        loop {
            let length = reader.read(&mut piece).with_context(|| format!("read {relation}"))?;
            if length == 0 {
                return Ok(Rows { count, hash: hasher.finish() });
            }
            // Line breaks within values are escaped.
            count += piece[..length].iter().filter(|byte| **byte == b'\n').count() as u64;
            piece[..length].iter().for_each(|byte| hasher.write_u8(*byte));
        }
    }
}

fn copy_out<'a>(session: &'a mut Client, relation: &str) -> Result<postgres::CopyOutReader<'a>> {
    let sql = format!("COPY (SELECT r.ctid, r.xmin, r.xmax, r.* FROM {relation} r) TO STDOUT");
    session.copy_out(&sql).with_context(|| sql.clone())
}

fn text(session: &mut Client, relation: &str) -> Result<String> {
    let mut bytes = Vec::new();
    copy_out(session, relation)?.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The first line that only one has, or that differs.
fn first_difference(ours: &str, theirs: &str) -> String {
    let (mut our_lines, mut their_lines) = (ours.lines(), theirs.lines());
    loop {
        match (our_lines.next(), their_lines.next()) {
            (ours, theirs) if ours != theirs => return format!("clone: {ours:?}, recovered: {theirs:?}"),
            (None, _) => return "no line".to_owned(),
            _ => {}
        }
    }
}

/// Whether there is a `pg_dump` for servers of `version`.
pub fn can_be_dumped(version: PgVersion) -> bool {
    version <= PgVersion::V15
}

/// What `pg_dump` prints of every database, and `pg_dumpall` of what they share, without what differs between two servers by its nature.
pub fn dump(server: &Postgres) -> Result<String> {
    let mut text = dump_program(server, "pg_dumpall", &["--globals-only", "--no-sync"])?;
    for database in databases(server)? {
        text.push_str(&format!("-- database {database}\n"));
        text.push_str(&dump_program(server, "pg_dump", &["--no-sync", "--dbname", &database])?);
    }
    Ok(text.lines().filter(|line| !is_of_this_dump_alone(line)).map(|line| without_location(line) + "\n").collect())
}

fn dump_program(server: &Postgres, program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(Path::new(CLIENT_PROGRAMS).join(program));
    command.args(arguments);
    command.args(["--host", "127.0.0.1", "--username", "postgres", "--port", &server.port().to_string()]);
    run(&mut command)
}

/// A random word of each dump, against injected commands of psql. PG 15.14 and newer: pg_dump.c, "restrict".
fn is_of_this_dump_alone(line: &str) -> bool {
    line.starts_with("\\restrict ") || line.starts_with("\\unrestrict ")
}

/// Where a tablespace's files are is each server's own affair.
fn without_location(line: &str) -> String {
    match line.split_once(" LOCATION ") {
        Some((statement, _)) if statement.starts_with("CREATE TABLESPACE ") => statement.to_owned(),
        _ => line.to_owned(),
    }
}

/// Errors: the dumps of the two differ; where.
pub fn compare_dumps(ours: &Postgres, theirs: &Postgres) -> Result<()> {
    let (our_dump, their_dump) = (dump(ours)?, dump(theirs)?);
    ensure!(our_dump == their_dump, "the dumps differ: {}", first_difference(&our_dump, &their_dump));
    Ok(())
}
