//! Small JSON files that say of themselves whether they are what was written: the files of timelines, tenants and leases, the mark of a paused compaction.
//!
//! - Written whole to a new file, fsynced and renamed, and the directory fsynced: a crash leaves the old or the new one.
//! - A checksum stands in the file: a flipped bit is an error and never another LSN. One without it, as earlier builds wrote them, is taken as it is;
//!   taking the field away is more than one bit.
//! - What a server cannot do without has a copy ([`copy`]); marks that stand only after damage have none.
//! - Readable by their owner alone: a connection string may hold a password.
//!
//! ```text
//! {"crc32c": "1c2d3e4f", "format": 1, ...}    CRC-32C over the other fields as compact JSON, their names in order
//! ```

pub(crate) mod copy;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::failpoint::Failpoint;

/// The field that holds the checksum.
const CHECKSUM_FIELD: &str = "crc32c";

/// What `bytes` hold. Err: what is wrong with them.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    unseal(bytes)?.content()
}

/// What bytes hold whose checksum is right, or that have none.
struct Unsealed {
    value: Value,
    has_checksum: bool,
}

impl Unsealed {
    fn content<T: DeserializeOwned>(self) -> Result<T, String> {
        serde_json::from_value(self.value).map_err(|error| error.to_string())
    }
}

/// Err: what is wrong with them.
fn unseal(bytes: &[u8]) -> Result<Unsealed, String> {
    let mut value: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let stored = value.as_object_mut().and_then(|fields| fields.remove(CHECKSUM_FIELD));
    if let Some(stored) = &stored {
        let computed = checksum(&value).map_err(|error| error.to_string())?;
        if stored.as_str() != Some(computed.as_str()) {
            return Err(format!(
                "its checksum is wrong: it was changed after it was written. stored=`{stored}`, computed=`{computed}`"
            ));
        }
    }
    Ok(Unsealed { value, has_checksum: stored.is_some() })
}

/// Replaces the file at `path`, and its copy; durable when it returns. After an error the old one or the new one is there, perhaps without a copy, and nothing else was changed.
/// `points` are passed right before and right after the new one takes the old one's name.
pub(crate) fn write<T: Serialize>(path: &Path, content: &T, points: [Failpoint; 2]) -> io::Result<()> {
    let bytes = to_bytes(content)?;
    let new = write_new(path, &bytes)?;
    copy::remove(path)?;
    points[0].pass();
    put_in_place(&new, path, Some(points[1]))?;
    copy::write(path, &bytes);
    Ok(())
}

/// As [`write()`], for a file that is written only after damage: no course of crashes comes there, and it has no copy.
pub(crate) fn write_mark<T: Serialize>(path: &Path, content: &T) -> io::Result<()> {
    put_in_place(&write_new(path, &to_bytes(content)?)?, path, None)
}

/// A durable file under another name than `path`, and that name.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    let new = beside(path, ".new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(new)
}

fn put_in_place(new: &Path, path: &Path, renamed: Option<Failpoint>) -> io::Result<()> {
    fs::rename(new, path)?;
    renamed.into_iter().for_each(Failpoint::pass);
    sync_parent(path)
}

/// Makes durable that the file has come, gone or been renamed.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// A content that says which format it has.
pub(crate) trait Sealed: Serialize + DeserializeOwned {
    /// Raised when an older server could misread it.
    const FORMAT: u32;

    /// The format that the file says it has.
    fn format(&self) -> u32;
}

/// What a [`KeptFile`] holds. Its default is what there is without a file.
pub(crate) trait Kept: Sealed + Clone + Default + PartialEq {
    /// Passed right before and right after a new file takes the old one's name, and when that is durable.
    const POINTS: [Failpoint; 3];
}

/// A file that one server keeps, and what is in it. A change counts once it is durable.
pub(crate) struct KeptFile<T> {
    path: PathBuf,
    content: Mutex<T>,
}

