//! RocksDB as this store sets it up, and the few calls it makes.
//!
//! - One column family, `versions`; keys are `keyenc::VersionKey`. No log, no memtable in use: data arrives as ingested files only.
//! - Files are ingested by hard link, all of a set in one manifest write; RocksDB syncs file, directory and manifest before it returns.
//! - The prefix extractor is the 22 bytes that all versions of an object share, and the bloom filters are on it. So an iterator
//!   either stays within one object, or says `total_order_seek`: without one of the two it may silently skip files.
//! - Every block is checked against its checksum when it is read from disk.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use keyenc::{ENCODED_KEY_LEN, Key, OBJECT_PREFIX_LEN, TimelineNo, VersionKey};
use parking_lot::Mutex;
use rocksdb::statistics::{StatsLevel, Ticker};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, CompactOptions, DB, DBCompactionStyle,
    DBCompressionType, DBRawIterator, ErrorKind, IngestExternalFileOptions, LiveFile, Options, Range, ReadOptions,
    SliceTransform,
};

use super::failed_ingest::{self, ManifestBefore};
use super::manifest;
use super::pause::CompactionPause;
use super::version_bound::VersionBound;
use super::{CompactionStyle, Compression, LevelStats, StoreConfig, StoreError, StoreStats};
use crate::failpoint::Failpoint;

/// The column family.
pub(super) const VERSIONS: &str = "versions";
/// Its directory within the store's.
pub(super) const ROCKS_DIR: &str = "rocksdb";
/// About one miss in a hundred.
const BLOOM_BITS_PER_KEY: f64 = 10.0;
/// RocksDB wants a memtable; nothing is ever written to it.
const MEMTABLE_BYTES: usize = 64 << 10;
/// A flushed layer should be one file: RocksDB counts files of level 0, not sets, and every one costs every read.
const FLUSHED_FILE_FACTOR: u64 = 4;
/// RocksDB's own text log: four files of this size.
const INFO_LOG_BYTES: usize = 4 << 20;
/// The fastest: compaction competes with reads and ingest for processors. The window is RocksDB's default.
const ZSTD_LEVEL: i32 = 1;
/// A dictionary is samples of the file as they are. To train one with a hundred times its size, as RocksDB recommends, takes 3 % less space and ten times
/// as long for a small merge, of which garbage collection asks many.
const DICTIONARY_TRAINING_BYTES: i32 = 0;
const ZSTD_WINDOW_BITS: i32 = -14;
const COMPACTION_READAHEAD_BYTES: usize = 2 << 20;
/// A walk reads everything in order.
const WALK_READAHEAD_BYTES: usize = 2 << 20;
const RATE_LIMIT_REFILL_MICROS: i64 = 100_000;
const RATE_LIMIT_FAIRNESS: i32 = 10;
/// While compaction is paused, flushes wait at so many times the files of level 0: each one costs every read, and without them ingest would stand still.
const LEVEL0_FACTOR_PAUSED: u64 = 20;
/// RocksDB counts a failure a moment before its log has it.
const LOG_CHECK_INTERVAL: Duration = Duration::from_millis(10);
const LOG_CHECKS_MAX: u32 = 100;

/// RocksDB and the directory in which files wait for it.
pub(super) struct Db {
    rocks: DB,
    /// Holds the statistics.
    options: Options,
    file_options: Options,
    last_level_options: Options,
    block_cache: Cache,
    rocks_dir: PathBuf,
    pending_dir: PathBuf,
    next_file_no: AtomicU64,
    /// Size at which the flusher closes a file.
    pub flushed_file_bytes: u64,
    level0_files_max: u64,
    pause: CompactionPause,
    /// Held during an ingestion: what one changed in the MANIFEST is known.
    ingesting: Mutex<()>,
    /// A write of the MANIFEST failed that may be there all the same.
    manifest_in_doubt: AtomicBool,
}

