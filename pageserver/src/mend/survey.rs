//! What can be read of a store, and what cannot.

use std::collections::HashMap;

use keyenc::{ENCODED_KEY_LEN, Key, Object, TimelineNo};
use postgres_ffi::Lsn;

use super::{MendError, MendProgress};
use crate::store::{ColdItem, ColdRead, LostStretches, StoreError, UnreadableRange, Watermark};

/// How many bytes lie between two calls of `progress`.
const PROGRESS_BYTES: u64 = 4 << 20;

/// All that could be read, in short.
pub(super) struct Survey {
    pub versions: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    pub unreadable: Vec<UnreadableRange>,
    /// The newest watermark of each number that could be read, with what was lost before.
    pub watermarks: HashMap<TimelineNo, (Watermark, LostStretches)>,
    /// LSN of the newest control file of each number that could be read.
    pub control_files: HashMap<TimelineNo, Lsn>,
}

/// Reads everything. Errors: something is in the store that nobody writes.
pub(super) fn survey(source: &ColdRead<'_>, progress: &mut dyn FnMut(MendProgress)) -> Result<Survey, MendError> {
    let mut survey = Survey {
        versions: 0,
        bytes: 0,
        unreadable: Vec::new(),
        watermarks: HashMap::new(),
        control_files: HashMap::new(),
    };
    let [watermark_key, control_file_key] = [Object::Watermark, Object::ControlFile].map(Key::from);
    let mut progress = Progress::new("reading what can be read", source.bytes_estimated().unwrap_or(0), progress);
    source.versions(None, &mut |item| {
        match item {
            ColdItem::Version { version, value } => {
                let bytes = (ENCODED_KEY_LEN + value.len()) as u64;
                survey.versions += 1;
                survey.bytes += bytes;
                progress.add(bytes);
                if version.key == control_file_key {
                    survey.control_files.insert(version.timeline, version.lsn);
                }
                if version.key == watermark_key {
                    survey.watermarks.insert(version.timeline, Watermark::decode_with_lost(value)?);
                }
            }
            ColdItem::Unreadable(range) => survey.unreadable.push(range),
            item => return Err(no_version(&item)),
        }
        Ok(())
    })?;
    Ok(survey)
}

/// What nobody writes: damage that no checksum shows, or a fault. It is not copied, and nothing is guessed.
pub(super) fn no_version(item: &ColdItem<'_>) -> StoreError {
    StoreError::Corrupt { detail: format!("something that nobody writes: {item:?}") }
}

/// Tells how far something is, now and then.
pub(super) struct Progress<'a> {
    doing: &'static str,
    bytes: u64,
    bytes_total: u64,
    told_at: u64,
    tell: &'a mut dyn FnMut(MendProgress),
}

impl<'a> Progress<'a> {
    pub fn new(doing: &'static str, bytes_total: u64, tell: &'a mut dyn FnMut(MendProgress)) -> Self {
        Progress { doing, bytes: 0, bytes_total, told_at: 0, tell }
    }

    pub fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.bytes - self.told_at >= PROGRESS_BYTES {
            self.told_at = self.bytes;
            (self.tell)(MendProgress { doing: self.doing, bytes: self.bytes, bytes_total: self.bytes_total });
        }
    }
}
