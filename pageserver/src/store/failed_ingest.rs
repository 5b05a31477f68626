//! What a failed ingestion leaves: the mark `<dir>/ingest_failed`, and a MANIFEST that may name files that are not there.
//!
//! When RocksDB cannot sync the MANIFEST it takes the files of the ingestion back, though the record that names them may be on disk all the same; such a store does not open, or opens and
//! meets the missing file later. Who asked for the ingestion was told that it failed. So its record goes before RocksDB is opened again.
//!
//! - The mark says how long the MANIFEST was before; it is set only if an ingestion may stand behind that. Ingestions come one after the other, and after one that is marked there is none
//!   before the store is opened again. (RocksDB reserves file numbers in the MANIFEST before it looks whether it can take the files: that is no ingestion yet.)
//! - **Never:** a record goes that is before that, that is no ingestion's, or all of whose files are there. What follows it in the same MANIFEST was written with it or not at all, and goes
//!   too: after a failed sync RocksDB writes nothing more to that MANIFEST (version_set.cc, ProcessManifestWrites).
//! - The MANIFEST as it was stays as `<dir>/MANIFEST-N.taken-back`.
//!
//! ```text
//! {"crc32c": "...", "format": 1, "manifest": "MANIFEST-000005", "length": 1234}
//! ```

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::manifest;
use crate::sealed_file::{self, Sealed};

const FILE_NAME: &str = "ingest_failed";
/// How often the MANIFEST is looked at until its last record is whole.
const LOOKS: u32 = 20;
const LOOK_INTERVAL: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 50 });

/// The MANIFEST as it was before an ingestion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ManifestBefore {
    format: u32,
    manifest: String,
    length: u64,
}

impl Sealed for ManifestBefore {
    const FORMAT: u32 = 1;

    fn format(&self) -> u32 {
        self.format
    }
}

impl ManifestBefore {
    /// As it is now.
    pub fn now(rocks_dir: &Path) -> io::Result<Self> {
        let manifest = manifest::current(rocks_dir)?;
        let length = fs::metadata(rocks_dir.join(&manifest))?.len();
        Ok(ManifestBefore { format: Self::FORMAT, manifest, length })
    }

    /// Sets the mark in `dir`, durably, if the MANIFEST may have the ingestion. Best effort: the disk fails just now; without it the store may not open.
    /// False: the MANIFEST has nothing of it, and nothing need be taken back.
    #[must_use]
    pub fn mark_if_changed(&self, dir: &Path, rocks_dir: &Path) -> bool {
        let mark = || match self.where_it_may_be(rocks_dir)? {
            Some(place) => sealed_file::write_mark(&dir.join(FILE_NAME), &place).map(|()| true),
            None => Ok(false),
        };
        mark().unwrap_or_else(|error: io::Error| {
            tracing::error!(%error, dir = %dir.display(), "the mark of a failed ingestion cannot be set");
            true
        })
    }

    /// Where the ingestion may stand in the MANIFEST: behind the length, if a record of one is there, or one that is not whole. `None`: it is not there.
    fn where_it_may_be(&self, rocks_dir: &Path) -> io::Result<Option<Self>> {
        let mut looks_left = LOOKS;
        loop {
            let now = Self::now(rocks_dir)?;
            if now.manifest == self.manifest && now.length <= self.length {
                return Ok(None);
            }
            let log = fs::read(rocks_dir.join(&now.manifest))?;
            let records = manifest::records(&log);
            let is_whole = records.last().is_some_and(|last| last.end == log.len());
            looks_left -= 1;
            if !is_whole && looks_left > 0 {
                // A compaction may be writing just now.
                std::thread::sleep(LOOK_INTERVAL);
                continue;
            }
            if now.manifest != self.manifest {
                // Begun since, with all that was before in its first records. If the ingestion is there it is the last, and its files are gone.
                return match records.last() {
                    Some(last) if last.start > 0 && is_missing(rocks_dir, &last.payload)? => {
                        Ok(Some(ManifestBefore { length: last.start as u64, ..now }))
                    }
                    _ => Ok(None),
                };
            }
            let mut behind = records.iter().filter(|record| record.start as u64 >= self.length);
            let is_there = behind.any(|record| manifest::files_ingested(&record.payload).is_some());
            return Ok((is_there || !is_whole).then(|| self.clone()));
        }
    }
}

