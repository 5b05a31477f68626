//! The configuration file, flags and environment.
//!
//! - `pageserver.toml` in the data directory; every key has a default, an unknown key is refused with its line.
//! - `listen` can be given by a flag and by the environment, too: the flag wins, then the environment.
//! - Checks happen here, before anything is opened.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postgres_ffi::PgVersion;
use serde::{Deserialize, Serialize};

use crate::redo::process::Library;
use crate::store::{CHAIN_WEIGHT_LIMIT, CompactionStyle, Compression, StoreConfig};
use crate::timeline::gc::RetentionTime;

/// Name of the configuration file within the data directory.
pub const CONFIG_FILE_NAME: &str = "pageserver.toml";

/// Times are added to clocks: more than a hundred years is no time to wait.
const SECONDS_MAX: u64 = 100 * 365 * 86_400;
/// A lower bound on chains would write more images than WAL.
const CHAIN_RECORDS_MIN: u32 = 16;

/// What `pageserver.toml` says, completed with defaults.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address of the page service. Must be a loopback address until the service knows authentication.
    pub listen: SocketAddr,
    /// Connections served at once; the next one is refused with SQLSTATE 53300.
    pub connections_max: usize,
    /// A connection that sends nothing for this long is closed.
    pub idle_timeout_seconds: u64,
    /// How long a read waits for an LSN that has not arrived yet.
    pub wait_lsn_timeout_seconds: u64,
    /// Memory and disk.
    pub store: StoreSection,
    /// Memory for materialised pages that are read often, in MiB.
    pub page_cache_mib: u64,
    /// How pages are made from records.
    pub redo: RedoSection,
    /// How WAL comes in.
    pub wal: WalSection,
    /// How much history is kept, unless a timeline has its own retention.
    pub retention: RetentionSection,
    /// How history that is not kept goes.
    pub gc: GcSection,
}

/// `[retention]`: what lies within either is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionSection {
    /// History since so long ago is kept: `7d`, `36h`; `0`: none for its time.
    pub time: RetentionTime,
    /// This much WAL before the last record is kept, in MiB; 0: none for its size.
    pub wal_mib: u64,
}

/// `[gc]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GcSection {
    /// How often it is looked whether something can go.
    pub period_seconds: u64,
    /// What it may read and write in a second, on average, in MiB; 0 for no limit.
    pub mib_per_second: u64,
    /// A timeline's versions are gone through when its horizon has moved by this much WAL, in MiB, and by a sixteenth of what its files take.
    pub horizon_step_mib: u64,
    /// It waits until it is resumed by hand.
    pub paused: bool,
}

/// `[store]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSection {
    /// Recent WAL held in memory, over all timelines, in MiB. When it is full, ingest waits for the flush.
    pub layer_mib: u64,
    /// RocksDB's block cache, index and filter blocks included, in MiB.
    pub block_cache_mib: u64,
    /// Recent WAL is written to disk after this long even if little came.
    pub flush_interval_seconds: u64,
    /// Bytes per second that compaction may write, in MiB; 0 for no limit. A flush has none.
    pub background_mib_per_second: u64,
    /// How RocksDB arranges files: `level` or `universal`.
    pub compaction: CompactionStyle,
    /// Compression of what is not in the last level: `lz4` or `zstd`.
    pub compression: Compression,
    /// Compression of the last level, where most of everything is: `lz4` or `zstd`.
    pub bottommost_compression: Compression,
    /// Dictionary of each file of the last level, in KiB, if that is `zstd`; 0 for none.
    pub dictionary_kib: u32,
    /// Uncompressed size of a block, in KiB: larger ones take less space, and more time to read.
    pub block_kib: u32,
    /// Values of at least so many bytes go into blob files; 0 for none.
    pub blob_bytes_min: u64,
}

/// `[redo]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedoSection {
    /// Who applies PostgreSQL's records: `native` (our own code), `postgres` (a process), or `verify` (both, compared; the process answers).
    pub engine: RedoEngine,
    /// Threads that materialise pages.
    pub threads: usize,
    /// A redo request that takes longer ends the redo process.
    pub timeout_seconds: u64,
    /// Directories that hold a `postgres` binary of some major version; the known places are searched after these.
    pub postgres_bin_dirs: Vec<PathBuf>,
    /// Directory of the redo extension, a folder for each major version; the known places are searched after it.
    pub extension_dir: Option<PathBuf>,
    /// Libraries of extensions that have resource managers of their own, as in PostgreSQL's `shared_preload_libraries`: a name, or an absolute path.
    /// The redo process of each cluster loads all of them, and does not start if it cannot.
    pub preload_libraries: Vec<Library>,
    /// The user that the redo process runs as when the page server is root.
    pub run_as: String,
    /// A chain of at least this many records is cached back into the store when it was materialised.
    pub cache_back_records_min: usize,
    /// Pages of which a flush writes at least this many records with no image above are made in the background and cached back, so that
    /// whoever reads them does not wait for it. 0: none are.
    pub backlog_records_min: u32,
    /// The longest chain that ingest leaves without an image, in records; a record of 4 KiB and more counts as several. A chain of twice this length stops ingest
    /// until its page is made. 0: chains have no bound.
    pub chain_records_max: u32,
}

