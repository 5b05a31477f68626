//! Whether compaction is paused, because it could not read a file of the store: the mark `<dir>/compaction_paused`.
//!
//! RocksDB stops when a compaction meets a damaged file, and after a restart it would meet the same file again: nothing could be ingested for long. With the mark
//! compaction is off from the next open on, so that flushes go on. Reads are as before; they get dearer with each file that is not merged.
//!
//! - The mark is durable before the store says that it takes no more writes.
//! - A failed write is no damage: the file that it names is not part of the store.
//! - A mark that cannot be read pauses as well.
//!
//! ```text
//! {"crc32c": "...", "format": 1, "file": "000012.sst", "cause": "compaction failed: Corruption: block checksum mismatch ..."}
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::cold_read::sst_file_in;
use super::db::Db;
use crate::sealed_file::{self, Sealed};

const FILE_NAME: &str = "compaction_paused";
const FORMAT: u32 = Pause::FORMAT;

/// Why compaction is paused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pause {
    format: u32,
    /// The file that could not be read; `None`: the mark does not tell.
    pub file: Option<String>,
    pub cause: String,
}

impl Sealed for Pause {
    const FORMAT: u32 = 1;

    fn format(&self) -> u32 {
        self.format
    }
}

/// The mark, and what it says.
pub(super) struct CompactionPause {
    path: PathBuf,
    pause: Mutex<Option<Pause>>,
}

impl CompactionPause {
    /// As the mark in `dir` says.
    pub fn load(dir: &Path) -> Self {
        let path = dir.join(FILE_NAME);
        let unreadable =
            |error| Some(Pause { format: FORMAT, file: None, cause: format!("the mark cannot be read: {error}") });
        let pause = sealed_file::read(&path).unwrap_or_else(unreadable);
        CompactionPause { path, pause: Mutex::new(pause) }
    }

    /// `None`: compaction is not paused.
    pub fn get(&self) -> Option<Pause> {
        self.pause.lock().clone()
    }

    pub fn is_set(&self) -> bool {
        self.pause.lock().is_some()
    }

    /// Sets the mark, durably.
    pub fn set(&self, new: Pause) -> io::Result<()> {
        let mut pause = self.pause.lock();
        sealed_file::write_mark(&self.path, &new)?;
        *pause = Some(new);
        Ok(())
    }

    /// Takes the mark away, durably.
    pub fn clear(&self) -> io::Result<()> {
        let mut pause = self.pause.lock();
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => sealed_file::sync_parent(&self.path)?,
        }
        *pause = None;
        Ok(())
    }
}

/// Sets the mark if a compaction has failed because it cannot read a file that is part of the store. What stopped the store, and what comes of it.
pub(super) fn pause_if_damaged(db: &Db, cause: String) -> String {
    if db.background_errors() == 0 {
        return cause;
    }
    // An ingestion is refused with the same words, should the log not have them.
    let said = [db.background_error(), cause.clone()];
    let of_store = |said: &String| sst_file_in(said).filter(|file| db.has_file(file)).map(str::to_owned);
    let Some((file, said)) = said.iter().find_map(|said| Some((of_store(said)?, said))) else { return cause };
    match db.pause().set(Pause { format: FORMAT, file: Some(file.clone()), cause: said.clone() }) {
        Ok(()) => format!(
            "{cause}; restart the server: ingest goes on then, and compaction is paused until `pagectl repair` finds that {file} is gone or can be read"
        ),
        Err(error) => {
            tracing::error!(%error, file, "compaction cannot be paused: it will meet the damaged file again after a restart");
            cause
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a mark is there or not, whatever a crash or a flipped bit has done to it. Method: every bit; what a crash leaves.

    use super::*;

    fn pause() -> Pause {
        Pause { format: FORMAT, file: Some("000012.sst".to_owned()), cause: "Corruption".to_owned() }
    }

    #[test]
    fn a_mark_lasts_until_it_is_taken_away() {
        let dir = tempfile::tempdir().expect("a directory");
        let marked = CompactionPause::load(dir.path());
        assert_eq!(marked.get(), None);
        marked.clear().expect("nothing to do");
        for _ in 0..2 {
            marked.set(pause()).expect("written");
            assert_eq!((marked.get(), CompactionPause::load(dir.path()).get()), (Some(pause()), Some(pause())));
        }
        marked.clear().expect("removed");
        assert_eq!((marked.get(), CompactionPause::load(dir.path()).get()), (None, None));
    }

    #[test]
    fn a_mark_that_a_crash_cut_off_is_none_and_does_not_stand_in_the_way() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(format!("{FILE_NAME}.new")), "{\"crc").expect("written");
        let marked = CompactionPause::load(dir.path());
        assert_eq!(marked.get(), None);
        marked.set(pause()).expect("written");
        assert_eq!(CompactionPause::load(dir.path()).get(), Some(pause()));
    }

    #[test]
    fn a_mark_that_cannot_be_read_pauses() {
        let dir = tempfile::tempdir().expect("a directory");
        CompactionPause::load(dir.path()).set(pause()).expect("written");
        let path = dir.path().join(FILE_NAME);
        let bytes = fs::read(&path).expect("read");
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &flipped).expect("written");
            let found = CompactionPause::load(dir.path()).get().expect("paused");
            assert!(found.file.is_none() && found.cause.contains("cannot be read"), "{found:?}");
        }
        CompactionPause::load(dir.path()).set(Pause { format: 2, ..pause() }).expect("written");
        assert!(CompactionPause::load(dir.path()).get().is_some_and(|pause| pause.cause.contains("format=`2`")));
    }
}
