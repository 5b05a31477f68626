//! A disk that fails: what it concerns stops in a state that says what, where and what to do; reads of the rest go on; a restart on a sound disk loses
//! nothing. The page server's directory lies on a file system that fails when the test says so.

use std::ops::Deref;
use std::ops::DerefMut;
use std::time::Duration;

use anyhow::Result;
use postgres_ffi::Lsn;
use tests::faulty_fs::{Effect, Errno, Fault, FaultyFs, InjectedFault, Operation};
use tests::{PageServer, TestDir, wait_until};

use super::rig::{LIMIT, Rig, small_primary};

/// Layers that are written out all the time; caches that hold little.
const SMALL: &str =
    "page_cache_mib = 4\n[store]\nlayer_mib = 1\nblock_cache_mib = 1\nflush_interval_seconds = 1\n[wal]\nkeep_mib = 64";
/// Nothing is written out by itself.
const LAZY: &str = "page_cache_mib = 4\n[store]\nblock_cache_mib = 1";

/// A server on a disk that fails. Dropped in this order.
struct DiskRig {
    rig: Rig,
    disk: FaultyFs,
}

impl Deref for DiskRig {
    type Target = Rig;

    fn deref(&self) -> &Rig {
        &self.rig
    }
}

impl DerefMut for DiskRig {
    fn deref_mut(&mut self) -> &mut Rig {
        &mut self.rig
    }
}

/// `None`: this machine cannot mount such a disk.
fn start(name: &str, config: &str) -> Result<Option<DiskRig>> {
    let dir = TestDir::new(name)?;
    let Some(disk) = FaultyFs::mount(&dir, "disk")? else { return Ok(None) };
    let primary = small_primary().setting("wal_keep_size", "1GB").start(&dir)?;
    let mut pageserver = PageServer::builder().root(disk.path()).config(config)?.start(&dir)?;
    for expected in [
        "connection to the primary",
        "ingest stopped",
        "wal receiver",
        "WAL receiver",
        "takes no more",
        "Input/output error",
        "orrupt",
        "obsolete files",
    ] {
        pageserver.expect_in_log(expected);
    }
    pageserver.import("main", &primary.conninfo())?;
    let rig = Rig { pageserver, primary, dir };
    rig.primary.execute("CREATE TABLE t AS SELECT i, md5(i::text) AS v FROM generate_series(1, 5000) i")?;
    rig.catch_up()?;
    Ok(Some(DiskRig { rig, disk }))
}

impl DiskRig {
    fn inject(&self, operation: Operation, path_part: &str, effect: Effect) -> InjectedFault {
        self.disk.inject(Fault::new(operation, path_part, effect))
    }

    /// The first pages of `t`.
    fn pages(&self, blocks: i64, at: Lsn) -> Result<Vec<String>> {
        let (table, _) = self.table()?;
        (0..blocks).map(|block_no| self.page(&format!("{table}/main/{block_no}"), at)).collect()
    }

    /// Writes until the timeline says that it has stopped; why.
    fn write_until_stopped(&self) -> Result<String> {
        wait_until("the timeline to stop", 2 * LIMIT, || {
            self.write()?;
            Ok(self.pageserver.timeline("main", "state")? == "stopped")
        })?;
        self.pageserver.timeline("main", "last_error")
    }

    /// The error lines of the log that contain `text`.
    fn log_lines(&self, text: &str) -> Result<usize> {
        let log = std::fs::read_to_string(self.pageserver.log_path())?;
        Ok(log.lines().filter(|line| line.contains(" ERROR ") && line.contains(text)).count())
    }

    /// A sound disk and a restart: everything is there.
    fn heal_and_compare(&mut self) -> Result<()> {
        self.disk.heal();
        if self.pageserver.pid().is_some() {
            self.rig.pageserver.kill()?;
        }
        self.rig.pageserver.start()?;
        self.wait_for("receiver", "streaming")?;
        self.catch_up()?;
        assert_eq!(self.pageserver.timeline("main", "state")?, "active");
        self.rig.stop_and_compare()?;
        super::files::assert_clean(&self.pageserver);
        self.rig.pageserver.stop()
    }
}

const EIO: Effect = Effect::Error(Errno::EIO);
const NO_SPACE: Effect = Effect::Error(Errno::ENOSPC);

/// A fault under load; what the state says must contain `expect`.
fn check(name: &str, config: &str, fault: Fault, expect: &[&str]) -> Result<()> {
    let Some(mut server) = start(name, config)? else { return Ok(()) };
    let before_lsn = server.last_record_lsn()?;
    let (_, blocks) = server.table()?;
    let before = server.pages(blocks, before_lsn)?;
    let injected = server.disk.inject(fault);
    let reason = server.write_until_stopped()?;
    for part in expect {
        assert!(reason.contains(part), "no `{part}` in {reason}");
    }
    assert!(injected.hits() > 0);
    // Nobody tries again: it stays so on a disk that is well again, and what was acknowledged before it is served.
    server.disk.heal();
    let stopped_lsn = server.last_record_lsn()?;
    server.write()?;
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(server.pageserver.timeline("main", "state")?, "stopped");
    assert_eq!(server.last_record_lsn()?, stopped_lsn);
    assert!(server.pages(blocks, before_lsn)? == before, "reads go on");
    server.heal_and_compare()
}