/// `redo.engine`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RedoEngine {
    /// Redo in Rust. Records of extensions' own resource managers still go to a process, if there is one.
    Native,
    /// A stock `postgres` with the redo extension.
    Postgres,
    /// Both make each page, and what differs is logged, counted and saved. The process answers.
    Verify,
}

/// `[wal]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WalSection {
    /// Progress is reported to the primary at least this often.
    pub status_interval_seconds: u64,
    /// WAL behind the store's watermark that is kept on disk, in MiB. What a standby needs that starts now, back to the last checkpoint, is kept anyway;
    /// so is what one needs that starts at a leased LSN.
    pub keep_mib: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 6400)),
            connections_max: 200,
            idle_timeout_seconds: 600,
            wait_lsn_timeout_seconds: 60,
            store: StoreSection::default(),
            page_cache_mib: 128,
            redo: RedoSection::default(),
            wal: WalSection::default(),
            retention: RetentionSection::default(),
            gc: GcSection::default(),
        }
    }
}

impl Default for StoreSection {
    fn default() -> Self {
        let StoreConfig {
            compaction,
            compression,
            bottommost_compression,
            dictionary_bytes,
            block_bytes,
            blob_bytes_min,
            ..
        } = StoreConfig::default();
        StoreSection {
            layer_mib: 256,
            block_cache_mib: 256,
            flush_interval_seconds: 600,
            background_mib_per_second: 0,
            compaction,
            compression,
            bottommost_compression,
            dictionary_kib: dictionary_bytes >> 10,
            block_kib: u32::try_from(block_bytes >> 10).expect("a block has 1 MiB at most"),
            blob_bytes_min,
        }
    }
}

impl Default for RedoSection {
    fn default() -> Self {
        RedoSection {
            engine: RedoEngine::Native,
            threads: 2,
            timeout_seconds: 60,
            postgres_bin_dirs: Vec::new(),
            extension_dir: None,
            preload_libraries: Vec::new(),
            run_as: "postgres".to_string(),
            cache_back_records_min: 8,
            backlog_records_min: 32,
            chain_records_max: 256,
        }
    }
}

impl Default for WalSection {
    fn default() -> Self {
        WalSection { status_interval_seconds: 10, keep_mib: 64 }
    }
}

impl Default for RetentionSection {
    fn default() -> Self {
        RetentionSection { time: RetentionTime::from_seconds(7 * 86_400), wal_mib: 1024 }
    }
}