/// True if an ingestion has failed, and nobody has looked since.
pub(super) fn is_marked(dir: &Path) -> bool {
    dir.join(FILE_NAME).exists()
}

/// Takes the mark away, durably. To be called when RocksDB is open.
pub(super) fn clear_mark(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(FILE_NAME)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome.and_then(|()| File::open(dir)?.sync_all()),
    }
}

/// Takes a failed ingestion back, if there is a mark of one: to be called before RocksDB is opened.
pub(super) fn take_back(dir: &Path, rocks_dir: &Path) -> io::Result<()> {
    let Some(before) = sealed_file::read::<ManifestBefore>(&dir.join(FILE_NAME))? else { return Ok(()) };
    if manifest::current(rocks_dir)? != before.manifest {
        return Ok(()); // RocksDB has begun a new one since, without the ingestion.
    }
    let path = rocks_dir.join(&before.manifest);
    let log = fs::read(&path)?;
    for record in manifest::records(&log).iter().filter(|record| record.start as u64 >= before.length) {
        if is_missing(rocks_dir, &record.payload)? {
            let cut = record.start;
            tracing::warn!(manifest = %path.display(), cut, "a failed ingestion is taken back: its record in the MANIFEST goes");
            write_durably(&dir.join(format!("{}.taken-back", before.manifest)), &log)?;
            return write_durably(&path, &log[..cut]);
        }
    }
    Ok(())
}

/// True for the record of an ingestion of which a file is not there. Err: nobody knows.
fn is_missing(rocks_dir: &Path, payload: &[u8]) -> io::Result<bool> {
    for number in manifest::files_ingested(payload).unwrap_or_default() {
        match fs::symlink_metadata(rocks_dir.join(format!("{number:06}.sst"))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
    Ok(false)
}

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, bytes)?;
    File::open(&new)?.sync_all()?;
    fs::rename(&new, path)?;
    sealed_file::sync_parent(path)
}

#[cfg(test)]
mod tests {
    //! Goal: nothing goes but the record of a failed ingestion. Method: a MANIFEST made by hand, with the file and without, before the mark's length and behind it.

    use super::*;

    /// Adds an SST file.
    fn addition(number: u8) -> Vec<u8> {
        vec![103, 6, number, 77, 1, 65, 1, 66, 8, 8, 1, 200, 1, 1]
    }

    struct Rig {
        dir: tempfile::TempDir,
    }

    impl Rig {
        fn new() -> Self {
            let rig = Rig { dir: tempfile::tempdir().expect("a directory") };
            fs::create_dir(rig.rocks_dir()).expect("made");
            fs::write(rig.rocks_dir().join("CURRENT"), "MANIFEST-000005\n").expect("written");
            rig.append(&[3, 9]);
            rig
        }

        fn rocks_dir(&self) -> std::path::PathBuf {
            self.dir.path().join("rocksdb")
        }

        fn log(&self) -> Vec<u8> {
            fs::read(self.rocks_dir().join("MANIFEST-000005")).unwrap_or_default()
        }

        fn append(&self, payload: &[u8]) {
            let mut log = self.log();
            manifest::append(&mut log, payload);
            fs::write(self.rocks_dir().join("MANIFEST-000005"), log).expect("written");
        }

        fn make_file(&self, number: u8) {
            fs::write(self.rocks_dir().join(format!("{number:06}.sst")), "").expect("written");
        }

