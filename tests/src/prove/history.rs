//! Pages of the past: what the primary held at some LSN, kept by us, and what the page server says of that LSN much later.
//!
//! - **Moments**: the load is held, the insert position is the same before and after the pages were read. At that LSN the
//!   pages must agree like the files of a stopped server: `mask::compare_pages`, their own LSNs included.
//! - **Glimpses**: pages read while the load goes on. A page is what it is as of the LSN that it carries; what may change
//!   without a new LSN is what `wal_consistency_checking` masks: `mask::equal_after_masking`.
//! - Pages come from the primary's shared buffers (`pageinspect`), not through any code of ours. What may be there and nowhere else is in
//!   `unwritten`.
//! - A sample counts only once the primary has flushed WAL behind it: a crash may take back what was not flushed, and
//!   other records then get the same LSN.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use postgres::Client;
use postgres::error::SqlState;
use postgres_ffi::mask::{self, Equality, PageKind};
use postgres_ffi::page::{BLCKSZ, Page, ZERO_PAGE, page_lsn};
use postgres_ffi::{BlockNumber, ForkNumber, Lsn, RelTag};
use rand::Rng;
use rand::rngs::SmallRng;

use super::lost_bits::{self, Recovery};
use super::unwritten::is_taken_by_spgist;
use crate::PageServer;
use crate::workload::Target;

/// Relations looked at per moment and per glimpse.
const RELATIONS: i64 = 30;
/// Blocks of each main fork.
const BLOCKS: usize = 3;
/// Tries to find the primary quiet: its own workers (autovacuum, the snapshot log) write now and then.
const QUIET_TRIES: u32 = 200;

/// One page as the primary held it.
pub struct Sample {
    rel: RelTag,
    fork: ForkNumber,
    block_no: BlockNumber,
    request_lsn: Lsn,
    is_glimpse: bool,
    page: Box<Page>,
}

impl Sample {
    /// As of when it is.
    pub(crate) fn request_lsn(&self) -> Lsn {
        self.request_lsn
    }
}

/// A block that could be looked at.
struct Candidate {
    name: String,
    rel: RelTag,
    fork: ForkNumber,
    block_no: BlockNumber,
}

/// Holds the load and takes pages as of one LSN, which is returned with them.
pub fn take_moment(target: &Target, rng: &mut SmallRng) -> Result<(Lsn, Vec<Sample>)> {
    let _quiet = target.quiesce();
    let mut client = connect(target)?;
    for _ in 0..QUIET_TRIES {
        let candidates = match candidates(&mut client, rng, true) {
            Err(error) if is_lock_timeout(&error) => continue,
            candidates => candidates?,
        };
        let lsn = insert_lsn(&mut client)?;
        let pages = read_all(&mut client, &candidates)?;
        if insert_lsn(&mut client)? == lsn {
            flush(&mut client)?;
            let sample = |(candidate, page)| sample(candidate, page, lsn, false);
            return Ok((lsn, pages.into_iter().map(sample).collect()));
        }
    }
    bail!("the primary was not quiet in {QUIET_TRIES} tries");
}

/// Takes pages while the load goes on. `first_lsn`: nothing below can be asked for, and the primary is past it: a page that was not
/// changed since is the same there.
pub fn take_glimpse(target: &Target, first_lsn: Lsn, rng: &mut SmallRng) -> Result<Vec<Sample>> {
    let mut client = connect(target)?;
    let candidates = candidates(&mut client, rng, false)?;
    let pages = read_all(&mut client, &candidates)?;
    flush(&mut client)?;
    let with_lsn = pages.into_iter().filter_map(|(candidate, page)| {
        // No LSN: never logged. LSN 1: logged after it was written (GiST builds). Neither says as of when the page is.
        let lsn = page_lsn(&page).filter(|lsn| lsn.as_u64() > 1)?;
        Some(sample(candidate, page, lsn.max(first_lsn), true))
    });
    Ok(with_lsn.collect())
}

/// A session that waits for no table lock for long: one whose owner is held back by our quiet would never be released.
fn connect(target: &Target) -> Result<Client> {
    let mut client = target.connect("postgres")?;
    client.batch_execute("SET lock_timeout = '200ms'")?;
    Ok(client)
}

fn is_lock_timeout(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<postgres::Error>();
    error.is_some_and(|error| error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE))
}

fn sample(candidate: &Candidate, page: Box<Page>, request_lsn: Lsn, is_glimpse: bool) -> Sample {
    let Candidate { rel, fork, block_no, .. } = *candidate;
    Sample { rel, fork, block_no, request_lsn, is_glimpse, page }
}