#[test]
fn a_failed_fsync_of_wal_is_not_tried_again() -> Result<()> {
    let fault = Fault::new(Operation::Fsync, "/wal/", EIO).nth(3);
    check("disk-wal-fsync", LAZY, fault, &["fsync", "/wal/", "Input/output error"])
}

#[test]
fn a_failed_write_of_wal_stops_ingest() -> Result<()> {
    let fault = Fault::new(Operation::Write, "/wal/", Effect::CutOff { bytes: 100, error: Errno::EIO }).nth(3);
    check("disk-wal-write", LAZY, fault, &["write", "/wal/", "Input/output error"])
}

#[test]
fn a_failed_write_of_a_layer_stops_the_store() -> Result<()> {
    let fault = Fault::new(Operation::Write, "pending/", NO_SPACE).from_nth(3);
    check("disk-sst-write", SMALL, fault, &["No space left", "flush"])
}

#[test]
fn a_failed_fsync_of_a_layer_stops_the_store() -> Result<()> {
    let fault = Fault::new(Operation::Fsync, "pending/", EIO).nth(2);
    check("disk-sst-fsync", SMALL, fault, &["flush", "Input/output error"])
}

#[test]
fn a_failed_link_of_a_layer_stops_the_store() -> Result<()> {
    let fault = Fault::new(Operation::Link, ".sst", EIO).nth(2);
    check("disk-sst-link", SMALL, fault, &["flush", "Input/output error"])
}

/// RocksDB takes back the files of the failed ingestion, and the MANIFEST that could not be synced names them all the same: that record has to go for the store to open.
#[test]
fn a_failed_write_of_the_manifest_stops_the_store() -> Result<()> {
    // Not every record of the MANIFEST is one of an ingestion.
    for nth in 2..16 {
        let Some(mut server) = start("disk-manifest", SMALL)? else { return Ok(()) };
        server.rig.pageserver.expect_in_log("MANIFEST");
        server.disk.inject(Fault::new(Operation::Fsync, "MANIFEST", EIO).nth(nth));
        let reason = server.write_until_stopped()?;
        assert!(reason.contains("MANIFEST") && reason.contains("Input/output error"), "{reason}");
        server.heal_and_compare()?;
        assert!(!server.rig.pageserver.data_dir().join("store/ingest_failed").exists());
        if std::fs::read_to_string(server.pageserver.log_path())?.contains("a failed ingestion is taken back") {
            println!("taken back at the {nth}th");
            return Ok(());
        }
    }
    anyhow::bail!("the record of a failed ingestion was never there")
}

#[test]
fn a_failed_compaction_is_noticed_by_itself() -> Result<()> {
    // Layers are made in `pending/`; what is written in `rocksdb/` is compaction's.
    let fault = Fault::new(Operation::Write, "rocksdb/0", EIO);
    check("disk-compaction", SMALL, fault, &["Input/output error"])?;
    let Some(mut server) = start("disk-compaction-idle", SMALL)? else { return Ok(()) };
    let injected = server.inject(Operation::Write, "rocksdb/0", EIO);
    wait_until("a compaction", 2 * LIMIT, || {
        server.write()?;
        Ok(injected.hits() > 0)
    })?;
    // Nobody writes any more.
    server.wait_for("state", "stopped")?;
    server.wait_for("last_error", "Input/output error")?;
    server.heal_and_compare()
}

#[test]
fn a_failed_read_of_the_store_is_an_error_and_a_state() -> Result<()> {
    let Some(mut server) = start("disk-read", LAZY)? else { return Ok(()) };
    server.rig.pageserver.stop()?; // Everything is in files, nothing in caches.
    server.rig.pageserver.start()?;
    let lsn = server.catch_up()?;
    assert_eq!(server.pageserver.timeline("main", "state")?, "active");
    let injected = server.inject(Operation::Read, ".sst", EIO);
    let (table, blocks) = server.table()?;
    let outcomes: Vec<_> =
        (0..blocks).map(|block_no| server.page(&format!("{table}/main/{block_no}"), lsn).is_ok()).collect();
    assert!(injected.hits() > 0 && outcomes.contains(&false), "{outcomes:?}");
    assert_eq!(server.pageserver.timeline("main", "state")?, "stopped");
    let reason = server.pageserver.timeline("main", "last_error")?;
    assert!(reason.contains("Input/output error") && reason.contains("pagectl verify"), "{reason}");
    assert_eq!(server.log_lines("the store cannot be read")?, 1, "told once");
    // The state stays until a restart; every page can be read again.
    server.disk.heal();
    assert_eq!(server.pages(blocks, lsn)?.len(), blocks as usize);
    assert_eq!(server.pageserver.timeline("main", "state")?, "stopped");
    server.heal_and_compare()
}

