//! The directory of one test: below it lie the data directories and logs of everything that the test starts.
//!
//! - The user that servers run as owns it and can reach it, whatever the rights above the build directory are.
//! - Removed when the last owner is dropped; kept with `PAGESERVER_TEST_KEEP=1`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::process::{run, server_user};

/// A test's directory. Clones share it.
#[derive(Clone, Debug)]
pub struct TestDir {
    dir: Arc<TempDir>,
}

impl TestDir {
    /// A new, empty directory below the temporary directory, with `name` in its name.
    pub fn new(name: &str) -> Result<Self> {
        let mut dir = tempfile::Builder::new()
            .prefix(&format!("pageserver-test-{name}-"))
            .tempdir()
            .context("create the directory of the test")?;
        if std::env::var_os("PAGESERVER_TEST_KEEP").is_some() {
            dir.disable_cleanup(true);
            println!("directory of this test, kept: {}", dir.path().display());
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).context("open the directory of the test")?;
        give_to_server_user(dir.path())?;
        Ok(Self { dir: Arc::new(dir) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A new subdirectory that belongs to the user that servers run as, mode 0700 as PostgreSQL wants it.
    pub fn create_subdir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        give_to_server_user(&path)?;
        Ok(path)
    }

    /// A copy of the program `source` that every user may run. The build directory may lie where only its owner can look. Another process makes it:
    /// a file of ours that is open for writing may be inherited by what another thread starts just then, and cannot be run as long (ETXTBSY).
    pub fn copy_program(&self, source: &Path) -> Result<PathBuf> {
        let bin = self.path().join("bin");
        fs::create_dir_all(&bin)?;
        let target = bin.join(source.file_name().context("a program has a file name")?);
        if !target.exists() {
            run(Command::new("cp").arg(source).arg(&target))?;
            fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?;
        }
        Ok(target)
    }
}

/// Makes the user that servers run as the owner of `path`; does nothing when that is the user who runs the test.
pub fn give_to_server_user(path: &Path) -> Result<()> {
    if let Some((uid, gid)) = server_user()? {
        std::os::unix::fs::lchown(path, Some(uid), Some(gid))
            .with_context(|| format!("give {} to the user of the servers", path.display()))?;
    }
    Ok(())
}
