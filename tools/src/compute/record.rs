//! `compute.json`: what is known of a compute, written before anything of it exists.
//!
//! - Written whole to a new file, fsynced and renamed: a crash leaves the old or the new one.
//! - The directory belongs to the server's user, who could put another file in its place. What stands here decides what root runs and as whom: only a
//!   file of whoever runs pagectl is read, and no link is followed.
//! - Names no path within the compute's directory: those follow from where the file is.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::geteuid;
use postgres_ffi::{Lsn, PgVersion};
use serde::{Deserialize, Serialize};

use super::place::{ComputeName, Place};
use super::settings::Auth;

/// Name of the file.
pub(super) const FILE_NAME: &str = "compute.json";
/// In the directory of all computes: whoever holds its lock may take names and ports.
const LOCK_NAME: &str = ".lock";
/// Format of the file; raised when an older pagectl could misread it.
const FORMAT: u32 = 1;

/// How far a compute has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// Being made, or what an interrupted `create` left: it can only be destroyed.
    Creating,
    /// Complete.
    Ready,
}

/// What is known of a compute.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Always [`Record::format`] in memory.
    pub format: u32,
    /// How far it has come.
    pub progress: Progress,
    /// What it is called.
    pub name: ComputeName,
    /// The branch's name when the compute was made.
    pub branch: String,
    /// The branch's id, by which the page server is asked; none before a branch of its own is there.
    pub branch_id: Option<String>,
    /// True when `create` made the branch, too.
    pub branch_is_own: bool,
    /// Major version.
    pub pg_version: PgVersion,
    /// Where its programs are.
    pub pg_bin: PathBuf,
    /// The port that it listens on.
    pub port: u16,
    /// The user that it runs as, where that is not whoever starts it.
    pub run_as: Option<String>,
    /// Whom the page server, and `psql` unless told otherwise, log in as. None before the base backup is there.
    pub role: Option<String>,
    /// Where the base backup was taken: the branch goes on from here in this compute.
    pub start_lsn: Option<Lsn>,
    /// A commit waits until the page server has it.
    pub synchronous: bool,
    /// How it makes sure who connects over TCP.
    pub auth: Auth,
    /// Connection string of its primary, which may hold a password, when it is a standby. The page server does not follow it then.
    pub standby_of: Option<String>,
}

impl Record {
    /// The format that this pagectl writes.
    pub const fn format() -> u32 {
        FORMAT
    }

    /// The record in `place`; `None` when there is no compute. Errors: unreadable, damaged, or of a later format.
    pub fn load_if_there(place: &Place) -> Result<Option<Self>> {
        let path = place.root().join(FILE_NAME);
        let bytes = match read_own(&path) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            bytes => bytes.with_context(|| format!("read {}", path.display()))?,
        };
        let record: Record =
            serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
        ensure!(record.format == FORMAT, "{} is of format {}, not {FORMAT}", path.display(), record.format);
        ensure!(
            place.root().file_name().is_some_and(|name| name == record.name.as_str()),
            "{} is of another compute. name=`{}`",
            path.display(),
            record.name
        );
        Ok(Some(record))
    }

    /// The record in `place`. Errors: as before, and when there is no compute.
    pub fn load(place: &Place) -> Result<Self> {
        match Self::load_if_there(place)? {
            Some(record) => Ok(record),
            None => bail!("there is no such compute. path=`{}`", place.root().display()),
        }
    }

    /// The record of a compute that is complete.
    pub fn load_ready(place: &Place) -> Result<Self> {
        let record = Self::load(place)?;
        ensure!(
            record.progress == Progress::Ready,
            "this compute was never completed; `pagectl compute destroy {} --confirm` removes what is there",
            record.name
        );
        Ok(record)
    }

    /// Replaces the record in `place`; durable when it returns.
    pub fn save(&self, place: &Place) -> Result<()> {
        let path = place.root().join(FILE_NAME);
        let new = place.root().join(format!("{FILE_NAME}.new"));
        let write = || {
            match fs::remove_file(&new) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(place.root())?.sync_all()
        };
        write().with_context(|| format!("write {}", path.display()))
    }

    /// Whether there is a file in `place`, readable or not.
    pub fn is_there(place: &Place) -> bool {
        place.root().join(FILE_NAME).exists()
    }
}

