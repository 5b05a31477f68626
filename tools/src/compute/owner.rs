//! The user that a compute runs as: PostgreSQL refuses root.

use std::fs;
use std::os::unix::fs::lchown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::{User, geteuid};

use super::record::FILE_NAME;

/// Whom root's computes run as unless told otherwise.
const DEFAULT_USER: &str = "postgres";

/// Who runs a compute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// Whoever runs pagectl.
    Caller,
    /// Another user; we are root.
    Other {
        /// The name.
        name: String,
        /// The user's number.
        uid: u32,
        /// The number of the user's first group.
        gid: u32,
    },
}

impl Owner {
    /// The user named `run_as`; without it, `postgres` for root and the caller for anybody else.
    pub fn find(run_as: Option<&str>) -> Result<Self> {
        if !geteuid().is_root() {
            let own = User::from_uid(geteuid()).ok().flatten().map(|user| user.name);
            return match run_as {
                Some(name) if own.as_deref() != Some(name) => {
                    bail!("only root can run a server as another user. run_as=`{name}`")
                }
                _ => Ok(Owner::Caller),
            };
        }
        let name = run_as.unwrap_or(DEFAULT_USER);
        let user = User::from_name(name).with_context(|| format!("look up user {name}"))?;
        let user = user.with_context(|| {
            format!("PostgreSQL does not run as root, and there is no user `{name}`: name one with --run-as")
        })?;
        ensure!(!user.uid.is_root(), "PostgreSQL does not run as root: name another user with --run-as");
        Ok(Owner::Other { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() })
    }

    /// What goes into `compute.json`.
    pub fn run_as(&self) -> Option<String> {
        match self {
            Owner::Caller => None,
            Owner::Other { name, .. } => Some(name.clone()),
        }
    }

    /// A command for `program` as this user, in `directory`, with a small known environment.
    pub fn command(&self, program: &Path, directory: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(directory).env_clear().env("LC_ALL", "C");
        for name in ["PATH", "TZ", "HOME"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        if let Owner::Other { uid, gid, .. } = self {
            command.uid(*uid).gid(*gid).env_remove("HOME"); // Drops our supplementary groups as well.
        }
        command
    }

    /// Gives the compute's directory `root` and all below it to this user, but for `compute.json`, which stays ours. Links themselves change
    /// hands, not what they point to.
    ///
    /// Requires: nobody but us could write below `root` so far.
    pub fn take_over(&self, root: &Path) -> Result<()> {
        let Owner::Other { uid, gid, .. } = self else { return Ok(()) };
        for path in entries(root)? {
            if path.file_name().is_none_or(|name| name != FILE_NAME) {
                give(&path, *uid, *gid)?;
            }
        }
        chown(root, *uid, *gid)
    }
}

/// Children first: once a directory is given away, its new owner may change what is in it.
fn give(path: &Path, uid: u32, gid: u32) -> Result<()> {
    let metadata = fs::symlink_metadata(path).with_context(|| format!("look at {}", path.display()))?;
    if metadata.is_dir() {
        entries(path)?.iter().try_for_each(|path| give(path, uid, gid))?;
    }
    chown(path, uid, gid)
}

fn chown(path: &Path, uid: u32, gid: u32) -> Result<()> {
    lchown(path, Some(uid), Some(gid)).with_context(|| format!("give {} to user {uid}", path.display()))
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let list = || fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>();
    list().with_context(|| format!("list {}", dir.display()))
}
