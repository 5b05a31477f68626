//! Goal: an import of a running primary brings every file that makes up the cluster, each page of it, or nothing at all.
//! Method: real servers under load, tablespaces among it; the server's own directory is the list of what must be there.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use keyenc::{Key, Kind, Object, TimelineNo};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pageserver::import::ImportError;
use pageserver::import::base_backup::{ImportProgress, import_primary};
use pageserver::import::layout::{FileKind, RELSEG_BLOCKS, classify};
use pageserver::replication::{ConnInfo, Connection, Mode};
use pageserver::store::{Gathered, Store, StoreConfig, TimelineStore};
use postgres_ffi::rel::DEFAULTTABLESPACE_OID;
use postgres_ffi::{BLCKSZ, ForkNumber, Lsn, PgVersion, RelTag, SlruKind};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tests::workload::tpcb;
use tests::{CutProxy, Postgres, TestDir};

const TIMELINE: TimelineNo = TimelineNo(1);

fn open_store(dir: &TestDir, name: &str) -> Result<Arc<TimelineStore>> {
    Ok(Store::open(&dir.path().join(name), &StoreConfig::default())?.timeline(TIMELINE)?)
}

/// A server with everything that a cluster can consist of.
fn start_server(version: PgVersion, dir: &TestDir) -> Result<Postgres> {
    let mut builder = Postgres::builder(version).checksums(true);
    if version >= PgVersion::V15 {
        builder = builder.setting("allow_in_place_tablespaces", "on");
    }
    let server = builder.start(dir)?;
    tpcb::init(&mut server.connect()?, 1)?;
    server.execute("CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 1000) n")?;
    server.execute("CREATE TEMP TABLE temporary AS SELECT 1")?;
    server.execute("CREATE TABLE dropped AS SELECT generate_series(1, 1000) n; DROP TABLE dropped")?;
    server.connect()?.batch_execute("CREATE DATABASE another")?;
    if version >= PgVersion::V15 {
        server.connect()?.batch_execute("CREATE TABLESPACE elsewhere LOCATION ''")?;
        server.execute("CREATE TABLE far_away TABLESPACE elsewhere AS SELECT generate_series(1, 5000) n")?;
    }
    server.execute("BEGIN; INSERT INTO pgbench_history (tid) VALUES (1); PREPARE TRANSACTION 'prepared'")?;
    server
        .execute("SELECT pg_replication_origin_create('origin'), pg_replication_origin_advance('origin', '0/ABCD')")?;
    server.execute("CHECKPOINT")?;
    Ok(server)
}

/// Relation segments and other kept files of a data directory: blocks by relation and fork, the rest by name.
#[derive(Debug, Default)]
struct Files {
    relations: BTreeMap<(RelTag, ForkNumber), u32>,
    slrus: BTreeMap<(SlruKind, u32), u32>,
    others: Vec<Object>,
}

fn list(data_dir: &Path, version: PgVersion, prefix: &str, files: &mut Files) -> Result<()> {
    for entry in fs::read_dir(data_dir.join(prefix))? {
        let entry = entry?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        // A table may be dropped meanwhile.
        let Ok(metadata) = fs::metadata(entry.path()) else { continue };
        if metadata.is_dir() {
            list(data_dir, version, &format!("{path}/"), files)?;
            continue;
        }
        let blocks = u32::try_from(metadata.len() / BLCKSZ as u64)?;
        match classify(&path, version) {
            FileKind::Relation { rel, fork, segment_no } => {
                let size = files.relations.entry((rel, fork)).or_default();
                *size = (*size).max(if blocks == 0 { 0 } else { segment_no * RELSEG_BLOCKS + blocks });
            }
            FileKind::Slru { kind, segment_no } => drop(files.slrus.insert((kind, segment_no), blocks)),
            FileKind::RelationMap { spc_oid, db_oid } => files.others.push(Object::RelationMap { spc_oid, db_oid }),
            FileKind::Database { spc_oid, db_oid } => files.others.push(Object::Database { spc_oid, db_oid }),
            FileKind::ControlFile => files.others.extend([Object::ControlFile, Object::Checkpoint]),
            FileKind::TwoPhase { xid } => files.others.push(Object::TwoPhase { xid }),
            FileKind::ReplicationOrigins | FileKind::Unreleased { .. } | FileKind::NotKept => {}
        }
    }
    Ok(())
}

fn newest(store: &TimelineStore, object: Object, lsn: Lsn) -> Result<Option<bytes::Bytes>> {
    let mut found = Gathered::default();
    store.gather(&Key::from(object), lsn, &mut found)?;
    Ok(found.versions.into_iter().next().filter(|(_, kind, _)| *kind == Kind::Image).map(|(_, _, value)| value))
}

fn number(value: &[u8]) -> Result<u32> {
    Ok(u32::from_be_bytes(value.try_into()?))
}

