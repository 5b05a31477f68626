//! The copy of a sealed file, beside it: `NAME.copy`. It stands in for a file that is damaged or cannot be read.
//!
//! - It says what the file says, or it is not there: it goes before a new file takes the old one's place, and comes when that is durable. So it is never of before.
//! - It is not fsynced: its checksum tells whether all of it came to the disk, and a start writes those that are missing. Changes take no longer for it than one more file in
//!   the system's cache. (A file system that gives freed blocks to a new file before they are written, and then loses power, may show an old copy there: it would have to damage the file, too.)
//! - It stands in for damage alone: not for a file that is not there (some are taken away by hand), that may not be read, or that a later build has written.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use tracing::warn;

use super::{beside, put_in_place, sync_parent, unseal, write_new};

/// What stands in the file at `path`, or in its copy if the file is damaged. Errors: as of the file itself, if no copy can stand in.
pub(crate) fn read_either<T: DeserializeOwned>(path: &Path) -> io::Result<Vec<u8>> {
    let file = fs::read(path);
    match damage::<T>(&file).and_then(|_| intact_copy::<T>(path)) {
        Some(copy) => Ok(copy),
        None => file,
    }
}

/// Before a file is used: one that is damaged is replaced by its copy, durably; a copy that is missing or wrong is written. Without a copy that can stand in the file stays as it
/// is. What reading the file gives then. Errors: the file cannot be replaced, or a wrong copy not be taken away.
pub(crate) fn settle<T: DeserializeOwned>(path: &Path) -> io::Result<io::Result<Vec<u8>>> {
    let file = fs::read(path);
    let Some(wrong) = damage::<T>(&file) else {
        if let Ok(bytes) = &file {
            settle_copy(path, bytes)?;
        }
        return Ok(file);
    };
    let Some(bytes) = intact_copy::<T>(path) else { return Ok(file) };
    warn!(path = %path.display(), wrong, "a damaged file is replaced by its copy");
    put_in_place(&write_new(path, &bytes)?, path, None)?;
    Ok(Ok(bytes))
}

/// Err: there is a copy, and it says something else than the file.
pub(crate) fn check(path: &Path) -> Result<(), String> {
    let (copy_path, Ok(bytes)) = (path_of(path), fs::read(path)) else { return Ok(()) };
    match fs::read(&copy_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(copy) if copy == bytes => Ok(()),
        _ => Err(format!("its copy says something else. copy=`{}`", copy_path.display())),
    }
}

/// Takes the copy away. False: there was none.
pub(super) fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path_of(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => removed.map(|()| true),
    }
}

/// Makes the copy, which is not there, of a file that holds `bytes`. A file is as good without one: failures are only told.
pub(super) fn write(path: &Path, bytes: &[u8]) {
    let copy_path = path_of(path);
    let make = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&copy_path)?.write_all(bytes);
    if let Err(error) = make() {
        warn!(path = %copy_path.display(), %error, "a file has no copy that could stand in for it");
        let _ = fs::remove_file(&copy_path); // Half of one is none either.
    }
}

fn settle_copy(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::read(path_of(path)).is_ok_and(|copy| copy == bytes) {
        return Ok(());
    }
    if remove(path)? {
        sync_parent(path)?;
    }
    if unseal(bytes).is_ok_and(|unsealed| unsealed.has_checksum) {
        write(path, bytes);
    }
    Ok(())
}

/// What is wrong with the file, if it is damage.
fn damage<T: DeserializeOwned>(file: &io::Result<Vec<u8>>) -> Option<String> {
    match file.as_ref().map(|bytes| unseal(bytes)) {
        Ok(Ok(unsealed)) if unsealed.has_checksum => None,
        Ok(unsealed) => unsealed.and_then(|unsealed| unsealed.content::<T>()).err(),
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied].contains(&error.kind()) => None,
        Err(error) => Some(error.to_string()),
    }
}

/// The copy, if it is whole and holds a `T`.
fn intact_copy<T: DeserializeOwned>(path: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(path_of(path)).ok()?;
    let unsealed = unseal(&bytes).ok().filter(|unsealed| unsealed.has_checksum)?;
    unsealed.content::<T>().ok().map(|_| bytes)
}

fn path_of(path: &Path) -> PathBuf {
    beside(path, ".copy")
}

#[cfg(test)]
mod tests {
    //! Goal: a copy stands in for what is damaged, and is never of before. Method: real files, damaged, taken away and made old.

    use serde::{Deserialize, Serialize};

    use super::super::parse;
    use super::*;
    use crate::failpoint::Failpoint;