impl<T: Kept> KeptFile<T> {
    /// The file at `path`, which need not be there. Errors: [`io::ErrorKind::InvalidData`] if it is damaged, or of a format that is not known.
    pub(crate) fn load(path: PathBuf) -> io::Result<Self> {
        let file = copy::settle::<T>(&path)?;
        let content = Mutex::new(content_of(file)?.unwrap_or_default());
        Ok(KeptFile { path, content })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it. Nobody changes it meanwhile.
    pub(crate) fn content(&self) -> MutexGuard<'_, T> {
        self.content.lock()
    }

    /// Replaces the content, which the caller holds.
    pub(crate) fn replace(&self, content: &mut MutexGuard<'_, T>, new: T) -> io::Result<()> {
        let [before_rename, renamed, saved] = T::POINTS;
        write(&self.path, &new, [before_rename, renamed])?;
        saved.pass();
        **content = new;
        Ok(())
    }

    /// Writes the file again as it is known.
    pub(crate) fn write_again(&self) -> io::Result<()> {
        let mut content = self.content.lock();
        let known = content.clone();
        self.replace(&mut content, known)
    }

    /// Reads the file again, and its copy. Err: it is damaged, or says something else than is known.
    pub(crate) fn check(&self) -> Result<(), String> {
        let known = self.content.lock();
        let found: T = read(&self.path).map_err(|error| error.to_string())?.unwrap_or_default();
        if found == *known {
            copy::check(&self.path)
        } else {
            Err("it says something else than the server knows".to_owned())
        }
    }
}

/// What is in the file at `path`. `None`: there is no file. Errors: [`io::ErrorKind::InvalidData`] if it is damaged, or of a format that is not known.
pub(crate) fn read<T: Sealed>(path: &Path) -> io::Result<Option<T>> {
    content_of(fs::read(path))
}

fn content_of<T: Sealed>(file: io::Result<Vec<u8>>) -> io::Result<Option<T>> {
    let bytes = match file {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes?,
    };
    let content: T = parse(&bytes).map_err(|message| io::Error::new(io::ErrorKind::InvalidData, message))?;
    if content.format() == T::FORMAT {
        return Ok(Some(content));
    }
    let message =
        format!("a format that this release does not know. format=`{}`, known=`{}`", content.format(), T::FORMAT);
    Err(io::Error::new(io::ErrorKind::InvalidData, message))
}

fn to_bytes<T: Serialize>(content: &T) -> io::Result<Vec<u8>> {
    let mut value = serde_json::to_value(content)?;
    let checksum = checksum(&value)?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert(CHECKSUM_FIELD.to_owned(), checksum.into());
    }
    Ok(serde_json::to_vec_pretty(&value)?)
}

fn checksum(value: &Value) -> serde_json::Result<String> {
    Ok(format!("{:08x}", crc32c::crc32c(&serde_json::to_vec(value)?)))
}

#[cfg(test)]
mod tests {
    //! Goal: no flipped bit makes another content. Method: every bit of a file, and files of before.

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Content {
        format: u32,
        name: String,
        lsn: Option<String>,
        numbers: Vec<u64>,
    }

    fn content() -> Content {
        Content { format: 1, name: "main".to_owned(), lsn: Some("0/3000060".to_owned()), numbers: vec![u64::MAX, 0, 7] }
    }

    #[test]
    fn what_is_written_is_read_back_and_no_flipped_bit_is_believed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file.json");
        let points = [Failpoint::MetadataBeforeRename, Failpoint::MetadataRenamed];
        write(&path, &content(), points).expect("written");
        write(&path, &content(), points).expect("written again");
        let bytes = fs::read(&path).expect("read");
        assert_eq!(parse::<Content>(&bytes), Ok(content()));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(parse::<Content>(&flipped).is_err(), "{}", String::from_utf8_lossy(&flipped));
        }
    }

    #[test]
    fn a_file_without_a_checksum_is_one_of_before() {
        let bytes = serde_json::to_vec_pretty(&content()).expect("serialised");
        assert_eq!(parse::<Content>(&bytes), Ok(content()));
        assert!(parse::<Content>(b"[]").is_err());
        assert!(parse::<Content>(b"").is_err());
    }
}
