//! Everything that RocksDB has on disk, read again from the beginning and past every cache: what a check of the whole store is made of.
//!
//! - A second, read-only RocksDB is opened on the same directory: CURRENT, MANIFEST, indexes and blocks are read anew, each against its checksum.
//!   Where the file system can, past the page cache too, so that it is the disk that is read, and nothing that is hot is pushed out.
//! - It sees the store as it was when it was opened; files that compaction has replaced since stay until it is dropped.
//! - Damage ends nothing: what cannot be read is told as a range of keys, and reading goes on behind it.
//! - What lies below a range deletion is not read: nobody else reads it either.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use keyenc::{ENCODED_KEY_LEN, Kind, TimelineNo, VersionKey};
use postgres_ffi::Lsn;
use rocksdb::{Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBRawIterator, LiveFile, Options, ReadOptions};

use super::db::{Db, ROCKS_DIR, VERSIONS, options, read_error};
use super::level0_view::Level0View;
use super::manifest;
use super::mended::view_dir;
use super::version_bound::VersionBound;
use super::watermark::watermark_key;
use super::{Store, StoreConfig, StoreError};

/// Indexes of the files that are being read; blocks of data are not kept.
const BLOCK_CACHE_BYTES: usize = 8 << 20;
/// A sequential read asks the disk for so much at once.
const READAHEAD_BYTES: usize = 2 << 20;
/// After a failure.
const VERSIONS_WITHOUT_READAHEAD: usize = 10_000;

type KeyBytes = [u8; ENCODED_KEY_LEN];

/// What a cold read meets.
#[derive(Debug)]
pub enum ColdItem<'a> {
    /// A version; keys come in ascending order.
    Version {
        /// Of what, when, which kind.
        version: VersionKey,
        /// Its value.
        value: &'a [u8],
    },
    /// Something whose key is none.
    BadKey {
        /// The bytes that should be one.
        key: &'a [u8],
        /// What is wrong with them.
        cause: String,
    },
    /// A key that does not come after the one before.
    OutOfOrder {
        /// The key.
        version: VersionKey,
    },
    /// A stretch that cannot be read.
    Unreadable(UnreadableRange),
}

/// A stretch of the store that cannot be read: versions may be in it, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadableRange {
    /// The last version that could be read before it; `None`: it begins with the first.
    pub after: Option<VersionKey>,
    /// The first version that could be read behind it; `None`: it goes to the end.
    pub before: Option<VersionKey>,
    /// The file, where RocksDB named one.
    pub file: Option<PathBuf>,
    /// What RocksDB said.
    pub cause: String,
}

/// The store as it was on disk at one moment.
pub struct ColdRead<'a> {
    /// First: closed before files may go.
    rocks: DB,
    /// `None`: no server runs that could delete any.
    _files: Option<FilesKept<'a>>,
    /// What is read in the store's place.
    _view: Option<Level0View>,
    /// What is not read, since it cannot be opened and nothing could be read beside it.
    left_out: Vec<UnreadableRange>,
}

/// While this lives, no file of RocksDB is deleted.
struct FilesKept<'a> {
    db: &'a Db,
}

impl Drop for FilesKept<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.db.rocks().enable_file_deletions() {
            tracing::warn!(%error, "obsolete files of the store stay until it is reopened");
        }
    }
}

impl Store {
    /// Opens the store's files once more, for a read past all caches. Errors: `Corrupt` when what RocksDB begins with (CURRENT, MANIFEST) is
    /// damaged; `Read`.
    pub fn cold_read(&self) -> Result<ColdRead<'_>, StoreError> {
        let inner = self.inner();
        let db = &inner.db;
        db.rocks().disable_file_deletions().map_err(|error| read_error(&error))?;
        let files = FilesKept { db };
        let rocks = open(db.rocks_dir(), &inner.config).map_err(|error| read_error(&error))?;
        Ok(ColdRead { rocks, _files: Some(files), _view: None, left_out: Vec::new() })
    }
}