/// Why files did not become part of the store.
#[derive(Debug, thiserror::Error)]
pub(super) enum IngestionError {
    /// What RocksDB says.
    #[error(transparent)]
    RocksDb(#[from] rocksdb::Error),
    /// The next start takes back what failed, and would take this back with it.
    #[error("a write of the MANIFEST failed before")]
    InDoubt,
    /// Without its length, a failed ingestion could not be taken back.
    #[error("the MANIFEST cannot be looked at: {0}")]
    Manifest(io::Error),
}

impl Db {
    /// Opens or makes RocksDB in `dir/rocksdb` and empties `dir/pending`.
    pub fn open(dir: &Path, config: &StoreConfig) -> Result<Self, StoreError> {
        let refused = |cause: io::Error| StoreError::Open { dir: dir.to_owned(), cause: cause.to_string() };
        let (rocks_dir, pending_dir) = (dir.join(ROCKS_DIR), dir.join("pending"));
        fs::create_dir_all(&rocks_dir).map_err(refused)?;
        fs::create_dir_all(&pending_dir).map_err(refused)?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(refused)?;

        let block_cache = Cache::new_hyper_clock_cache(config.block_cache_bytes, 0);
        let mut options = options(config, &block_cache);
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.enable_statistics();
        options.set_statistics_level(StatsLevel::ExceptTimers);
        let mut versions_options = options.clone();
        set_compaction(&mut versions_options, config);
        let pause = CompactionPause::load(dir);
        versions_options.set_disable_auto_compactions(pause.is_set());
        let families = [
            ColumnFamilyDescriptor::new("default", Options::default()),
            ColumnFamilyDescriptor::new(VERSIONS, versions_options),
        ];
        manifest::check_tail(&rocks_dir).map_err(|detail| StoreError::Corrupt { detail })?;
        let rocks = DB::open_cf_descriptors(&options, &rocks_dir, families).map_err(|error| open_error(dir, &error))?;
        // Only now: the lock is ours.
        failed_ingest::clear_mark(dir).map_err(refused)?;
        empty_dir(&pending_dir).map_err(refused)?;
        Failpoint::StoreOpened.pass();
        let file_options = file_options(config, &block_cache);
        let mut last_level_options = file_options.clone();
        set_compaction(&mut last_level_options, config);
        let db = Db {
            rocks,
            options,
            file_options,
            last_level_options,
            block_cache,
            rocks_dir,
            pending_dir,
            next_file_no: AtomicU64::new(1),
            flushed_file_bytes: config.file_bytes * FLUSHED_FILE_FACTOR,
            level0_files_max: config.level0_files_max.into(),
            pause,
            ingesting: Mutex::default(),
            manifest_in_doubt: AtomicBool::new(false),
        };
        db.warn_if_paused();
        Ok(db)
    }

    /// RocksDB itself.
    pub fn rocks(&self) -> &DB {
        &self.rocks
    }

    /// Its directory.
    pub fn rocks_dir(&self) -> &Path {
        &self.rocks_dir
    }

    fn versions(&self) -> &ColumnFamily {
        self.rocks.cf_handle(VERSIONS).expect("the column family is opened with the store")
    }

    /// An iterator over the versions of one object. It holds files of now: use it and drop it.
    pub fn object_iterator(&self, timeline: TimelineNo, key: &Key) -> DBRawIterator<'_> {
        self.object_iterator_with(ReadOptions::default(), timeline, key)
    }

