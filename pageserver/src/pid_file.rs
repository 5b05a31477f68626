//! The locked and validated pid file.
//!
//! - The lock says that a server runs, not the file: a file left by a crash is taken over.
//! - A pid below 1 is never handed out: `kill` with 0 or a negative number reaches whole groups of processes.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

/// Its name within the data directory.
pub const PID_FILE_NAME: &str = "pageserver.pid";
/// Longest pid file that is read; a pid has at most 10 digits.
const PID_FILE_BYTES_MAX: u64 = 32;

/// What is wrong with the pid file.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    /// A running server holds the lock.
    #[error("a page server runs already. path=`{path}`, pid=`{pid}`")]
    Locked {
        /// The pid file.
        path: PathBuf,
        /// What stands in it.
        pid: String,
    },
    /// The content is not a pid that may be signalled.
    #[error("the pid file does not hold a pid of at least 1. path=`{path}`, content=`{content}`")]
    NotAPid {
        /// The pid file.
        path: PathBuf,
        /// What stands in it.
        content: String,
    },
    /// The file cannot be opened, read, locked or written.
    #[error("cannot use the pid file. path=`{path}`")]
    Io {
        /// The pid file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Our own pid file, locked until dropped. Dropping removes the file.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    _locked: File,
}

impl PidFile {
    /// Locks `path` and writes our pid into it. Errors: [`PidFileError::Locked`] if another process holds it.
    pub fn claim(path: &Path) -> Result<Self, PidFileError> {
        let io = |source| PidFileError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = read_bounded(&file).unwrap_or_default().trim().to_string();
                return Err(PidFileError::Locked { path: path.to_owned(), pid });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(io)?;
        writeln!(file, "{}", std::process::id()).and_then(|()| file.sync_all()).map_err(io)?;
        Ok(PidFile { path: path.to_owned(), _locked: file })
    }

    /// The pid of the server that holds `path`; `None` if none does.
    pub fn holder(path: &Path) -> Result<Option<Pid>, PidFileError> {
        let io = |source| PidFileError::Io { path: path.to_owned(), source };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        match file.try_lock_shared() {
            Ok(()) => return Ok(None),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let content = read_bounded(&file).map_err(io)?;
        match content.trim().parse::<i32>() {
            Ok(pid) if pid >= 1 => Ok(Some(Pid::from_raw(pid))),
            _ => Err(PidFileError::NotAPid { path: path.to_owned(), content: content.trim().to_string() }),
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // A file that stays is harmless: the lock is what counts.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn read_bounded(file: &File) -> std::io::Result<String> {
    let mut content = String::new();
    file.take(PID_FILE_BYTES_MAX).read_to_string(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    //! Goal: one server per pid file, and no pid that could hit a group. Method: a second open of the same file.

    use super::*;

    #[test]
    fn second_claim_is_refused_with_the_pid_and_a_stale_file_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pageserver.pid");
        std::fs::write(&path, "1\n").unwrap();
        assert_eq!(PidFile::holder(&path).unwrap(), None);
        let held = PidFile::claim(&path).unwrap();
        let own_pid = std::process::id();
        assert_eq!(PidFile::holder(&path).unwrap(), Some(Pid::from_raw(own_pid as i32)));
        let error = PidFile::claim(&path).unwrap_err().to_string();
        assert!(error.contains(&own_pid.to_string()), "{error}");
        drop(held);
        assert!(!path.exists());
        assert_eq!(PidFile::holder(&path).unwrap(), None);
    }

    #[test]
    fn pids_below_one_are_refused() {
        for content in ["0", "-1", "-12345", "", "x", "99999999999999"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("pageserver.pid");
            let held = PidFile::claim(&path).unwrap();
            std::fs::write(&path, content).unwrap();
            assert!(matches!(PidFile::holder(&path), Err(PidFileError::NotAPid { .. })), "{content}");
            drop(held);
        }
    }
}
