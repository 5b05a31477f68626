//! A new store made of what could be read of a damaged one, and how it takes that one's place. While no server runs.
//!
//! - Written beside the store as `DIR.mending`; when all of it is durable it becomes `DIR.mended`. From then on the next open puts it into the store's place, whatever
//!   crashed before: the old store is moved to `DIR.damaged-N`, and nobody changes a file of it.
//! - A copy that was not finished is removed: its source is whole.
//! - **Never:** an empty store in the place of one that was moved aside.
//! - Versions come in the order of keys, so files do not overlap and go to the last level at once.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use keyenc::{Kind, TimelineNo, VersionKey};

use super::db::{Db, ROCKS_DIR};
use super::failed_ingest;
use super::file_set::{FileSet, write_error};
use super::watermark::watermark_key;
use super::{LostStretches, StoreConfig, StoreError, Watermark};

const MENDING: &str = "mending";
const MENDED: &str = "mended";
const VIEW: &str = "view";
const DAMAGED: &str = "damaged-";
/// Someone may have removed the first ones.
const ASIDES_LOOKED_AT: usize = 64;

/// Where a view of the store in `dir` may be made; removed at the next open.
pub(super) fn view_dir(dir: &Path) -> PathBuf {
    beside(dir, VIEW)
}

/// A store that is being written. Dropped before [`MendedStore::finish`]: nothing has happened.
pub struct MendedStore {
    /// The store whose place it takes.
    dir: PathBuf,
    /// `None`: finished.
    db: Option<Db>,
}

impl MendedStore {
    /// Begins one that is to take the place of the store in `dir`, a directory of its own and on the disk of the one above, else it could not. Errors: `Open`.
    pub fn begin(dir: &Path, config: &StoreConfig) -> Result<Self, StoreError> {
        check_can_be_renamed(dir).map_err(|error| refused(dir, &error))?;
        let mending = beside(dir, MENDING);
        remove(&mending).map_err(|error| refused(dir, &error))?;
        Ok(MendedStore { dir: dir.to_owned(), db: Some(Db::open(&mending, config)?) })
    }

    /// Begins the versions of a timeline.
    pub fn begin_timeline(&self, timeline: TimelineNo) -> MendedTimeline<'_> {
        let db = self.db.as_ref().expect("only finish takes it");
        MendedTimeline { db, timeline, files: FileSet::for_last_level(db, timeline) }
    }

    /// Puts it into the old store's place. Where that is now. Errors: `Open`: which of the two the next open takes depends on how far this came; both are whole.
    pub fn finish(mut self) -> Result<PathBuf, StoreError> {
        self.db = None; // Closed; all of it was durable with each timeline.
        let (mending, mended) = (beside(&self.dir, MENDING), beside(&self.dir, MENDED));
        let taken = rename(&mending, &mended).and_then(|()| take_place(&self.dir));
        taken.map_err(|error| refused(&self.dir, &error))
    }
}

impl Drop for MendedStore {
    fn drop(&mut self) {
        if self.db.take().is_some() {
            // Best effort: what is left is removed when the store is opened.
            let _ = remove(&beside(&self.dir, MENDING));
        }
    }
}

fn check_can_be_renamed(dir: &Path) -> io::Result<()> {
    let here = fs::symlink_metadata(dir)?;
    let above = dir.parent().map_or(Ok(here.dev()), |above| fs::metadata(above).map(|above| above.dev()))?;
    if here.is_symlink() || here.dev() != above {
        return Err(io::Error::other(
            "a symbolic link or a mount point cannot be replaced by a mended store; move the store into the data directory, or the data directory as a whole",
        ));
    }
    Ok(())
}

/// The versions of one timeline on their way.
pub struct MendedTimeline<'a> {
    db: &'a Db,
    timeline: TimelineNo,
    files: FileSet<'a>,
}

impl MendedTimeline<'_> {
    /// Adds a version. Requires: versions come in the order of keys, and are of this timeline; no watermark is among them. Errors: `Write`.
    pub fn put(&mut self, version: &VersionKey, value: &[u8]) -> Result<(), StoreError> {
        assert!(version.timeline == self.timeline && version.key != watermark_key(), "{version:?}");
        self.files.put(&version.key, version.lsn, version.kind, value).map_err(|error| write_error(&error))
    }

    /// Ends the timeline: its data go as far as `watermark`, and `lost` is what is not there. Durable when it returns. Bytes of its files. Errors: `Write`.
    pub fn finish(mut self, watermark: Watermark, lost: &LostStretches) -> Result<u64, StoreError> {
        self.files.close_file().map_err(|error| write_error(&error))?;
        let bytes = self.files.bytes;
        self.files.ingest().map_err(|error| write_error(&error))?;
        let mut files = FileSet::for_last_level(self.db, self.timeline);
        // Nothing is said of chains: each is looked at when it is changed for the first time.
        let value = watermark.encode(None, lost);
        let lsn = watermark.last_record_lsn;
        let put = files.put(&watermark_key(), lsn, Kind::Image, &value).and_then(|()| files.close_file());
        put.map_err(|error| write_error(&error))?;
        files.ingest().map_err(|error| write_error(&error))?;
        Ok(bytes)
    }
}

/// Ends what a mend that crashed has left beside the store in `dir`. Errors: `Open`, also if there is no store in its place although there was one.
pub(crate) fn settle(dir: &Path) -> Result<(), StoreError> {
    let settle = || {
        remove(&beside(dir, MENDING))?;
        remove(&view_dir(dir))?;
        failed_ingest::take_back(dir, &dir.join(ROCKS_DIR))?;
        if beside(dir, MENDED).exists() {
            let aside = take_place(dir)?;
            tracing::warn!(aside = %aside.display(), "a mended store was put into its place");
        }
        if !dir.exists() {
            let is_aside = |aside: &PathBuf| aside.exists();
            if let Some(aside) = asides(dir).take(ASIDES_LOOKED_AT).find(is_aside) {
                let cause = format!(
                    "the store is not there, but one that was moved aside is: move it back. aside=`{}`",
                    aside.display()
                );
                return Err(io::Error::other(cause));
            }
        }
        Ok(())
    };
    settle().map_err(|error| refused(dir, &error))
}

/// True if [`settle`] has something to do that changes the store: as it is, it is not what the next start would open.
pub(crate) fn is_unsettled(dir: &Path) -> bool {
    failed_ingest::is_marked(dir) || beside(dir, MENDED).exists()
}

/// Where the old store is now.
fn take_place(dir: &Path) -> io::Result<PathBuf> {
    let is_free = |aside: &PathBuf| !aside.exists();
    let mut aside = asides(dir).find(is_free).unwrap_or_default();
    if dir.exists() {
        rename(dir, &aside)?;
    } else if let Some(moved) = asides(dir).take_while(|aside| aside.exists()).last() {
        aside = moved; // A crash came between the two.
    }
    rename(&beside(dir, MENDED), dir)?;
    Ok(aside)
}

/// Names for stores that were moved aside.
fn asides(dir: &Path) -> impl Iterator<Item = PathBuf> {
    (1..u32::MAX).map(move |n| beside(dir, &format!("{DAMAGED}{n}")))
}

/// `DIR.SUFFIX`.
fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(dir);
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

/// With all that is in it; it need not be there.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// Durable when it returns.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    to.parent().map_or(Ok(()), |above| File::open(above)?.sync_all())
}

fn refused(dir: &Path, error: &io::Error) -> StoreError {
    StoreError::Open { dir: dir.to_owned(), cause: error.to_string() }
}