    /// The same; blocks that it reads do not enter the cache.
    pub fn cold_object_iterator(&self, timeline: TimelineNo, key: &Key) -> DBRawIterator<'_> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        self.object_iterator_with(options, timeline, key)
    }

    fn object_iterator_with(&self, mut options: ReadOptions, timeline: TimelineNo, key: &Key) -> DBRawIterator<'_> {
        options.set_iterate_lower_bound(VersionKey::object_prefix(timeline, key).to_vec());
        options.set_prefix_same_as_start(true);
        self.rocks.raw_iterator_cf_opt(self.versions(), options)
    }

    /// An iterator over the versions of all objects in `first..=last`.
    pub fn range_iterator(&self, timeline: TimelineNo, first: &Key, last: &Key) -> DBRawIterator<'_> {
        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
        options.set_iterate_lower_bound(VersionKey::object_prefix(timeline, first).to_vec());
        let mut after_last = VersionBound::at(postgres_ffi::Lsn::MAX).version_key(timeline, last).encode().to_vec();
        after_last.push(0); // An upper bound is exclusive.
        options.set_iterate_upper_bound(after_last);
        self.rocks.raw_iterator_cf_opt(self.versions(), options)
    }

    /// An iterator over all versions of a timeline, for who reads them once: what it reads does not push other blocks out of the cache.
    pub fn walk_iterator(&self, timeline: TimelineNo) -> DBRawIterator<'_> {
        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
        options.fill_cache(false);
        options.set_readahead_size(WALK_READAHEAD_BYTES);
        options.set_iterate_lower_bound(timeline.0.to_be_bytes().to_vec());
        if let Some(next) = timeline.0.checked_add(1) {
            options.set_iterate_upper_bound(next.to_be_bytes().to_vec());
        }
        self.rocks.raw_iterator_cf_opt(self.versions(), options)
    }

    /// The files that hold versions of a timeline, or removals of some; those that lie higher first.
    pub fn timeline_files(&self, timeline: TimelineNo) -> Vec<StoredFile> {
        let prefix = timeline.0.to_be_bytes();
        let mut files = self.files();
        files.retain(|file| file.start_key.get(..4) <= Some(&prefix[..]) && file.end_key.as_slice() >= &prefix[..]);
        files
    }

    /// All files of versions.
    pub fn files(&self) -> Vec<StoredFile> {
        let files = self.rocks.live_files().unwrap_or_default();
        files.into_iter().filter(|file| file.column_family_name == VERSIONS).map(StoredFile::from).collect()
    }

    /// Bytes that the timeline's key range takes in files, by their indexes.
    pub fn timeline_bytes(&self, timeline: TimelineNo) -> u64 {
        let end = timeline.0.checked_add(1).map_or([u8::MAX; 5].to_vec(), |next| next.to_be_bytes().to_vec());
        let start = timeline.0.to_be_bytes();
        let range = Range::new(&start, &end);
        self.rocks.get_approximate_sizes_cf(self.versions(), &[range]).iter().sum()
    }

    /// How many bytes of versions a byte of files holds, over all files; 1 while there are none.
    pub fn compression_ratio(&self) -> f64 {
        let property = self.rocks.property_value_cf(self.versions(), "rocksdb.aggregated-table-properties");
        let raw_bytes = raw_bytes(&property.ok().flatten().unwrap_or_default());
        let file_bytes = self.property("rocksdb.live-sst-files-size");
        if raw_bytes == 0 || file_bytes == 0 { 1.0 } else { raw_bytes as f64 / file_bytes as f64 }
    }

    /// True while the file is part of the store.
    pub fn has_file(&self, name: &str) -> bool {
        self.file(name).is_some()
    }

    /// The file of this name, if it is part of the store.
    pub fn file(&self, name: &str) -> Option<StoredFile> {
        self.files().into_iter().find(|file| file.name == name)
    }

    /// Reads what lies between a file's first and last key, below range deletions too: all of it that a compaction reads. Errors: `Corrupt`, `Read`.
    pub fn check_file(&self, file: StoredFile) -> Result<(), StoreError> {
        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
        #[expect(
            deprecated,
            reason = "for its cost where nothing is deleted by ranges; nothing else reads what a range deletion hides"
        )]
        options.set_ignore_range_deletions(true);
        options.fill_cache(false);
        options.set_readahead_size(WALK_READAHEAD_BYTES);
        options.set_iterate_lower_bound(file.start_key);
        let mut after_last = file.end_key;
        after_last.push(0); // An upper bound is exclusive.
        options.set_iterate_upper_bound(after_last);
        let mut versions = self.rocks.raw_iterator_cf_opt(self.versions(), options);
        versions.seek_to_first();
        while versions.valid() {
            versions.next();
        }
        versions.status().map_err(|error| read_error(&error))
    }

    /// Takes the files away, durably and without reading them, in which nothing but versions of `timeline` can be. Files of level 0, files that are being merged
    /// and files that hold versions of other numbers too stay; so does a range deletion of the whole number, whose file reaches to the next one. What the files
    /// have hidden may show again: a range deletion must follow.
    pub fn delete_whole_files(&self, timeline: TimelineNo) -> Result<(), rocksdb::Error> {
        let first = timeline.0.to_be_bytes();
        let mut last = [u8::MAX; ENCODED_KEY_LEN]; // No kind of version is 0xFF.
        last[..first.len()].copy_from_slice(&first);
        let deleted = self.rocks.delete_file_in_range_cf(self.versions(), &first[..], &last[..]);
        deleted.inspect_err(|_| self.manifest_in_doubt.store(true, Ordering::SeqCst))
    }

    /// The mark that says whether compaction is paused.
    pub fn pause(&self) -> &CompactionPause {
        &self.pause
    }

    /// Says so in the log, if compaction is paused.
    pub fn warn_if_paused(&self) {
        if let Some(pause) = self.pause.get() {
            tracing::warn!(
                cause = pause.cause,
                "compaction of the store is paused: delete the timeline whose file is damaged, then `pagectl repair`; reads get dearer until then"
            );
        }
    }

    /// Lets RocksDB compact by itself again.
    pub fn enable_auto_compactions(&self) -> Result<(), rocksdb::Error> {
        self.rocks.set_options_cf(self.versions(), &[("disable_auto_compactions", "false")])
    }

    /// Merges everything between two keys, down to the last level. Returns when done; at once while compaction is paused.
    pub fn compact_range(&self, start_key: &[u8], end_key: &[u8]) {
        if self.pause.is_set() {
            return; // It would stop at the damaged file, and the store with it.
        }
        let mut options = CompactOptions::default();
        // What RocksDB finds to do by itself goes on meanwhile.
        options.set_exclusive_manual_compaction(false);
        self.rocks.compact_range_cf_opt(self.versions(), Some(start_key), Some(end_key), &options);
    }

    /// What compaction has written since open.
    pub fn compaction_written_bytes(&self) -> u64 {
        self.options.get_ticker_count(Ticker::CompactWriteBytes)
    }

    /// Options for an `SstFileWriter` whose files this RocksDB takes.
    pub fn file_options(&self) -> &Options {
        &self.file_options
    }

    /// The same for files that go to the last level at once.
    pub fn last_level_options(&self) -> &Options {
        &self.last_level_options
    }

    /// A path for a new file that will be ingested.
    pub fn new_pending_path(&self) -> PathBuf {
        let file_no = self.next_file_no.fetch_add(1, Ordering::Relaxed);
        self.pending_dir.join(format!("{file_no:08}.sst"))
    }

    /// Makes the finished files part of the store, all or none, durably. They leave the pending directory.
    pub fn ingest(&self, files: &[PathBuf]) -> Result<(), IngestionError> {
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        let _one_at_a_time = self.ingesting.lock();
        if self.manifest_is_in_doubt() {
            return Err(IngestionError::InDoubt);
        }
        let before = ManifestBefore::now(&self.rocks_dir).map_err(IngestionError::Manifest)?;
        let ingested = self.rocks.ingest_external_file_cf_opts(self.versions(), &options, files.to_vec());
        ingested.map_err(|error| {
            let in_doubt = self.rocks_dir.parent().is_none_or(|dir| before.mark_if_changed(dir, &self.rocks_dir));
            self.manifest_in_doubt.fetch_or(in_doubt, Ordering::SeqCst);
            IngestionError::RocksDb(error)
        })
    }

    /// True if a write of the MANIFEST failed that may be there all the same: nothing is ingested before the store is opened again.
    pub fn manifest_is_in_doubt(&self) -> bool {
        self.manifest_in_doubt.load(Ordering::SeqCst)
    }

    /// Files that overlap in level 0.
    pub fn level0_files(&self) -> u64 {
        self.property("rocksdb.num-files-at-level0")
    }

    /// Files of level 0 at which flushes wait for compaction.
    pub fn level0_files_max(&self) -> u64 {
        let factor = if self.pause.is_set() { LEVEL0_FACTOR_PAUSED } else { 1 };
        self.level0_files_max * factor
    }

    /// True while nothing more may come into level 0.
    pub fn is_level0_full(&self) -> bool {
        self.level0_files() >= self.level0_files_max()
    }

    /// The same, and nobody makes room: compaction is paused.
    pub fn is_stuck(&self) -> bool {
        self.pause.is_set() && self.is_level0_full()
    }

    /// Failures of compaction since open, of whatever column family: RocksDB counts all of them at the default one.
    pub fn background_errors(&self) -> u64 {
        self.rocks.property_int_value("rocksdb.background-errors").ok().flatten().unwrap_or(0)
    }

    /// What the last failure of compaction was, by RocksDB's own log; where that is. Requires: there was one.
    pub fn background_error(&self) -> String {
        let log = self.rocks_dir.join("LOG");
        let mut said = last_background_error(&log);
        for _ in 0..LOG_CHECKS_MAX {
            if said.is_some() {
                break;
            }
            thread::sleep(LOG_CHECK_INTERVAL);
            said = last_background_error(&log);
        }
        let said = said.unwrap_or_else(|| "it does not say why".to_owned());
        format!("compaction failed: {said}. log=`{}`", log.display())
    }

    /// Bytes of all SST files, obsolete ones that someone still reads included.
    pub fn sst_bytes(&self) -> u64 {
        self.property("rocksdb.total-sst-files-size")
    }

    /// Merges all levels, for tests and benchmarks that want a store at rest; does nothing while compaction is paused.
    pub fn compact_all(&self) {
        if self.pause.is_set() {
            return;
        }
        self.rocks.compact_range_cf(self.versions(), None::<&[u8]>, None::<&[u8]>);
    }

    /// Adds what RocksDB counts.
    pub fn add_stats(&self, stats: &mut StoreStats) {
        let ticker = |ticker| self.options.get_ticker_count(ticker);
        for file in self.rocks.live_files().unwrap_or_default() {
            let level_no = usize::try_from(file.level).unwrap_or(0);
            if stats.levels.len() <= level_no {
                stats.levels.resize(level_no + 1, LevelStats::default());
            }
            stats.levels[level_no].files += 1;
            stats.levels[level_no].bytes += file.size as u64;
        }
        stats.versions_estimate = self.property("rocksdb.estimate-num-keys");
        stats.sst_bytes = self.sst_bytes();
        stats.blob_bytes = self.property("rocksdb.total-blob-file-size");
        stats.blob_written_bytes = ticker(Ticker::BlobDbBlobFileBytesWritten);
        stats.compaction_pending_bytes = self.property("rocksdb.estimate-pending-compaction-bytes");
        stats.compaction_read_bytes = ticker(Ticker::CompactReadBytes);
        stats.compaction_written_bytes = ticker(Ticker::CompactWriteBytes);
        stats.block_cache_hits = ticker(Ticker::BlockCacheHit);
        stats.block_cache_misses = ticker(Ticker::BlockCacheMiss);
        stats.block_cache_bytes = self.block_cache.get_usage() as u64;
        stats.rocksdb_seeks = ticker(Ticker::NumberDbSeek);
        stats.rocksdb_file_opens = ticker(Ticker::NoFileOpens);
    }

    fn property(&self, name: &str) -> u64 {
        self.rocks.property_int_value_cf(self.versions(), name).ok().flatten().unwrap_or(0)
    }
}