    const POINTS: [Failpoint; 2] = [Failpoint::MetadataBeforeRename, Failpoint::MetadataRenamed];

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Content {
        number: u64,
    }

    struct Rig {
        _dir: tempfile::TempDir,
        path: PathBuf,
    }

    impl Rig {
        /// A file and its copy.
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let rig = Rig { path: dir.path().join("file.json"), _dir: dir };
            rig.save(1);
            rig
        }

        fn save(&self, number: u64) {
            self.try_save(number).expect("written");
        }

        fn try_save(&self, number: u64) -> io::Result<()> {
            super::super::write(&self.path, &Content { number }, POINTS)
        }

        /// What a start finds; `None`: nothing, or something damaged.
        fn start(&self) -> Option<u64> {
            let file = settle::<Content>(&self.path).expect("settled").ok();
            assert_eq!(file, fs::read(&self.path).ok());
            Some(parse::<Content>(&file?).ok()?.number)
        }
    }

    #[test]
    fn a_damaged_file_is_replaced_by_its_copy() {
        let rig = Rig::new();
        rig.save(2);
        let bytes = fs::read(&rig.path).unwrap();
        assert_eq!(fs::read(path_of(&rig.path)).unwrap(), bytes);
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 4;
            for damaged in [&flipped[..], &bytes[..at]] {
                fs::write(&rig.path, damaged).unwrap();
                assert_eq!(read_either::<Content>(&rig.path).unwrap(), bytes);
            }
        }
        assert_ne!(fs::read(&rig.path).unwrap(), bytes, "reading changes nothing");
        assert_eq!(rig.start(), Some(2));
        assert_eq!(fs::read(&rig.path).unwrap(), bytes);
    }

    #[test]
    fn a_copy_that_is_missing_or_wrong_is_written_at_a_start_and_believed_by_nobody() {
        let rig = Rig::new();
        let bytes = fs::read(&rig.path).unwrap();
        let copy = path_of(&rig.path);
        for wrong in [&b""[..], b"{\"number\": 7}", &bytes[..bytes.len() - 3]] {
            fs::write(&copy, wrong).unwrap();
            assert!(check(&rig.path).unwrap_err().contains("file.json.copy"));
            fs::write(&rig.path, b"{").unwrap();
            assert_eq!(rig.start(), None);
            fs::write(&rig.path, &bytes).unwrap();
            assert_eq!(rig.start(), Some(1));
            assert_eq!(check(&rig.path), Ok(()));
            assert_eq!(fs::read(&copy).unwrap(), bytes);
        }
        fs::remove_file(&copy).unwrap();
        assert_eq!(check(&rig.path), Ok(()));
        assert_eq!(rig.start(), Some(1));
        assert_eq!(fs::read(&copy).unwrap(), bytes);
    }

    #[test]
    fn what_a_later_build_has_written_or_a_hand_has_changed_is_no_damage() {
        let rig = Rig::new();
        let copy = fs::read(path_of(&rig.path)).unwrap();
        super::super::write_mark(&rig.path, &serde_json::json!({ "number": 2, "more": 3 })).unwrap();
        assert_eq!(rig.start(), None);
        assert_ne!(fs::read(path_of(&rig.path)).unwrap(), copy, "a copy of before is believed by nobody");
        fs::write(&rig.path, b"{\"number\": 4}").unwrap();
        assert_eq!(rig.start(), Some(4));
        assert!(!path_of(&rig.path).exists());
        fs::write(&rig.path, b"{\"number\": 4").unwrap();
        assert_eq!(rig.start(), None);
    }

    #[test]
    fn a_copy_goes_before_the_file_is_another_and_no_file_comes_back() {
        let rig = Rig::new();
        fs::create_dir(beside(&rig.path, ".new")).unwrap(); // The new file cannot be written.
        assert!(rig.try_save(2).is_err());
        assert_eq!(fs::read(path_of(&rig.path)).unwrap(), fs::read(&rig.path).unwrap(), "nothing has changed");
        fs::remove_dir(beside(&rig.path, ".new")).unwrap();
        fs::remove_file(path_of(&rig.path)).unwrap();
        fs::create_dir(path_of(&rig.path)).unwrap(); // It cannot be taken away.
        assert!(rig.try_save(2).is_err() && settle::<Content>(&rig.path).is_err());
        fs::remove_dir(path_of(&rig.path)).unwrap();
        assert_eq!(rig.start(), Some(1));
        rig.save(3);
        fs::remove_file(&rig.path).unwrap();
        assert_eq!((rig.start(), check(&rig.path)), (None, Ok(())));
        assert!(!rig.path.exists());
    }
}
