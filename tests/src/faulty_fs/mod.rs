//! A disk that fails when the test says so: a real file system (FUSE) that hands everything through to a directory, except for the
//! operations that a [`Fault`] picks. What the programs under test meet is what a failing disk gives them: `EIO` from `fsync`, `ENOSPC`
//! from `write`, a write that is cut off, a read that gives a flipped bit.
//!
//! - Every `read` and `write` of a program arrives here: files are opened past the page cache of the mount (the kernel knows nothing by heart).
//! - A fault is met by operations on files whose path below the mount *contains* its text: `".sst"`, `"/wal/"`, `"leases.json"`.
//! - A failed operation does nothing to the directory below, except for a write that is cut off.
//! - Needs `/dev/fuse` and a root who may mount: [`FaultyFs::mount`] gives `None` where there is none, and the test says that it was skipped.
//! - Unmounted when dropped, and by a watcher when the test itself is killed. Declare it before the servers that use it, so that it goes last.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! # use tests::{PageServer, TestDir};
//! use tests::faulty_fs::{Effect, Errno, Fault, FaultyFs, Operation};
//! let dir = TestDir::new("disk")?;
//! let Some(disk) = FaultyFs::mount(&dir, "disk")? else { return Ok(()) };
//! let server = PageServer::builder().root(disk.path()).start(&dir)?;
//! let fault = disk.inject(Fault::new(Operation::Fsync, "/wal/", Effect::Error(Errno::EIO)).nth(3));
//! // ... write until fault.hits() > 0, look at what the server says ...
//! disk.heal();
//! # drop(server); Ok(())
//! # }
//! ```
//!
//! In reading order: [`fault`] (what goes wrong when), [`nodes`] (files the kernel knows), [`pass_through`] (the operations).

mod fault;
mod nodes;
mod pass_through;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use nix::unistd::geteuid;

pub use fault::{Effect, Fault, InjectedFault, Operation};
pub use nix::errno::Errno;

use crate::TestDir;
use crate::process::Watcher;
use fault::Faults;
use pass_through::PassThrough;

/// Enough for a server's threads to wait for one another here.
const THREADS: usize = 4;

/// A mounted file system. Dropped: unmounted, even if somebody still has files there.
#[derive(Debug)]
pub struct FaultyFs {
    path: PathBuf,
    backing: PathBuf,
    faults: Arc<Faults>,
    session: Option<BackgroundSession>,
    watcher: Watcher,
    _dir: TestDir,
}

impl FaultyFs {
    /// Mounts one at `name` below `dir`, empty, owned by the user of the servers; what is written there stands in `name.backing`.
    /// `None`, with a line that says why: this machine, or this user, cannot mount it.
    pub fn mount(dir: &TestDir, name: &str) -> Result<Option<Self>> {
        if !geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            println!("skipped: a file system that fails takes root and /dev/fuse");
            return Ok(None);
        }
        let (path, backing) = (dir.create_subdir(name)?, dir.create_subdir(&format!("{name}.backing"))?);
        let faults = Arc::new(Faults::default());
        let file_system = PassThrough::new(&backing, Arc::clone(&faults))?;
        let mut config = Config::default();
        config.acl = SessionACL::All; // Servers run as another user.
        config.n_threads = Some(THREADS);
        config.mount_options = vec![MountOption::FSName("faulty".to_owned()), MountOption::DefaultPermissions];
        let session = match Session::new(file_system, &path, &config) {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                println!("skipped: this root may not mount (a container?): {error}");
                return Ok(None);
            }
            session => session.context("mount the file system that fails")?.spawn()?,
        };
        // Standing there when nobody serves it any more, it would only be in the way.
        let watcher = Watcher::run(&format!("umount --lazy '{}'", path.display()))?;
        Ok(Some(FaultyFs { path, backing, faults, session: Some(session), watcher, _dir: dir.clone() }))
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory below: the same files, without faults.
    pub fn backing(&self) -> &Path {
        &self.backing
    }

    /// From now on `fault` applies, beside those injected before; the first that picks an operation decides.
    pub fn inject(&self, fault: Fault) -> InjectedFault {
        self.faults.add(fault)
    }

    /// No fault applies any more.
    pub fn heal(&self) {
        self.faults.clear();
    }
}

impl Drop for FaultyFs {
    fn drop(&mut self) {
        self.heal();
        // Lazily: a server that still runs keeps its files until it ends, and the test's directory can go.
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.path).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.path.display());
        }
        drop(self.session.take());
        self.watcher.dismiss();
    }
}