/// A file of RocksDB, as garbage collection needs it.
pub(super) struct StoredFile {
    /// As on disk: `000012.sst`.
    pub name: String,
    pub bytes: u64,
    pub start_key: Vec<u8>,
    pub end_key: Vec<u8>,
    /// Versions and removals.
    pub entries: u64,
    pub removals: u64,
}

impl StoredFile {
    /// The number under which everything in the file stands; `None`: there may be versions of others in it, or a removal of whole numbers.
    pub fn only_number(&self) -> Option<TimelineNo> {
        let prefix: [u8; 4] = self.start_key.get(..4)?.try_into().ok()?;
        self.end_key.starts_with(&prefix).then(|| TimelineNo(u32::from_be_bytes(prefix)))
    }
}

impl From<LiveFile> for StoredFile {
    fn from(file: LiveFile) -> Self {
        StoredFile {
            name: file.name.trim_start_matches('/').to_owned(),
            bytes: file.size as u64,
            start_key: file.start_key.unwrap_or_default(),
            end_key: file.end_key.unwrap_or_default(),
            entries: file.num_entries,
            removals: file.num_deletions,
        }
    }
}

/// Keys and values before compression. RocksDB 11: table/table_properties.cc, TableProperties::ToString.
fn raw_bytes(properties: &str) -> u64 {
    let number = |name: &str| {
        let value = properties.split("; ").find_map(|property| property.strip_prefix(name)?.strip_prefix('='));
        value.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0)
    };
    number("raw key size").saturating_add(number("raw value size"))
}