/// The content of a file that belongs to whoever runs this, and is no link.
fn read_own(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path)?;
    if file.metadata()?.uid() != geteuid().as_raw() {
        let text = "it does not belong to the user who runs this";
        return Err(std::io::Error::new(ErrorKind::PermissionDenied, text));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// All computes below `computes` in the order of their names: place, and the record or why it cannot be read. Other directories are left out.
pub fn all(computes: &Path) -> Result<Vec<(ComputeName, Place, Result<Record>)>> {
    let entries = match fs::read_dir(computes) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("list {}", computes.display()))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", computes.display()))?;
        let Some(name) = entry.file_name().to_str().and_then(|name| name.parse::<ComputeName>().ok()) else { continue };
        let place = Place::new(computes, &name);
        match Record::load_if_there(&place) {
            Ok(None) => {}
            Ok(Some(record)) => found.push((name, place, Ok(record))),
            Err(error) => found.push((name, place, Err(error))),
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// Waits until nobody else takes names and ports below `computes`, which is made if need be. Given back when the value is dropped.
pub fn lock(computes: &Path) -> Result<File> {
    fs::create_dir_all(computes).with_context(|| format!("create {}", computes.display()))?;
    let path = computes.join(LOCK_NAME);
    let open = || {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        file.lock()?;
        Ok::<_, std::io::Error>(file)
    };
    open().with_context(|| format!("lock {}", path.display()))
}

/// From now on nobody else makes, starts, stops or destroys the compute in `place`, until the value is dropped. `None`: there is no directory. Errors: somebody does.
pub fn occupy(place: &Place) -> Result<Option<File>> {
    let directory = match File::open(place.root()) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        opened => opened.with_context(|| format!("open {}", place.root().display()))?,
    };
    match directory.try_lock() {
        Ok(()) if is_at(&directory, place.root()) => Ok(Some(directory)),
        Ok(()) | Err(TryLockError::WouldBlock) => {
            bail!(
                "another pagectl is at work on this compute: try again when it has ended. path=`{}`",
                place.root().display()
            )
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", place.root().display())),
    }
}

/// False: another one stands at `path` since it was opened, or none.
fn is_at(directory: &File, path: &Path) -> bool {
    let place = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((directory.metadata(), fs::metadata(path)), (Ok(opened), Ok(there)) if place(&opened) == place(&there))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> Record {
        Record {
            format: FORMAT,
            progress: Progress::Creating,
            name: name.parse().expect("a name"),
            branch: "main".to_owned(),
            branch_id: None,
            branch_is_own: true,
            pg_version: PgVersion::V17,
            pg_bin: "/bin".into(),
            port: 5432,
            run_as: None,
            role: None,
            start_lsn: None,
            synchronous: true,
            auth: Auth::Trust,
            standby_of: None,
        }
    }

    #[test]
    fn what_is_saved_is_loaded_and_listed() {
        let dir = tempfile::tempdir().expect("temporary folder");
        for name in ["b", "a"] {
            let record = record(name);
            let place = Place::new(dir.path(), &record.name);
            fs::create_dir(place.root()).expect("folder");
            record.save(&place).expect("save");
            record.save(&place).expect("save again");
            assert!(Record::load_ready(&place).is_err_and(|error| error.to_string().contains("never completed")));
            assert_eq!(format!("{:?}", Record::load(&place).expect("load")), format!("{record:?}"));
        }
        fs::create_dir(dir.path().join("other")).expect("folder");
        let names: Vec<String> = all(dir.path()).expect("list").iter().map(|found| found.0.to_string()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(all(&dir.path().join("none")).expect("list").is_empty());
    }

    #[test]
    fn one_pagectl_at_a_time_works_on_a_compute() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let place = Place::new(dir.path(), &"a".parse().expect("a name"));
        assert!(occupy(&place).expect("nothing there").is_none());
        fs::create_dir(place.root()).expect("folder");
        let first = occupy(&place).expect("free");
        assert!(occupy(&place).is_err_and(|error| error.to_string().contains("another pagectl")));
        drop(first);
        assert!(occupy(&place).expect("free again").is_some());
    }

    #[test]
    fn a_damaged_record_is_no_compute_to_work_with_and_is_listed() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let place = Place::new(dir.path(), &"a".parse().expect("a name"));
        assert!(Record::load(&place).is_err_and(|error| error.to_string().contains("no such compute")));
        fs::create_dir(place.root()).expect("folder");
        for text in ["", "{", "{\"format\": 1}"] {
            fs::write(place.root().join(FILE_NAME), text).expect("write");
            assert!(Record::load(&place).is_err_and(|error| error.to_string().contains("damaged")), "{text}");
            assert!(Record::is_there(&place));
            assert!(all(dir.path()).expect("list").iter().all(|found| found.2.is_err()));
        }
        // Somebody else's, and a link to one's own.
        fs::remove_file(place.root().join(FILE_NAME)).expect("remove");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), place.root().join(FILE_NAME)).expect("link");
        fs::write(dir.path().join("elsewhere"), serde_json::to_vec(&record("a")).expect("JSON")).expect("write");
        assert!(Record::load(&place).is_err());
        record("b").save(&place).expect("save");
        assert!(Record::load(&place).is_err_and(|error| error.to_string().contains("another compute")));
        let mut later = record("a");
        later.format = FORMAT + 1;
        later.save(&place).expect("save");
        assert!(Record::load(&place).is_err_and(|error| error.to_string().contains("format 2")));
    }
}