        fn take_back(&self) -> Vec<u8> {
            take_back(self.dir.path(), &self.rocks_dir()).expect("taken back");
            self.log()
        }
    }

    #[test]
    fn the_failed_one_goes_with_what_follows_and_nothing_before() {
        let rig = Rig::new();
        rig.append(&addition(11)); // Acknowledged, and its file is lost: damage, which stays.
        let whole = rig.log();
        let before = ManifestBefore::now(&rig.rocks_dir()).expect("read");
        let mark = || before.mark_if_changed(rig.dir.path(), &rig.rocks_dir());
        let is_marked = || rig.dir.path().join(FILE_NAME).exists();
        assert!(!mark() && !is_marked(), "nothing was written");
        rig.append(&[3, 20]);
        assert!(!mark() && !is_marked(), "file numbers were reserved");
        let whole_with_numbers = rig.log();
        rig.append(&addition(12));
        rig.append(&[6, 6, 3, 103, 6, 13, 77, 1, 65, 1, 66, 8, 8, 1, 200, 1, 1]); // A compaction that was written with it.
        let failed = rig.log();
        assert_eq!(rig.take_back(), failed, "no mark");
        assert!(mark() && is_marked());
        rig.make_file(12);
        assert_eq!(rig.take_back(), failed, "the file is there");
        fs::remove_file(rig.rocks_dir().join("000012.sst")).expect("removed");
        assert_eq!(rig.take_back(), whole_with_numbers);
        assert!(whole_with_numbers.starts_with(&whole));
        assert_eq!(fs::read(rig.dir.path().join("MANIFEST-000005.taken-back")).expect("kept"), failed);
        assert_eq!(rig.take_back(), whole_with_numbers, "once");
        clear_mark(rig.dir.path()).expect("cleared");
        clear_mark(rig.dir.path()).expect("there is none");
    }

    #[test]
    fn a_record_that_was_cut_off_may_be_one() {
        let rig = Rig::new();
        let before = ManifestBefore::now(&rig.rocks_dir()).expect("read");
        let length = rig.log().len();
        rig.append(&addition(12));
        let whole = rig.log();
        for end in length + 1..whole.len() {
            fs::write(rig.rocks_dir().join("MANIFEST-000005"), &whole[..end]).expect("written");
            assert!(before.mark_if_changed(rig.dir.path(), &rig.rocks_dir()), "{end}");
        }
    }

    #[test]
    fn a_new_manifest_may_have_it_as_its_last_record() {
        for has_file in [true, false] {
            let rig = Rig::new();
            let before = ManifestBefore::now(&rig.rocks_dir()).expect("read");
            let mut log = Vec::new();
            manifest::append(&mut log, &[3, 9]);
            let snapshot = log.clone();
            manifest::append(&mut log, &addition(12));
            let path = rig.rocks_dir().join("MANIFEST-000007");
            fs::write(&path, &log).expect("written");
            fs::write(rig.rocks_dir().join("CURRENT"), "MANIFEST-000007\n").expect("written");
            if has_file {
                rig.make_file(12);
            }
            assert_eq!(before.mark_if_changed(rig.dir.path(), &rig.rocks_dir()), !has_file);
            take_back(rig.dir.path(), &rig.rocks_dir()).expect("taken back");
            assert_eq!(fs::read(&path).expect("read"), if has_file { log } else { snapshot });
        }
    }

    #[test]
    fn a_new_manifest_does_not_have_it() {
        let rig = Rig::new();
        let before = ManifestBefore::now(&rig.rocks_dir()).expect("read");
        rig.append(&addition(12));
        assert!(before.mark_if_changed(rig.dir.path(), &rig.rocks_dir()));
        fs::write(rig.rocks_dir().join("MANIFEST-000007"), "").expect("written");
        fs::write(rig.rocks_dir().join("CURRENT"), "MANIFEST-000007\n").expect("written");
        let log = rig.log();
        assert_eq!(rig.take_back(), log);
    }
}