/// What follows these words on the last line that has them. RocksDB 11: db/db_impl/db_impl_compaction_flush.cc, BackgroundCallCompaction.
fn last_background_error(log: &Path) -> Option<String> {
    const WORDS: &str = "Waiting after background compaction error: ";
    const TAIL_BYTES: u64 = 256 << 10;
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).ok()?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail).ok()?;
    let tail = String::from_utf8_lossy(&tail);
    let line = tail.lines().rev().find(|line| line.contains(WORDS))?;
    let said = line.split(WORDS).nth(1)?;
    Some(said.split(", Accumulated").next().unwrap_or(said).to_owned())
}

/// An error met while reading, by what the caller can do about it.
pub(super) fn read_error(error: &rocksdb::Error) -> StoreError {
    match error.kind() {
        ErrorKind::Corruption => StoreError::Corrupt { detail: error.to_string() },
        _ => StoreError::Read { cause: error.to_string() },
    }
}

fn open_error(dir: &Path, error: &rocksdb::Error) -> StoreError {
    let cause = error.to_string();
    match error.kind() {
        // RocksDB locks a file of this name and has no kind of its own for it.
        ErrorKind::IOError if cause.contains("/LOCK:") => StoreError::Locked { dir: dir.to_owned() },
        ErrorKind::Corruption => StoreError::Corrupt { detail: cause },
        _ => StoreError::Open { dir: dir.to_owned(), cause },
    }
}

