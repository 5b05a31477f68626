//! The disk is full: ingest stops and says so, reads go on, and once there is room again a restart loses nothing.
//!
//! The data directory lies on a small file system in memory. Mounting takes a root who may; without one the test says that it was skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::unistd::geteuid;
use tests::process::{run, server_user};
use tests::{PageServer, TestDir};

use super::rig::{LIMIT, Rig, small_primary};

/// Room for the import and a little more.
const DISK_MIB: u64 = 256;
/// What is left of it when it is "full": the rest of a segment may still fit, a new file does not.
const LEFT_BYTES: u64 = 64 << 10;

/// A mounted file system. Dropped: unmounted, even if somebody still has files there.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    fn mount(dir: &TestDir) -> Result<Self> {
        let path = dir.create_subdir("small disk")?;
        let (uid, gid) = server_user()?.context("root runs servers as somebody else")?;
        let options = format!("size={DISK_MIB}m,uid={uid},gid={gid},mode=700");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path))?;
        Ok(SmallDisk { path })
    }

    fn free_bytes(&self) -> Result<u64> {
        let free = nix::sys::statvfs::statvfs(&self.path)?;
        Ok(free.blocks_available() * free.fragment_size())
    }

    fn filler_dir(&self) -> PathBuf {
        self.path.join("filler")
    }

    /// Leaves [`LEFT_BYTES`] at most. The server writes and removes files meanwhile: to be called again until it has stopped.
    fn fill(&self) -> Result<()> {
        let size = self.free_bytes()?.saturating_sub(LEFT_BYTES);
        if size == 0 {
            return Ok(());
        }
        let dir = self.filler_dir();
        fs::create_dir_all(&dir)?;
        let filler = dir.join(fs::read_dir(&dir)?.count().to_string());
        match run(Command::new("fallocate").arg("--length").arg(size.to_string()).arg(&filler)) {
            // The server was faster.
            Err(error) if format!("{error:#}").contains("No space left") => Ok(()),
            filled => filled.map(drop),
        }
    }

    fn make_room(&self) -> Result<()> {
        Ok(fs::remove_dir_all(self.filler_dir())?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}

fn start(dir: &TestDir, disk: &SmallDisk, config: &str) -> Result<Rig> {
    let primary = small_primary().setting("wal_keep_size", "1GB").start(dir)?;
    let root: &Path = &disk.path;
    let mut pageserver = PageServer::builder().root(root).config(config)?.start(dir)?;
    for expected in ["connection to the primary", "ingest stopped", "No space left", "no more writes", "wal receiver"] {
        pageserver.expect_in_log(expected);
    }
    pageserver.import("main", &primary.conninfo())?;
    let rig = Rig { pageserver, primary, dir: dir.clone() };
    rig.primary.execute("CREATE TABLE t AS SELECT i, md5(i::text) AS v FROM generate_series(1, 5000) i")?;
    rig.catch_up()?;
    Ok(rig)
}

/// Fills the disk under load, looks at what the server says, makes room again and compares everything.
fn check(config: &str) -> Result<()> {
    if !geteuid().is_root() {
        println!("skipped: mounting a small file system takes root");
        return Ok(());
    }
    let dir = TestDir::new("full-disk")?;
    let disk = match SmallDisk::mount(&dir) {
        Err(error) if format!("{error:#}").contains("permission denied") => {
            println!("skipped: this root may not mount (a container?): {error:#}");
            return Ok(());
        }
        mounted => mounted?,
    };
    let mut rig = start(&dir, &disk, config)?;
    let before_lsn = rig.last_record_lsn()?;
    let (table, blocks) = rig.table()?;
    let addresses: Vec<String> = (0..blocks).map(|block_no| format!("{table}/main/{block_no}")).collect();
    let read_all =
        |rig: &Rig| addresses.iter().map(|address| rig.page(address, before_lsn)).collect::<Result<Vec<_>>>();
    let before = read_all(&rig)?;

    tests::wait_until("ingest to stop", 2 * LIMIT, || {
        disk.fill()?;
        rig.write()?;
        Ok(rig.pageserver.timeline("main", "state")? == "stopped")
    })?;
    let reason = rig.pageserver.timeline("main", "last_error")?;
    assert!(reason.contains("No space left on device"), "{reason}");
    let stopped_lsn = rig.last_record_lsn()?;
    assert!(before_lsn <= stopped_lsn && stopped_lsn < rig.primary.current_lsn()?);
    assert!(read_all(&rig)? == before, "reads go on");
    rig.pageserver.check_alive()?;

    // A restart without room: the same, or it does not start and says why; nothing is lost either way.
    rig.pageserver.kill()?;
    match rig.pageserver.start() {
        Ok(()) => rig.pageserver.kill()?,
        Err(error) => assert!(format!("{error:#}").contains("No space left"), "{error:#}"),
    }
    disk.make_room()?;
    rig.pageserver.start()?;
    rig.catch_up()?;
    assert!(read_all(&rig)? == before, "nothing is lost");
    rig.stop_and_compare()?;
    assert_eq!(rig.pageserver.timeline("main", "state")?, "active");
    rig.pageserver.stop()
}

#[test]
fn a_full_disk_stops_ingest_and_nothing_else() -> Result<()> {
    check("")
}

/// Small layers that are written out all the time: the store meets the full disk as well as the WAL does.
#[test]
fn a_full_disk_under_the_store_stops_ingest_and_nothing_else() -> Result<()> {
    check(
        "page_cache_mib = 4\n[store]\nlayer_mib = 1\nblock_cache_mib = 8\nflush_interval_seconds = 1\n[wal]\nkeep_mib = 1",
    )
}
