//! The data directory that `postgres --single` needs to get as far as its redo extension.
//!
//! A version file, two empty configuration files, the cluster's own control file and three folders. The process reads
//! them while it starts and never again, so the directory is removed as soon as it has said hello: nothing is left
//! behind, even if the page server is killed.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid};
use postgres_ffi::PgVersion;
use tempfile::TempDir;

/// Memory as a file system, if the machine has it: a start is then no disk traffic.
const SHARED_MEMORY_DIR: &str = "/dev/shm";
const PREFIX: &str = "pageserver-redo-";

/// Makes the directory below `work_dir` (default: shared memory, else the temporary directory), owned by `owner`.
pub fn create(
    work_dir: Option<&Path>,
    version: PgVersion,
    pg_control: &[u8],
    owner: Option<(Uid, Gid)>,
) -> io::Result<TempDir> {
    let dir = make_dir(work_dir)?;
    // pg_notify and pg_dynshmem must exist (async.c, dsm_impl.c); nothing else is looked at before the extension takes over.
    let folders = ["global", "pg_notify", "pg_dynshmem"];
    let files: [(&str, &[u8]); 4] = [
        ("PG_VERSION", &format!("{version}\n").into_bytes()),
        ("postgresql.conf", b""),
        ("postgresql.auto.conf", b""),
        ("global/pg_control", pg_control),
    ];
    let mut paths: Vec<PathBuf> = vec![dir.path().to_owned()];
    for folder in folders {
        paths.push(dir.path().join(folder));
        fs::create_dir(dir.path().join(folder))?;
    }
    for (name, content) in files {
        paths.push(dir.path().join(name));
        fs::write(dir.path().join(name), content)?;
    }
    if let Some((uid, gid)) = owner {
        for path in paths {
            chown(path, Some(uid.as_raw()), Some(gid.as_raw()))?;
        }
    }
    Ok(dir)
}

/// A copy of the extension in the directory, readable by `owner`.
pub fn add_extension(skeleton: &TempDir, extension: &Path, (uid, gid): (Uid, Gid)) -> io::Result<PathBuf> {
    let copy = skeleton.path().join("redo_extension.so");
    fs::copy(extension, &copy)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o500))?;
    chown(&copy, Some(uid.as_raw()), Some(gid.as_raw()))?;
    Ok(copy)
}

/// A new directory that only its owner may enter: PostgreSQL insists on that.
fn make_dir(work_dir: Option<&Path>) -> io::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).permissions(fs::Permissions::from_mode(0o700));
    match work_dir {
        Some(parent) => builder.tempdir_in(parent),
        None => builder.tempdir_in(SHARED_MEMORY_DIR).or_else(|_| builder.tempdir()),
    }
}