/// Removes the files of an earlier run that were never ingested.
fn empty_dir(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}

fn table_options(config: &StoreConfig, block_cache: &Cache) -> BlockBasedOptions {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(block_cache);
    table.set_block_size(config.block_bytes);
    table.set_bloom_filter(BLOOM_BITS_PER_KEY, false);
    table.set_whole_key_filtering(false); // Nobody looks a version up by its whole key.
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(6);
    table
}

/// Options of files that the flusher writes: those of the column family, without what only compaction should use.
fn file_options(config: &StoreConfig, block_cache: &Cache) -> Options {
    let mut options = Options::default();
    options.set_block_based_table_factory(&table_options(config, block_cache));
    options.set_prefix_extractor(SliceTransform::create_fixed_prefix(OBJECT_PREFIX_LEN));
    options.set_compression_type(DBCompressionType::Lz4);
    options
}

/// What only compaction should see: `SstFileWriter` would take the compression of the last level for every file.
fn set_compaction(options: &mut Options, config: &StoreConfig) {
    match config.compaction {
        CompactionStyle::Level => options.set_compaction_style(DBCompactionStyle::Level),
        CompactionStyle::Universal => options.set_compaction_style(DBCompactionStyle::Universal),
    }
    options.set_compression_type(compression_type(config.compression));
    options.set_bottommost_compression_type(compression_type(config.bottommost_compression));
    options.set_compression_options(ZSTD_WINDOW_BITS, ZSTD_LEVEL, 0, 0);
    let dictionary_bytes = i32::try_from(config.dictionary_bytes).unwrap_or(0);
    options.set_bottommost_compression_options(ZSTD_WINDOW_BITS, ZSTD_LEVEL, 0, dictionary_bytes, true);
    options.set_bottommost_zstd_max_train_bytes(DICTIONARY_TRAINING_BYTES, true);
    if config.blob_bytes_min > 0 {
        options.set_enable_blob_files(true);
        options.set_min_blob_size(config.blob_bytes_min);
        options.set_blob_compression_type(compression_type(config.bottommost_compression));
        options.set_enable_blob_gc(true);
    }
}

fn compression_type(compression: Compression) -> DBCompressionType {
    match compression {
        Compression::Lz4 => DBCompressionType::Lz4,
        Compression::Zstd => DBCompressionType::Zstd,
    }
}

/// Options of RocksDB and of its column family.
pub(super) fn options(config: &StoreConfig, block_cache: &Cache) -> Options {
    let mut options = file_options(config, block_cache);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_target_file_size_base(config.file_bytes);
    // About what four files of level 0 hold, so that merging them into the next level rewrites little else.
    options.set_max_bytes_for_level_base(config.layer_bytes as u64 * 2);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    // One more: RocksDB sets a quarter, at least one, aside for flushes, and there are none.
    options.set_max_background_jobs(i32::try_from(config.background_jobs + 1).unwrap_or(2));
    // Level 0 is one compaction at a time, so it is split, or it would never catch up.
    options.set_max_subcompactions(config.background_jobs);
    options.set_compaction_readahead_size(COMPACTION_READAHEAD_BYTES);
    options.set_bytes_per_sync(1 << 20); // Spreads write-back of large files, so that the sync at the end is short.
    if config.compaction_bytes_per_second > 0 {
        let rate = i64::try_from(config.compaction_bytes_per_second).unwrap_or(i64::MAX);
        options.set_ratelimiter(rate, RATE_LIMIT_REFILL_MICROS, RATE_LIMIT_FAIRNESS);
    }
    options.set_paranoid_checks(true);
    // Not -1: opening every file at start would take longer the longer the history is.
    options.set_max_open_files(i32::try_from(config.open_files_max).unwrap_or(i32::MAX));
    options.set_skip_stats_update_on_db_open(true);
    options.set_stats_dump_period_sec(0);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(INFO_LOG_BYTES);
    options
}