/// Every file that was there before and is there still has come, with every page of what it then had.
fn check_files(store: &TimelineStore, lsn: Lsn, before: &Files, after: &Files) -> Result<()> {
    let mut checked = 0;
    for ((rel, fork), size_before) in &before.relations {
        let unlogged = before.relations.contains_key(&(*rel, ForkNumber::Init)) && *fork != ForkNumber::Init;
        let object = Object::RelationSize { rel: *rel, fork: *fork };
        let size = newest(store, object, lsn)?;
        if unlogged {
            ensure!(size.is_none(), "{rel} {fork} of an unlogged table was kept");
            continue;
        }
        let Some(size_after) = after.relations.get(&(*rel, *fork)) else { continue };
        // In another tablespace than its database's as well: lists go from directory to directory.
        let dir = Object::Database { spc_oid: rel.spc_oid, db_oid: rel.db_oid };
        newest(store, dir, lsn)?.with_context(|| format!("the directory of {rel} is missing"))?;
        let size = number(&size.with_context(|| format!("{rel} {fork} is missing"))?)?;
        ensure!(
            (*size_before..=*size_after).contains(&size),
            "{rel} {fork}: {size}, was {size_before}, is {size_after}"
        );
        for block_no in 0..size {
            let page = newest(store, Object::RelationBlock { rel: *rel, fork: *fork, block_no }, lsn)?;
            let page = page.with_context(|| format!("{rel} {fork} block {block_no} is missing"))?;
            ensure!(page.is_empty() || page.len() == BLCKSZ, "{rel} {fork} block {block_no}: {} bytes", page.len());
            checked += 1;
        }
    }
    ensure!(checked > 3000, "only {checked} pages");
    for ((kind, segment_no), pages_before) in &before.slrus {
        let size = newest(store, Object::SlruSegment { kind: *kind, segment_no: *segment_no }, lsn)?;
        let size = number(&size.with_context(|| format!("{kind} segment {segment_no} is missing"))?)?;
        ensure!(size >= *pages_before, "{kind} segment {segment_no}: {size}, was {pages_before}");
        for page_no in segment_no * 32..segment_no * 32 + size {
            newest(store, Object::SlruPage { kind: *kind, page_no }, lsn)?.context("an SLRU page is missing")?;
        }
    }
    for object in &before.others {
        newest(store, *object, lsn)?.with_context(|| format!("{object:?} is missing"))?;
    }
    Ok(())
}

#[test]
fn everything_comes_while_the_server_is_loaded() -> Result<()> {
    for version in PgVersion::ALL.into_iter().filter(|version| Postgres::is_installed(*version)) {
        let dir = TestDir::new("import-all")?;
        let server = start_server(version, &dir)?;
        let stop = AtomicBool::new(false);
        let (store, summary, before, after) = std::thread::scope(|scope| -> Result<_> {
            scope.spawn(|| {
                let mut client = server.connect().expect("connect");
                let mut rng = SmallRng::seed_from_u64(1);
                while !stop.load(Ordering::SeqCst) {
                    tpcb::transaction(&mut client, &mut rng, 1).expect("a transaction failed");
                }
            });
            let imported = (|| {
                let (mut before, mut after) = (Files::default(), Files::default());
                list(server.data_dir(), version, "", &mut before)?;
                let store = open_store(&dir, "store")?;
                let mut reports: Vec<ImportProgress> = Vec::new();
                let mut on_progress = |progress: &ImportProgress| {
                    reports.push(progress.clone());
                    ControlFlow::Continue(())
                };
                let conninfo: ConnInfo = server.conninfo().parse()?;
                let summary = import_primary(&conninfo, "imported", Arc::clone(&store), &mut on_progress)?;
                list(server.data_dir(), version, "", &mut after)?;
                ensure!(reports.is_sorted_by_key(|report| report.bytes_done));
                Ok((store, summary, before, after))
            })();
            stop.store(true, Ordering::SeqCst);
            imported
        })
        .with_context(|| format!("PostgreSQL {version}"))?;

        assert!(summary.start_lsn < summary.first_readable_lsn);
        assert_eq!(summary.control_file.version, version);
        assert!(summary.control_file.data_checksums());
        assert_eq!(store.watermark().context("no watermark")?.last_record_lsn, summary.start_lsn);
        check_files(&store, summary.start_lsn, &before, &after).with_context(|| format!("PostgreSQL {version}"))?;
        let origin = newest(&store, Object::ReplicationOrigin { origin_id: 1 }, summary.start_lsn)?;
        assert_eq!(origin.context("no origin")?[..8], 0xABCD_u64.to_be_bytes());
        assert!(before.others.iter().any(|object| matches!(object, Object::TwoPhase { .. })));
        let elsewhere = before.relations.keys().filter(|(rel, _)| rel.spc_oid > DEFAULTTABLESPACE_OID + 1);
        assert_eq!(elsewhere.count() > 0, version >= PgVersion::V15);

        // The slot keeps what the receiver will want.
        let restart = server.query_text("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'imported'")?;
        assert!(restart.parse::<Lsn>()? <= summary.start_lsn);
    }
    Ok(())
}

