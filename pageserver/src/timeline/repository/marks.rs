//! Marks in a timeline's directory: what is being done to it, so that the next start goes on with it after a crash.
//!
//! - A mark is durable before the first step and holds the number whose versions are to be taken away. It appears whole or not at all: one that could not be set
//!   is not there, for what it says would be done at the next start.
//! - A directory is renamed before it is removed: none is ever found half removed under its own name.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use keyenc::TimelineNo;
use postgres_ffi::Lsn;
use tracing::warn;

use super::branching::NEW_DIR_PREFIX;
use super::{Repository, RepositoryError};
use crate::failpoint::Failpoint;
use crate::store::StoreError;

/// An import is under way.
pub(super) const IMPORTING: &str = "importing";
/// The timeline goes away with everything of it.
pub(super) const DELETING: &str = "deleting";
/// The branch gets a new number; the versions under the number in the mark go away.
pub(super) const RESETTING: &str = "resetting";
/// Directories that are being removed begin with this; no timeline id does.
pub(super) const OLD_DIR_PREFIX: &str = "old-";

/// True for the name of a directory that is being made or removed: no timeline of its own.
pub(super) fn is_left_over(name: &OsStr) -> bool {
    [NEW_DIR_PREFIX, OLD_DIR_PREFIX].iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
}

/// The mark in `dir` that says that all of the timeline goes. One without a number, as earlier builds left it where it could not be written, says nothing: nothing had begun.
pub(super) fn to_be_taken_away(dir: &Path) -> Option<&'static str> {
    let has_number = |mark: &str| !matches!(read_mark(dir, mark), Ok(None));
    [IMPORTING, DELETING].into_iter().find(|mark| dir.join(mark).exists() && (*mark == IMPORTING || has_number(mark)))
}

/// Sets the mark `name` in `dir`, durably. After an error it is not there.
pub(super) fn set_mark(dir: &Path, name: &str, no: u32) -> Result<(), RepositoryError> {
    let (path, new) = (dir.join(name), dir.join(format!("{name}.new")));
    let write = || {
        let mut file = File::create(&new)?;
        Failpoint::MarkBeforeSync.pass();
        writeln!(file, "{no}")?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()?;
        dir.parent().map_or(Ok(()), |above| File::open(above)?.sync_all())
    };
    if let Err(source) = write() {
        // Whatever of it is on disk: it must not be carried out.
        for made in [&path, &new] {
            if let Err(error) = std::fs::remove_file(made)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                warn!(mark = %made.display(), %error, "a mark that could not be set cannot be removed: remove it before the next start");
            }
        }
        if let Err(error) = File::open(dir).and_then(|dir| dir.sync_all()) {
            warn!(dir = %dir.display(), %error, "whether a mark that could not be set is gone from the disk is not known: look before the next start");
        }
        return Err(RepositoryError::Io { doing: "mark a timeline", path, source });
    }
    Failpoint::MarkSet.pass();
    Ok(())
}

/// Takes the mark away, durably.
pub(super) fn clear_mark(dir: &Path, name: &str) -> Result<(), RepositoryError> {
    let path = dir.join(name);
    let clear = || {
        std::fs::remove_file(&path)?;
        Failpoint::MarkRemoved.pass();
        File::open(dir)?.sync_all()
    };
    clear().map_err(|source| RepositoryError::Io { doing: "take a mark away", path: path.clone(), source })?;
    Failpoint::MarkCleared.pass();
    Ok(())
}

/// The number in the mark. `None`: an empty mark, which a crash has cut off before anything was done.
pub(super) fn read_mark(dir: &Path, name: &str) -> Result<Option<TimelineNo>, RepositoryError> {
    let path = dir.join(name);
    let text = std::fs::read_to_string(&path);
    let text = text.map_err(|source| RepositoryError::Io { doing: "read a mark", path, source })?;
    Ok(text.trim().parse().ok().map(TimelineNo))
}