impl ColdRead<'static> {
    /// Opens the files of the store in `dir`, which no server has open. Files of level 0 that cannot be opened are left out and told as stretches; for these a directory
    /// is made beside `dir`, and removed in the end. Nothing else is written. Errors: as [`Store::cold_read`], `Write`.
    pub fn of_stopped(dir: &Path, config: &StoreConfig) -> Result<Self, StoreError> {
        let rocks_dir = dir.join(ROCKS_DIR);
        manifest::check_tail(&rocks_dir).map_err(|detail| StoreError::Corrupt { detail })?;
        let opened = |dir: &Path| open(dir, config).map_err(|error| read_error(&error));
        let rocks = opened(&rocks_dir)?;
        let whole = |rocks| ColdRead { rocks, _files: None, _view: None, left_out: Vec::new() };
        if check_level0(&rocks).is_ok() {
            return Ok(whole(rocks));
        }
        let files = rocks.live_files().map_err(|error| read_error(&error))?;
        let level0: Vec<_> =
            files.iter().filter(|file| file.column_family_name == VERSIONS && file.level == 0).collect();
        let view_without = |files: &[&LiveFile]| -> Result<(DB, Level0View), StoreError> {
            let cannot = |cause: String| StoreError::Write { cause };
            let view = Level0View::new(&rocks_dir, &view_dir(dir), files).map_err(|error| cannot(error.to_string()))?;
            let rocks = opened(view.dir())?;
            let left = rocks.live_files().map_err(|error| read_error(&error))?;
            match left.iter().any(|left| files.iter().any(|file| file.name == left.name)) {
                true => Err(cannot("a view of the store still has the file that was to be left out".to_owned())),
                false => Ok((rocks, view)),
            }
        };
        let mut left_out = Vec::new();
        let mut bad = Vec::new();
        for file in &level0 {
            let others: Vec<_> = level0.iter().filter(|other| other.name != file.name).copied().collect();
            let (rocks, _view) = view_without(&others)?;
            if let Err(error) = check_level0(&rocks) {
                bad.push(*file);
                left_out.push(range_of(file, &error)?);
            }
        }
        let (in_view, view) = view_without(&bad)?;
        if check_level0(&in_view).is_err() {
            return Ok(whole(rocks)); // It is not level 0.
        }
        Ok(ColdRead { rocks: in_view, _files: None, _view: Some(view), left_out })
    }
}

/// Err: a file of level 0 cannot be opened. No block of data is read: nothing lies behind the last key.
fn check_level0(rocks: &DB) -> Result<(), rocksdb::Error> {
    let mut options = ReadOptions::default();
    options.set_total_order_seek(true);
    let family = rocks.cf_handle(VERSIONS).expect("the column family was opened");
    let mut versions = rocks.raw_iterator_cf_opt(family, options);
    versions.seek([0xFF; ENCODED_KEY_LEN + 1]);
    versions.status()
}

/// Everything that the file may hold.
fn range_of(file: &LiveFile, error: &rocksdb::Error) -> Result<UnreadableRange, StoreError> {
    // A range deletion begins and ends with the lowest key of a number.
    let lowest_of = |no: [u8; 4]| VersionKey {
        timeline: TimelineNo(u32::from_be_bytes(no)),
        key: watermark_key(),
        lsn: Lsn::ZERO,
        kind: Kind::Tombstone,
    };
    let decode = |key: &Option<Vec<u8>>| {
        let key = key.as_deref()?;
        <[u8; 4]>::try_from(key).map(lowest_of).ok().or_else(|| VersionKey::decode(key).ok())
    };
    let (Some(first), Some(last)) = (decode(&file.start_key), decode(&file.end_key)) else {
        let detail = format!("a file of removals cannot be opened: {error}. file=`{}`", file.name);
        return Err(StoreError::Corrupt { detail });
    };
    let below = VersionBound::below(first.lsn, first.kind).map(|bound| bound.version_key(first.timeline, &first.key));
    Ok(UnreadableRange {
        after: Some(below.unwrap_or(first)),
        before: Some(VersionKey { lsn: last.lsn.checked_add(1).unwrap_or(last.lsn), kind: Kind::Tombstone, ..last }),
        file: Some(PathBuf::from("store/rocksdb").join(file.name.trim_start_matches('/'))),
        cause: error.to_string(),
    })
}

