//! A store without those files of level 0 that cannot be opened. RocksDB looks into every file of level 0 with every read, so one that cannot be opened hides everything else.
//!
//! - A view is a directory of hard links with a MANIFEST of its own, to which one record is added: the files are not part of it. Nothing of the store itself is changed.
//! - **Never:** a view that still has a file that was to be taken out: who opens it looks.
//!
//! ```text
//! payload of the record: | 6 varint | level varint | file number varint |  for each file, then  | 200 varint | column family varint |
//! ```
//! RocksDB 11: db/version_edit.cc (Tag, EncodeTo), db/log_writer.cc.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rocksdb::LiveFile;

use super::manifest::{self, put_varint};
use super::mended::remove;

/// Tag of a file that goes.
const DELETED_FILE: u64 = 6;
/// Tag of the column family that the record is about.
const COLUMN_FAMILY: u64 = 200;
/// The first one that is made beside the default one.
const VERSIONS_FAMILY: u64 = 1;

/// Removed when dropped.
pub(super) struct Level0View {
    dir: PathBuf,
}

impl Level0View {
    /// Makes one in `dir`, in the place of what an earlier one has left there, of the RocksDB in `rocks_dir`, which nobody has open, without `files`.
    pub fn new(rocks_dir: &Path, dir: &Path, files: &[&LiveFile]) -> io::Result<Self> {
        remove(dir)?;
        fs::create_dir(dir)?;
        let view = Level0View { dir: dir.to_owned() };
        for entry in fs::read_dir(rocks_dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_sst =
                Path::new(&name).extension().is_some_and(|extension| extension == "sst" || extension == "blob");
            if is_sst {
                fs::hard_link(entry.path(), dir.join(&name))?;
            }
        }
        let name = manifest::current(rocks_dir)?;
        let mut log = fs::read(rocks_dir.join(&name))?;
        // Behind what was cut off nothing would be read.
        log.truncate(manifest::records(&log).last().map_or(0, |record| record.end));
        manifest::append(&mut log, &removal_of(files)?);
        fs::write(dir.join(&name), log)?;
        fs::write(dir.join("CURRENT"), name + "\n")?;
        Ok(view)
    }

    /// Where RocksDB finds it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Level0View {
    fn drop(&mut self) {
        // Best effort: what is left goes at the next start.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn removal_of(files: &[&LiveFile]) -> io::Result<Vec<u8>> {
    let mut payload = Vec::new();
    for file in files {
        let number = file.name.trim_start_matches('/').trim_end_matches(".sst").parse::<u64>();
        let number = number
            .map_err(|_| io::Error::other(format!("the name of an SST file is no number. file=`{}`", file.name)))?;
        put_varint(&mut payload, DELETED_FILE);
        put_varint(&mut payload, u64::try_from(file.level).unwrap_or(0));
        put_varint(&mut payload, number);
    }
    put_varint(&mut payload, COLUMN_FAMILY);
    put_varint(&mut payload, VERSIONS_FAMILY);
    Ok(payload)
}