/// Sequences and visibility maps in `quiet` alone. The value in a sequence's buffer runs behind the one that was logged ahead, which
/// `compare_pages` alone knows; bits of a visibility map are cleared without a new LSN.
fn candidates(client: &mut Client, rng: &mut SmallRng, quiet: bool) -> Result<Vec<Candidate>> {
    let kinds = if quiet { "'r', 'i', 't', 'm', 'S'" } else { "'r', 'i', 't', 'm'" };
    let sql = format!(
        "WITH chosen AS MATERIALIZED (
             SELECT c.* FROM pg_class c
              WHERE c.relkind IN ({kinds}) AND c.relpersistence = 'p' AND c.relfilenode IS NOT NULL
                AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.relation = c.oid AND l.mode = 'AccessExclusiveLock')
              ORDER BY (c.oid >= 16384) AND random() < 0.8 DESC, random() LIMIT {RELATIONS})
         SELECT c.oid::regclass::text, CASE WHEN c.reltablespace = 0 THEN d.dattablespace ELSE c.reltablespace END,
                CASE WHEN c.relisshared THEN 0::oid ELSE d.oid END, pg_relation_filenode(c.oid),
                pg_relation_size(c.oid, 'main') / 8192, pg_relation_size(c.oid, 'vm') / 8192
           FROM chosen c, pg_database d WHERE d.datname = current_database()"
    );
    let mut candidates = Vec::new();
    for row in client.query(&sql, &[]).context("choose relations")? {
        let (Some(name), Some(rel_number)) = (row.get::<_, Option<String>>(0), row.get::<_, Option<u32>>(3)) else {
            continue; // Dropped meanwhile.
        };
        let rel = RelTag { spc_oid: row.get(1), db_oid: row.get(2), rel_number };
        let (main_blocks, vm_blocks): (Option<i64>, Option<i64>) = (row.get(4), row.get(5));
        for _ in 0..BLOCKS {
            let block_no = random_block(rng, main_blocks.unwrap_or(0))?;
            candidates.extend(block_no.map(|block_no| Candidate {
                name: name.clone(),
                rel,
                fork: ForkNumber::Main,
                block_no,
            }));
        }
        let block_no = random_block(rng, vm_blocks.filter(|_| quiet).unwrap_or(0))?;
        candidates.extend(block_no.map(|block_no| Candidate {
            name: name.clone(),
            rel,
            fork: ForkNumber::Vm,
            block_no,
        }));
    }
    Ok(candidates)
}

fn random_block(rng: &mut SmallRng, count: i64) -> Result<Option<BlockNumber>> {
    Ok(if count > 0 { Some(rng.random_range(0..count).try_into()?) } else { None })
}

/// The candidates that are still there, with their pages.
fn read_all<'a>(client: &mut Client, candidates: &'a [Candidate]) -> Result<Vec<(&'a Candidate, Box<Page>)>> {
    let mut pages = Vec::new();
    for candidate in candidates {
        let arguments: [&(dyn postgres::types::ToSql + Sync); 3] =
            [&candidate.name, &candidate.fork.name(), &i64::from(candidate.block_no)];
        let sql = "SELECT get_raw_page($1, $2, $3), pg_relation_filenode(to_regclass($1))";
        let row = match client.query_one(sql, &arguments) {
            // Dropped, truncated or locked meanwhile: the server answers, and the session goes on.
            Err(error) if error.as_db_error().is_some() && !client.is_closed() => continue,
            row => row?,
        };
        // New files since it was chosen: the page is of another relation file.
        if row.get::<_, Option<u32>>(1) == Some(candidate.rel.rel_number) {
            pages.push((candidate, to_page(row.get(0))?));
        }
    }
    Ok(pages)
}

fn to_page(bytes: Vec<u8>) -> Result<Box<Page>> {
    let page: Result<Box<Page>, _> = bytes.into_boxed_slice().try_into();
    page.map_err(|bytes| anyhow::anyhow!("a page has {BLCKSZ} bytes, not {}", bytes.len()))
}

fn insert_lsn(client: &mut Client) -> Result<Lsn> {
    Ok(crate::query_text(client, "SELECT pg_current_wal_insert_lsn()")?.parse()?)
}

/// A commit that waits until WAL up to itself is flushed here; for no standby, which may be down.
fn flush(client: &mut Client) -> Result<()> {
    client.batch_execute("SET synchronous_commit = local; SELECT pg_logical_emit_message(true, 'harness', 'flush')")?;
    Ok(())
}

/// The page that the page server has for `sample`; zeroes for one that it does not have: the primary may have taken more room than it
/// said in WAL, but nothing is there.
fn ask(session: &mut Client, timeline: &str, sample: &Sample) -> Result<Box<Page>> {
    let Sample { rel, fork, block_no, request_lsn, .. } = sample;
    let command = format!("PAGE GET {timeline} '{rel}/{fork}/{block_no}' AT '{request_lsn}'");
    match page_of(session, &command) {
        // Null: behind the end.
        Ok(page) => Ok(page.unwrap_or_else(|| Box::new(ZERO_PAGE))),
        Err(error) => match error.downcast_ref::<postgres::Error>() {
            // Not even the fork is there: the same.
            Some(refused) if refused.code() == Some(&SqlState::UNDEFINED_OBJECT) => Ok(Box::new(ZERO_PAGE)),
            _ => Err(error),
        },
    }
}