fn open(rocks_dir: &Path, config: &StoreConfig) -> Result<DB, rocksdb::Error> {
    // Not every file system can (tmpfs before Linux 6.6).
    open_with(rocks_dir, config, true).or_else(|_| open_with(rocks_dir, config, false))
}

fn open_with(rocks_dir: &Path, config: &StoreConfig, past_page_cache: bool) -> Result<DB, rocksdb::Error> {
    let block_cache = Cache::new_hyper_clock_cache(BLOCK_CACHE_BYTES, 0);
    let mut options = options(config, &block_cache);
    options.set_use_direct_reads(past_page_cache);
    // A file that cannot be opened is a stretch that cannot be read, not the end.
    options.set_paranoid_checks(false);
    let families = [
        ColumnFamilyDescriptor::new("default", Options::default()),
        ColumnFamilyDescriptor::new(VERSIONS, options.clone()),
    ];
    DB::open_cf_descriptors_read_only(&options, rocks_dir, families, false)
}

impl ColdRead<'_> {
    /// Calls `each` for everything of `timeline`, or of all numbers, in key order, until it fails; first with what is left out altogether. Errors: what `each` gives.
    pub fn versions<E>(
        &self,
        timeline: Option<TimelineNo>,
        each: &mut dyn FnMut(ColdItem<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let bounds = Bounds::of(timeline);
        for range in &self.left_out {
            each(ColdItem::Unreadable(range.clone()))?;
        }
        let mut versions = self.iterator(&bounds, READAHEAD_BYTES);
        let mut from = bounds.first;
        versions.seek(from);
        let mut last: Option<KeyBytes> = None;
        let mut has_failed_here = false;
        let mut until_readahead = usize::MAX;
        loop {
            while let Some((key, value)) = versions.item() {
                give(key, value, last.as_ref(), each)?;
                if let Ok(key) = KeyBytes::try_from(key)
                    && key >= from
                    && last.is_none_or(|last| last < key)
                {
                    last = Some(key);
                    has_failed_here = false;
                }
                versions.next();
                until_readahead -= 1;
                if until_readahead == 0 {
                    // It was a failure that passed, or is behind us.
                    versions = self.iterator(&bounds, READAHEAD_BYTES);
                    versions.seek(key_behind(last.map_or(from, |last| last.max(from))));
                    until_readahead = usize::MAX;
                }
            }
            // The end and a failure look alike until asked.
            let Err(error) = versions.status() else { return Ok(()) };
            let here = last.map_or(from, |last| last.max(from));
            // Once more, without what is read ahead: a failure that passes, or lies further on, costs nothing that is here.
            if !has_failed_here {
                has_failed_here = true;
                until_readahead = VERSIONS_WITHOUT_READAHEAD;
                versions = self.iterator(&bounds, 0);
                match last.filter(|last| *last == here) {
                    Some(last) => versions.seek(key_behind(last)),
                    None => versions.seek(here),
                }
                continue;
            }
            let behind = self.first_readable_behind(&bounds, here);
            let range = UnreadableRange {
                after: last.and_then(|key| VersionKey::decode(&key).ok()),
                before: behind.and_then(|key| VersionKey::decode(&key).ok()),
                file: sst_file_in(error.as_ref()).map(|file| PathBuf::from("store/rocksdb").join(file)),
                cause: error.to_string(),
            };
            each(ColdItem::Unreadable(range))?;
            let Some(behind) = behind else { return Ok(()) };
            from = behind;
            has_failed_here = false;
            until_readahead = usize::MAX;
            versions = self.iterator(&bounds, READAHEAD_BYTES);
            versions.seek(from);
        }
    }

    /// Bytes of keys and values, uncompressed, as the files' own properties count them: for progress. `None`: they do not tell.
    pub fn bytes_estimated(&self) -> Option<u64> {
        let properties = self.rocks.property_value_cf(self.family(), "rocksdb.aggregated-table-properties").ok()??;
        let field = |name: &str| {
            let at = properties.find(name)? + name.len();
            let digits: String = properties[at..].chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<u64>().ok()
        };
        Some(field("raw key size=")? + field("raw value size=")?)
    }

    /// SST files that it reads.
    pub fn file_count(&self) -> usize {
        self.rocks.live_files().map_or(0, |files| files.len())
    }

    /// The newest file of RocksDB's options, which nobody reads and every open writes anew, and what is wrong with it if it does not parse.
    pub fn options_file_error(&self) -> Option<(PathBuf, String)> {
        let env = rocksdb::Env::new().ok()?;
        let cache = Cache::new_hyper_clock_cache(BLOCK_CACHE_BYTES, 0);
        let error = Options::load_latest(self.rocks.path(), env, false, cache).err()?;
        Some((PathBuf::from("store/rocksdb/OPTIONS-*"), error.into_string()))
    }

    fn family(&self) -> &ColumnFamily {
        self.rocks.cf_handle(VERSIONS).expect("the column family was opened")
    }

    fn iterator(&self, bounds: &Bounds, readahead_bytes: usize) -> DBRawIterator<'_> {
        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
        options.set_verify_checksums(true);
        options.fill_cache(false);
        options.set_readahead_size(readahead_bytes);
        options.set_iterate_lower_bound(bounds.first.to_vec());
        if let Some(end) = &bounds.end {
            options.set_iterate_upper_bound(end.to_vec());
        }
        self.rocks.raw_iterator_cf_opt(self.family(), options)
    }

    /// The first key behind `bad` from which on something can be read again; `None`: nothing can. Steps of growing size find where it can,
    /// halving finds the first: a few hundred seeks, whatever lies in between.
    fn first_readable_behind(&self, bounds: &Bounds, bad: KeyBytes) -> Option<KeyBytes> {
        let seek = |from: KeyBytes| -> Seek {
            let mut versions = self.iterator(bounds, 0);
            versions.seek(from);
            match (versions.key().and_then(|key| KeyBytes::try_from(key).ok()), versions.status()) {
                (Some(key), _) => Seek::Found(key),
                (None, Ok(())) => Seek::End,
                (None, Err(_)) => Seek::Failed,
            }
        };
        let (mut low, mut high) = (bad, None);
        for bit in 0..8 * ENCODED_KEY_LEN {
            let Some(candidate) = plus_power_of_two(&bad, bit) else { break };
            match seek(candidate) {
                Seek::Failed => low = candidate,
                _ => {
                    high = Some(candidate);
                    break;
                }
            }
        }
        let mut high = high?;
        while let Some(middle) = between(&low, &high) {
            match seek(middle) {
                Seek::Failed => low = middle,
                _ => high = middle,
            }
        }
        match seek(high) {
            Seek::Found(key) => Some(key),
            _ => None,
        }
    }
}