impl Default for GcSection {
    fn default() -> Self {
        GcSection { period_seconds: 60, mib_per_second: 32, horizon_step_mib: 64, paused: false }
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file. path=`{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be; the text names line and key.
    #[error("the configuration file has a mistake. path=`{path}`: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong there.
        message: String,
    },
    /// A value cannot be used.
    #[error("{key}: {reason}. value=`{value}`")]
    Value {
        /// The key in the file.
        key: &'static str,
        /// The value found.
        value: String,
        /// What would be right.
        reason: &'static str,
    },
}

impl Config {
    /// The configuration in `data_dir`, defaults where the file is silent.
    pub fn load(data_dir: &Path) -> Result<Self, ConfigError> {
        let path = data_dir.join(CONFIG_FILE_NAME);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        let config: Config =
            toml::from_str(&text).map_err(|error| ConfigError::Syntax { path, message: error.to_string() })?;
        config.check()?;
        Ok(config)
    }

    /// Refuses values that nothing could run with.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key, value: String, reason| Err(ConfigError::Value { key, value, reason });
        if !self.listen.ip().is_loopback() {
            let reason = "only loopback addresses are served, since the page service has no authentication yet";
            return refuse("listen", self.listen.to_string(), reason);
        }
        let at_least_one = [
            ("connections_max", self.connections_max as u64),
            ("idle_timeout_seconds", self.idle_timeout_seconds),
            ("wait_lsn_timeout_seconds", self.wait_lsn_timeout_seconds),
            ("redo.threads", self.redo.threads as u64),
            ("redo.timeout_seconds", self.redo.timeout_seconds),
            ("redo.cache_back_records_min", self.redo.cache_back_records_min as u64),
            ("wal.status_interval_seconds", self.wal.status_interval_seconds),
            ("store.flush_interval_seconds", self.store.flush_interval_seconds),
            ("gc.period_seconds", self.gc.period_seconds),
        ];
        for (key, value) in at_least_one {
            if value == 0 {
                return refuse(key, value.to_string(), "must be at least 1");
            }
            if key.ends_with("_seconds") && value > SECONDS_MAX {
                return refuse(key, value.to_string(), "must be at most 3153600000, a hundred years");
            }
        }
        let chain_records_max = self.redo.chain_records_max;
        if chain_records_max != 0 && !(CHAIN_RECORDS_MIN..=CHAIN_WEIGHT_LIMIT).contains(&chain_records_max) {
            return refuse("redo.chain_records_max", chain_records_max.to_string(), "must be 0, or from 16 to 10000");
        }
        let shifted = [
            ("retention.wal_mib", self.retention.wal_mib),
            ("gc.mib_per_second", self.gc.mib_per_second),
            ("gc.horizon_step_mib", self.gc.horizon_step_mib),
            ("wal.keep_mib", self.wal.keep_mib),
            ("store.block_cache_mib", self.store.block_cache_mib),
            ("store.background_mib_per_second", self.store.background_mib_per_second),
        ];
        for (key, mib) in shifted {
            if mib > 1 << 40 {
                return refuse(key, mib.to_string(), "must be at most 1099511627776");
            }
        }
        for (key, mib) in [("store.layer_mib", self.store.layer_mib), ("page_cache_mib", self.page_cache_mib)] {
            if !(1..=1 << 20).contains(&mib) {
                return refuse(key, mib.to_string(), "must be from 1 to 1048576");
            }
        }
        Ok(())
    }

    /// The text of a new configuration file: every key that has a default.
    pub fn default_file() -> String {
        let body = toml::to_string_pretty(&Config::default()).expect("the defaults are plain values");
        format!(
            "# Configuration of the page server. Every key is optional; what stands here are the defaults. What they mean: docs/configuration.md.\n\n{body}"
        )
    }

    /// How long a read waits for an LSN.
    pub fn wait_lsn_timeout(&self) -> Duration {
        Duration::from_secs(self.wait_lsn_timeout_seconds)
    }

    /// Directories in which a `postgres` of `version` may be found, in the order they are tried.
    pub fn postgres_bin_dirs(&self, version: PgVersion) -> Vec<PathBuf> {
        let mut dirs = self.redo.postgres_bin_dirs.clone();
        dirs.push(PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")));
        if let Some(home) = std::env::var_os("PAGESERVER_PG_HOME") {
            dirs.push(PathBuf::from(home).join(version.to_string()).join("bin"));
        }
        dirs.push(PathBuf::from(format!("/opt/pageserver-postgresql/{version}/bin")));
        dirs
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the file that `init` writes loads, and mistakes are named. Method: real files.

    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(CONFIG_FILE_NAME), text).unwrap();
        Config::load(dir.path())
    }

    /// Keys with their defaults, as the document writes them.
    fn rows(prefix: &str, table: &toml::Table) -> Vec<String> {
        let row = |(key, value): (&String, &toml::Value)| match value {
            toml::Value::Table(section) => rows(&format!("{key}."), section),
            value => vec![format!("| `{prefix}{key}` | `{value}` |")],
        };
        table.iter().flat_map(row).collect()
    }

    #[test]
    fn the_document_has_every_key_with_its_default() {
        let document = include_str!("../../docs/configuration.md");
        let expected = rows("", &Config::default_file().parse().unwrap());
        for row in &expected {
            assert!(document.contains(row), "{row}");
        }
        // One has no default.
        assert_eq!(document.matches("\n| `").count(), expected.len() + 1);
    }

    #[test]
    fn the_default_file_loads_and_says_every_key() {
        let config = load(&Config::default_file()).unwrap();
        assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("listen = \"0.0.0.0:1\"", "0.0.0.0:1"),
            ("lisen = 1", "lisen"),
            ("[redo]\nthreads = 0", "redo.threads"),
            ("[redo]\nchain_records_max = 15", "redo.chain_records_max"),
            ("[redo]\npreload_libraries = [\"mine\", 'a\"b']", "preload_libraries = [\"mine\", 'a\"b']"),
            ("[redo]\npreload_libraries = [\"lib/mine\"]", "lib/mine"),
            ("page_cache_mib = -1", "page_cache_mib"),
            ("[redo]\nengine = \"mine\"", "`native`, `postgres`, `verify`"),
            ("x", "line 1"),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