/// The page that a `PAGE GET` gives, if it gives one.
pub(super) fn page_of(session: &mut Client, command: &str) -> Result<Option<Box<Page>>> {
    for message in session.simple_query(command).with_context(|| command.to_owned())? {
        if let postgres::SimpleQueryMessage::Row(row) = message {
            let Some(text) = row.try_get("page")? else { return Ok(None) };
            return to_page(decode_hex(text.strip_prefix("\\x").context("not a bytea")?)?).map(Some);
        }
    }
    bail!("no answer to {command}")
}

fn decode_hex(hex: &str) -> Result<Vec<u8>> {
    ensure!(hex.is_ascii() && hex.len().is_multiple_of(2), "not hexadecimal");
    (0..hex.len() / 2).map(|index| Ok(u8::from_str_radix(&hex[2 * index..2 * index + 2], 16)?)).collect()
}

/// In what the page server's page differs from the sample, if it does.
fn difference(sample: &Sample, ours: &Page) -> Option<String> {
    let Sample { fork, block_no, page, .. } = sample;
    let found = mask::compare_pages(ours, page, *fork, *block_no);
    let wrong = if sample.is_glimpse {
        // The cache in the meta page of SP-GiST is written without WAL; only `compare_pages` masks it.
        let kind = if found.kind == PageKind::New { mask::classify(ours, *fork, *block_no) } else { found.kind };
        let masked = mask::equal_after_masking(ours, page, kind, *block_no);
        [masked, found.equality].iter().all(|equality| matches!(equality, Equality::Different { .. }))
    } else {
        found.is_mismatch() && !is_taken_by_spgist(ours, page, *fork, *block_no)
    };
    wrong.then(|| {
        let taken = if sample.is_glimpse { "under load" } else { "in a quiet moment" };
        let Sample { rel, request_lsn, .. } = sample;
        format!("{rel} {fork} block {block_no} as of {request_lsn}, taken {taken}: {found:?}")
    })
}

/// [`difference`], unless the primary has lost visibility bits in one of its `recoveries`.
fn unexplained_difference(
    session: &mut Client,
    timeline: &str,
    sample: &Sample,
    ours: &Page,
    recoveries: &[Recovery],
) -> Result<Option<String>> {
    let Some(difference) = difference(sample, ours) else { return Ok(None) };
    let Sample { rel, fork, block_no, request_lsn, page, .. } = sample;
    let address = format!("{rel}/{fork}/{block_no}");
    let is_explained = *fork == ForkNumber::Vm
        && lost_bits::explains(session, timeline, &address, (ours, page), *request_lsn, recoveries)?;
    Ok((!is_explained).then_some(difference))
}

/// One sample asked for now. `Ok(None)`: not to be had (the server is down, or has not got that far).
pub fn check_one(
    session: &mut Option<Client>,
    server: &str,
    timeline: &str,
    sample: &Sample,
    recoveries: &[Recovery],
) -> Result<Option<()>> {
    if session.is_none() {
        let mut config: postgres::Config = server.parse()?;
        config.connect_timeout(std::time::Duration::from_secs(2));
        *session = config.connect(postgres::NoTls).ok();
    }
    let Some(client) = session.as_mut() else { return Ok(None) };
    let checked = ask(client, timeline, sample)
        .and_then(|page| unexplained_difference(client, timeline, sample, &page, recoveries));
    match checked {
        Ok(None) => Ok(Some(())),
        Ok(Some(difference)) => bail!("wrong page: {difference}"),
        Err(error) => {
            *session = None;
            match error.downcast_ref::<postgres::Error>() {
                // XX: a fault or corruption. Everything else says "not now".
                Some(error) if error.code().is_some_and(|code| code.code().starts_with("XX")) => bail!("{error:?}"),
                Some(_) => Ok(None),
                None => Err(error),
            }
        }
    }
}

/// Asks for every sample; an error that lists the first wrong pages if there are any.
pub fn check_all(server: &PageServer, timeline: &str, samples: &[Arc<Sample>], recoveries: &[Recovery]) -> Result<()> {
    let mut session = server.connect()?;
    let mut differences = Vec::new();
    for sample in samples {
        let ours = ask(&mut session, timeline, sample)?;
        differences.extend(unexplained_difference(&mut session, timeline, sample, &ours, recoveries)?);
    }
    let shown = differences.iter().take(20).map(String::as_str).collect::<Vec<_>>().join("\n");
    ensure!(differences.is_empty(), "{} wrong pages of the past, of {}:\n{shown}", differences.len(), samples.len());
    Ok(())
}