impl Repository {
    /// Ends what the mark `name` in `dir` has begun: the versions go, those too that a reset before it has not come to, then the directory.
    /// False: versions stay, see [`Repository::take_away_or_leave`].
    pub(super) fn take_away(&self, dir: &Path, name: &str) -> Result<bool, RepositoryError> {
        let mut all_gone = true;
        for mark in [name, RESETTING].into_iter().filter(|mark| dir.join(mark).exists()) {
            if let Some(no) = read_mark(dir, mark)? {
                all_gone &= self.take_away_or_leave(no, mark == IMPORTING)?;
            }
        }
        Failpoint::DeleteVersionsGone.pass();
        self.remove_timeline_dir(dir)?;
        Ok(all_gone)
    }

    /// As [`Repository::take_away_versions`]. Versions that cannot be deleted, because a file of the store is damaged, are nobody's from now on: that is no reason to keep
    /// the timeline, nor for the server not to start.
    /// True: they are gone.
    pub(super) fn take_away_or_leave(&self, no: TimelineNo, unpublished: bool) -> Result<bool, RepositoryError> {
        match self.take_away_versions(no, unpublished) {
            Err(RepositoryError::Store(error @ (StoreError::Corrupt { .. } | StoreError::Read { .. }))) => {
                warn!(timeline_no = no.0, %error, "versions of a deleted timeline stay in a damaged file of the store; `pageserver mend` leaves them out");
                Ok(false)
            }
            outcome => outcome.map(|()| true),
        }
    }

    /// `unpublished`: there may be versions in memory without a watermark, as of an import. A branch gets its watermark before its first version; it may be in memory yet. On disk
    /// there may be versions without one too: a crash can have cut off a deletion whose first half took the watermark's file.
    pub(super) fn take_away_versions(&self, no: TimelineNo, unpublished: bool) -> Result<(), RepositoryError> {
        if unpublished || self.store.has_files(no) || self.store.timeline(no)?.last_record_lsn() > Lsn::ZERO {
            self.store.delete_timeline(no)?;
        }
        let mut timeline_no_max = self.timeline_no_max.lock();
        *timeline_no_max = no.0.max(*timeline_no_max);
        Ok(())
    }

    /// Removes a timeline's directory: under another name, so that none is found half removed.
    pub(super) fn remove_timeline_dir(&self, dir: &Path) -> Result<(), RepositoryError> {
        let io = |source| RepositoryError::Io { doing: "remove a timeline's directory", path: dir.to_owned(), source };
        let Some(id) = dir.file_name() else { return Ok(()) };
        let mut old_name = std::ffi::OsString::from(OLD_DIR_PREFIX);
        old_name.push(id);
        let old = self.timelines_dir.join(old_name);
        std::fs::rename(dir, &old).map_err(io)?;
        File::open(&self.timelines_dir).and_then(|above| above.sync_all()).map_err(io)?;
        Failpoint::DeleteDirRenamed.pass();
        // What is left of it goes at the next start.
        if let Err(error) = std::fs::remove_dir_all(&old) {
            warn!(dir = %old.display(), %error, "a directory that is not needed stays until the next start");
        }
        Failpoint::DeleteDirRemoved.pass();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a mark is there with its number or not at all. Method: a directory in which it cannot be written.

    use super::*;

    #[test]
    fn a_mark_that_could_not_be_set_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        set_mark(dir.path(), DELETING, 7).unwrap();
        assert_eq!(read_mark(dir.path(), DELETING).unwrap(), Some(TimelineNo(7)));
        assert_eq!(to_be_taken_away(dir.path()), Some(DELETING));
        clear_mark(dir.path(), DELETING).unwrap();
        // What it is written to cannot be opened; what it is to be called cannot be replaced.
        for in_the_way in ["deleting.new", "deleting"] {
            let in_the_way = dir.path().join(in_the_way);
            std::fs::create_dir(&in_the_way).unwrap();
            assert!(set_mark(dir.path(), DELETING, 7).is_err());
            std::fs::remove_dir(in_the_way).unwrap();
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
        // As earlier builds left it.
        std::fs::write(dir.path().join(DELETING), "").unwrap();
        assert_eq!(to_be_taken_away(dir.path()), None);
        std::fs::write(dir.path().join(IMPORTING), "").unwrap();
        assert_eq!(to_be_taken_away(dir.path()), Some(IMPORTING));
    }
}