fn slot_count(server: &Postgres) -> Result<String> {
    server.query_text("SELECT count(*) FROM pg_replication_slots")
}

#[test]
fn a_broken_or_cancelled_import_leaves_nothing_behind() -> Result<()> {
    let dir = TestDir::new("import-broken")?;
    let server = start_server(PgVersion::V15, &dir)?;
    let proxy = CutProxy::start(server.port())?;
    let through: ConnInfo = server.conninfo_through(proxy.port()).parse()?;
    for (round, bytes) in [5_000, 300_000, 9_000_001].into_iter().enumerate() {
        let name = format!("cut-{round}");
        let store = open_store(&dir, &name)?;
        proxy.cut_after(bytes);
        let cut = import_primary(&through, "broken", Arc::clone(&store), &mut |_| ControlFlow::Continue(()));
        let error = cut.err().with_context(|| format!("cut after {bytes} bytes, and yet imported"))?;
        assert!(!error.to_string().is_empty());
        assert_eq!(store.watermark(), None, "after {bytes} bytes");
        assert_eq!(slot_count(&server)?, "0", "{error}");
    }
    Ok(())
}

#[test]
fn an_import_is_cancelled_while_the_primary_says_nothing() -> Result<()> {
    let dir = TestDir::new("import-cancelled")?;
    let server = Postgres::builder(PgVersion::V15).start(&dir)?;
    let store = open_store(&dir, "cancelled")?;
    let conninfo: ConnInfo = server.conninfo().parse()?;
    // The backup begins with a checkpoint that does not come.
    let checkpointer = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
    let checkpointer = Pid::from_raw(server.query_text(checkpointer)?.parse()?);
    kill(checkpointer, Signal::SIGSTOP)?;
    let mut seen = Vec::new();
    let outcome = import_primary(&conninfo, "cancelled", Arc::clone(&store), &mut |progress| {
        seen.push(progress.clone());
        if seen.len() < 2 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    kill(checkpointer, Signal::SIGCONT)?;
    assert!(matches!(outcome, Err(ImportError::Cancelled)), "{outcome:?}");
    let nothing = ImportProgress { phase: "base backup", bytes_done: 0, bytes_total: None };
    assert_eq!(seen, [nothing.clone(), nothing]);
    ensure!(store.watermark().is_none() && slot_count(&server)? == "0");
    // It can be imported all the same.
    import_primary(&conninfo, "again", open_store(&dir, "again")?, &mut |_| ControlFlow::Continue(()))?;
    Ok(())
}

#[test]
fn a_slot_that_was_there_stays_there() -> Result<()> {
    let dir = TestDir::new("import-slot")?;
    let server = start_server(PgVersion::V15, &dir)?;
    Connection::connect(&server.conninfo().parse()?, Mode::Replication)?.create_physical_slot("mine")?;
    let proxy = CutProxy::start(server.port())?;
    proxy.cut_after(500_000);
    let through: ConnInfo = server.conninfo_through(proxy.port()).parse()?;
    let store = open_store(&dir, "first")?;
    assert!(import_primary(&through, "mine", store, &mut |_| ControlFlow::Continue(())).is_err());
    assert_eq!(slot_count(&server)?, "1");
    let store = open_store(&dir, "second")?;
    import_primary(&through, "mine", store, &mut |_| ControlFlow::Continue(()))?;
    // One that keeps nothing would lose WAL before we come to stream it.
    server.execute("SELECT pg_create_physical_replication_slot('empty')")?;
    let store = open_store(&dir, "third")?;
    let refused = import_primary(&through, "empty", store, &mut |_| ControlFlow::Continue(()));
    assert!(matches!(refused, Err(ImportError::SlotKeepsNothing { .. })));
    Ok(())
}

#[test]
fn a_minimal_primary_is_refused_with_the_reason() -> Result<()> {
    let dir = TestDir::new("import-minimal")?;
    let builder = Postgres::builder(PgVersion::V15).wal_level("minimal").setting("max_wal_senders", "0");
    let server = builder.start(&dir)?;
    let store = open_store(&dir, "store")?;
    let conninfo: ConnInfo = server.conninfo().parse()?;
    let refused =
        import_primary(&conninfo, "slot", store, &mut |_| ControlFlow::Continue(())).err().context("imported")?;
    assert!(matches!(&refused, ImportError::UnsupportedCluster { setting: "wal_level", .. }), "{refused}");
    Ok(())
}