#[test]
fn a_bit_that_flips_on_its_way_from_the_disk_is_never_served() -> Result<()> {
    let Some(mut server) = start("disk-flip", LAZY)? else { return Ok(()) };
    let lsn = server.catch_up()?;
    let (table, blocks) = server.table()?;
    let before = server.pages(blocks, lsn)?;
    server.rig.pageserver.stop()?;
    server.rig.pageserver.start()?;
    server.catch_up()?;
    let store = server.pageserver.data_dir().join("store");
    let mut faults = Vec::new();
    for (sst, size) in super::files::files(&store, ".sst")? {
        for n in 0..10 {
            let flip = Effect::FlipBit { at: size * (2 * n + 1) / 20 };
            faults.push(server.inject(Operation::Read, super::files::name(&sst), flip));
        }
    }
    let mut refused = 0;
    for block_no in 0..blocks {
        match server.page(&format!("{table}/main/{block_no}"), lsn) {
            Ok(page) => assert!(page == before[block_no as usize], "block {block_no}"),
            Err(_) => refused += 1,
        }
    }
    let hits: u64 = faults.iter().map(InjectedFault::hits).sum();
    println!("{refused} of {blocks} pages refused, {hits} bits flipped");
    assert!(hits > 0 && refused > 0, "{refused} refused, {hits} flipped");
    let reason = server.pageserver.timeline("main", "last_error")?;
    assert!(reason.contains("orrupt") && reason.contains(".sst"), "{reason}");
    // A check, which reads the disk and no cache, sees the same.
    super::files::assert_found(&server.pageserver, &[".sst", "cannot be read"]);
    server.heal_and_compare()
}

#[test]
fn a_failed_change_of_metadata_changes_nothing() -> Result<()> {
    let Some(mut server) = start("disk-metadata", LAZY)? else { return Ok(()) };
    let pagectl = server.pageserver.pagectl()?;
    let lsn = server.catch_up()?.to_string();
    let refused = |arguments: &[&str], expect: &str| -> Result<()> {
        let outcome = pagectl.outcome(arguments)?;
        assert_eq!(outcome.exit_code, 2, "{arguments:?}: {}", outcome.stdout);
        assert!(outcome.stderr.contains(expect) && outcome.stderr.contains("Input/output error"), "{}", outcome.stderr);
        Ok(())
    };
    for operation in [Operation::Open, Operation::Write, Operation::Fsync, Operation::Rename] {
        println!("{operation:?}");
        server.inject(operation, ".json", EIO);
        refused(&["branch", "rename", "main", "other"], "timeline.json")?;
        refused(&["lease", "create", "main", "--lsn", &lsn], "leases.json")?;
        refused(&["branch", "create", "b", "--from", "main"], "timeline.json")?;
        let tar = server.dir.path().join("backup.tar");
        refused(&["basebackup", "main", "--output", &tar.to_string_lossy()], "tenant.json")?;
        server.disk.heal();
        assert_eq!(server.pageserver.timeline("main", "state")?, "active");
        assert_eq!(pagectl.run(&["--json", "lease", "list"])?, "");
        assert_eq!(pagectl.run(&["--json", "timeline", "list"])?.lines().count(), 1);
        super::files::assert_clean(&server.pageserver);
    }
    pagectl.run(&["lease", "create", "main", "--lsn", &lsn])?;
    server.write()?;
    server.heal_and_compare()
}

/// A new file that has taken the old one's place is what the next start finds, whatever the command has said: so the old one takes it back.
#[test]
fn a_failed_change_of_metadata_does_not_come_back() -> Result<()> {
    let Some(mut server) = start("disk-metadata-dir", LAZY)? else { return Ok(()) };
    let pagectl = server.pageserver.pagectl()?;
    server.catch_up()?;
    let dir = format!("timelines/{}", server.pageserver.timeline("main", "id")?);
    for (fault, state) in [
        (Fault::new(Operation::FsyncDir, &dir, EIO).nth(1), "active"),
        // Not even the old one is known to be on disk.
        (Fault::new(Operation::FsyncDir, &dir, EIO), "stopped"),
    ] {
        let injected = server.disk.inject(fault);
        let outcome = pagectl.outcome(&["branch", "rename", "main", "other"])?;
        assert!(outcome.exit_code == 2 && outcome.stderr.contains("Input/output error"), "{outcome:?}");
        assert!(injected.hits() > 0);
        assert_eq!(server.pageserver.timeline("main", "state")?, state);
        server.disk.heal();
        super::files::assert_clean(&server.pageserver);
        server.rig.pageserver.kill()?;
        server.rig.pageserver.start()?;
        server.wait_for("state", "active")?;
    }
    server.heal_and_compare()
}