enum Seek {
    Found(KeyBytes),
    End,
    Failed,
}

/// The keys of one timeline, or of all.
struct Bounds {
    first: KeyBytes,
    /// Exclusive; `None`: no end.
    end: Option<KeyBytes>,
}

impl Bounds {
    fn of(timeline: Option<TimelineNo>) -> Self {
        let first_of = |no: u32| {
            let mut key = [0; ENCODED_KEY_LEN];
            key[..4].copy_from_slice(&no.to_be_bytes());
            key
        };
        match timeline {
            None => Bounds { first: first_of(0), end: None },
            Some(TimelineNo(no)) => Bounds { first: first_of(no), end: no.checked_add(1).map(first_of) },
        }
    }
}

fn give<E>(
    key: &[u8],
    value: &[u8],
    last: Option<&KeyBytes>,
    each: &mut dyn FnMut(ColdItem<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let version = match VersionKey::decode(key) {
        Ok(version) => version,
        Err(error) => return each(ColdItem::BadKey { key, cause: error.to_string() }),
    };
    if last.is_some_and(|last| key.cmp(&last[..]) != Ordering::Greater) {
        each(ColdItem::OutOfOrder { version })?;
    }
    each(ColdItem::Version { version, value })
}

/// Where a read goes on behind a key: no other one lies before it.
fn key_behind(key: KeyBytes) -> [u8; ENCODED_KEY_LEN + 1] {
    let mut behind = [0; ENCODED_KEY_LEN + 1];
    behind[..ENCODED_KEY_LEN].copy_from_slice(&key);
    behind
}

/// The name of the SST file that a message of RocksDB names.
pub(super) fn sst_file_in(message: &str) -> Option<&str> {
    let end = message.find(".sst")? + ".sst".len();
    let start = message[..end].rfind(|c: char| c == '/' || c.is_whitespace()).map_or(0, |at| at + 1);
    Some(&message[start..end])
}

/// `key` + 2^`bit`, as one big number; `None`: too large.
fn plus_power_of_two(key: &KeyBytes, bit: usize) -> Option<KeyBytes> {
    let mut sum = *key;
    let mut carry = 1u16 << (bit % 8);
    for byte in sum[..ENCODED_KEY_LEN - bit / 8].iter_mut().rev() {
        let value = u16::from(*byte) + carry;
        *byte = (value & 0xFF) as u8;
        carry = value >> 8;
        if carry == 0 {
            return Some(sum);
        }
    }
    None
}

/// The number in the middle; `None` when there is none between the two. Requires: `low < high`.
fn between(low: &KeyBytes, high: &KeyBytes) -> Option<KeyBytes> {
    let mut sum = [0; ENCODED_KEY_LEN];
    let mut carry = 0;
    for at in (0..ENCODED_KEY_LEN).rev() {
        let value = u16::from(low[at]) + u16::from(high[at]) + carry;
        sum[at] = (value & 0xFF) as u8;
        carry = value >> 8;
    }
    // Halved, the carry of the addition first.
    for byte in &mut sum {
        let value = carry << 8 | u16::from(*byte);
        *byte = (value >> 1) as u8;
        carry = value & 1;
    }
    (sum != *low).then_some(sum)
}

#[cfg(test)]
mod tests {
    //! Goal: the arithmetic of keys. Method: numbers whose sums are known.

    use super::*;

    fn key(number: u128) -> KeyBytes {
        let mut key = [0; ENCODED_KEY_LEN];
        key[ENCODED_KEY_LEN - 16..].copy_from_slice(&number.to_be_bytes());
        key
    }

    #[test]
    fn steps_and_middles_are_those_of_numbers() {
        for (number, bit, sum) in [(0, 0, 1), (255, 0, 256), (0xFFFF, 4, 0x1_000F), (5, 40, 5 + (1 << 40))] {
            assert_eq!(plus_power_of_two(&key(number), bit), Some(key(sum)), "{number} {bit}");
        }
        assert_eq!(plus_power_of_two(&[0xFF; ENCODED_KEY_LEN], 0), None);
        assert_eq!(plus_power_of_two(&[0xFF; ENCODED_KEY_LEN], 247), None);
        assert_eq!(between(&key(10), &key(20)), Some(key(15)));
        assert_eq!(between(&key(10), &key(12)), Some(key(11)));
        assert_eq!(between(&key(10), &key(11)), None);
        let mut most = [0xFF; ENCODED_KEY_LEN];
        most[ENCODED_KEY_LEN - 1] = 0xFD;
        assert_eq!(between(&most, &[0xFF; ENCODED_KEY_LEN]).map(|key| key[ENCODED_KEY_LEN - 1]), Some(0xFE));
    }

    #[test]
    fn the_file_is_found_in_what_rocksdb_says() {
        let message = "Corruption: block checksum mismatch: stored = 1, computed = 2, type = 4  in /srv/a b/rocksdb/000012.sst offset 8192 size 4096";
        assert_eq!(sst_file_in(message), Some("000012.sst"));
        assert_eq!(sst_file_in("IO error: No such file"), None);
    }
}
