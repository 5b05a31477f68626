//! A real cluster, without a server: SQL goes through `postgres --single`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use nix::unistd::{Uid, User};
use pageserver::redo::EngineRequest;
use pageserver::redo::process::{PostgresProgram, ProcessConfig, ProcessEngine, Program};
use postgres_ffi::control_file::ControlFile;
use postgres_ffi::page::Page;
use postgres_ffi::wal::{DecodedRecord, WalStreamDecoder, trim};
use postgres_ffi::{BLCKSZ, BlockNumber, ForkNumber, Lsn, PgVersion, RelTag};
use tempfile::TempDir;

const SEGMENT_BYTES: u32 = 16 * 1024 * 1024;

/// The user that PostgreSQL runs as when the tests run as root.
pub fn server_user() -> Option<User> {
    Uid::effective().is_root().then(|| User::from_name("postgres").unwrap().expect("user postgres exists"))
}

/// Where the servers that Debian 12 has no package for were installed by `scripts/setup`.
fn pg_home() -> PathBuf {
    std::env::var_os("PAGESERVER_PG_HOME").map_or("/opt/pageserver-postgresql".into(), PathBuf::from)
}

/// The programs of `version`: `PAGESERVER_TEST_PG15_BIN` and so on, else where `scripts/setup` or Debian puts them.
pub fn bin_dir(version: PgVersion) -> PathBuf {
    if let Some(dir) = std::env::var_os(format!("PAGESERVER_TEST_PG{version}_BIN")) {
        return dir.into();
    }
    let places = [pg_home().join(version.to_string()).join("bin"), format!("/usr/lib/postgresql/{version}/bin").into()];
    let found = places.iter().find(|bin| bin.join("postgres").exists()).cloned();
    found.unwrap_or_else(|| panic!("no PostgreSQL {version} in {places:?}: run scripts/setup"))
}

fn include_dir(version: PgVersion) -> PathBuf {
    let places = [
        pg_home().join(format!("headers/{version}/usr/include/postgresql/{version}/server")),
        format!("/usr/include/postgresql/{version}/server").into(),
    ];
    let found = places.iter().find(|dir| dir.join("postgres.h").exists()).cloned();
    found.unwrap_or_else(|| panic!("no headers of PostgreSQL {version} in {places:?}: run scripts/setup"))
}

/// The extension, built once per run for each version, where every user can read it.
pub fn extension(version: PgVersion) -> PathBuf {
    static BUILT: OnceLock<Mutex<(TempDir, BTreeMap<PgVersion, PathBuf>)>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Mutex::new((dir, BTreeMap::new()))
    });
    let mut built = built.lock().unwrap();
    let out = built.0.path().join(version.to_string());
    let make = |out: &PathBuf| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("redo_extension");
        let mut command = Command::new("make");
        command.arg("--silent").arg("-C").arg(source);
        command.arg(format!("INCLUDE={}", include_dir(version).display())).arg(format!("OUT={}", out.display()));
        assert!(command.status().unwrap().success(), "extension does not build for {version}");
        out.join("pageserver_redo.so")
    };
    built.1.entry(version).or_insert_with(|| make(&out)).clone()
}

/// One block of one relation.
pub type BlockTag = (RelTag, ForkNumber, BlockNumber);

/// A cluster of one test.
pub struct Cluster {
    pub version: PgVersion,
    dir: TempDir,
    settings: Vec<String>,
    start_lsn: Lsn,
}

impl Cluster {
    /// Makes it, with `settings` (such as `wal_log_hints=on`) for every session and `initdb_args`.
    pub fn init(version: PgVersion, settings: &[&str], initdb_args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        if let Some(user) = server_user() {
            chown(dir.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut cluster = Cluster { version, dir, settings, start_lsn: Lsn::ZERO };
        let mut initdb = cluster.command("initdb");
        initdb.args(["--no-sync", "--no-instructions", "--auth=trust", "--locale=C", "--encoding=UTF8"]);
        initdb.args(initdb_args).arg("-D").arg(cluster.data_dir());
        let output = initdb.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        cluster.start_lsn = ControlFile::decode(&cluster.pg_control()).unwrap().checkpoint_lsn;
        // The pages that have no history in WAL: what initdb made.
        let copied = Command::new("cp").arg("-a").arg(cluster.data_dir()).arg(cluster.cold_dir()).status().unwrap();
        assert!(copied.success());
        cluster
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(bin_dir(self.version).join(program));
        command.env("LC_ALL", "C").current_dir(self.dir.path());
        if let Some(user) = server_user() {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn cold_dir(&self) -> PathBuf {
        self.dir.path().join("cold")
    }

    pub fn pg_control(&self) -> Bytes {
        fs::read(self.data_dir().join("global/pg_control")).unwrap().into()
    }

    pub fn control_file(&self) -> ControlFile {
        ControlFile::decode(&self.pg_control()).unwrap()
    }

    /// Runs `statements`, each a transaction of its own, and ends with a checkpoint. Panics if one fails.
    pub fn sql<S: AsRef<str>>(&self, statements: &[S]) {
        let mut command = self.command("postgres");
        command.args(["--single", "-j", "-D"]).arg(self.data_dir());
        let fixed = [
            "wal_keep_size=4GB",
            "fsync=off",
            "exit_on_error=on",
            "autovacuum=off",
            "max_wal_size=4GB",
            "max_prepared_transactions=5",
        ];
        for setting in fixed.into_iter().chain(self.settings.iter().map(String::as_str)) {
            command.arg("-c").arg(setting);
        }
        command.arg("postgres").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let script: String = statements.iter().map(|statement| statement.as_ref().to_owned() + ";\n\n").collect();
        let mut stdin = child.stdin.take().unwrap();
        let writer = std::thread::spawn(move || _ = stdin.write_all(script.as_bytes()));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
    }

    /// Every record since initdb.
    pub fn records(&self) -> Vec<DecodedRecord> {
        let mut records = Vec::new();
        self.for_each_record(|record| records.push(record));
        records
    }

    /// Calls `each` with every record since initdb, in order.
    pub fn for_each_record(&self, mut each: impl FnMut(DecodedRecord)) {
        let mut segments: Vec<PathBuf> =
            fs::read_dir(self.data_dir().join("pg_wal")).unwrap().map(|entry| entry.unwrap().path()).collect();
        segments.retain(|path| path.file_name().is_some_and(|name| name.len() == 24));
        segments.sort();
        let first_segment = self.start_lsn.segment_no(SEGMENT_BYTES.into());
        let mut decoder = WalStreamDecoder::new(self.version, self.start_lsn, SEGMENT_BYTES);
        for path in segments {
            let name = path.file_name().unwrap().to_str().unwrap();
            let hex = |range: std::ops::Range<usize>| u64::from_str_radix(&name[range], 16).unwrap();
            let segment_no = hex(8..16) * 256 + hex(16..24);
            if segment_no < first_segment {
                continue;
            }
            let mut bytes = Bytes::from(fs::read(&path).unwrap());
            if segment_no == first_segment {
                bytes = bytes.slice(self.start_lsn.segment_offset(SEGMENT_BYTES.into()) as usize..);
            }
            decoder.feed(bytes);
            while let Ok(Some((start, end, raw))) = decoder.next_record() {
                each(DecodedRecord::decode(self.version, start, end, raw).unwrap());
            }
        }
    }

    /// The page as the files have it now. `None`: no such block.
    pub fn page_on_disk(&self, tag: BlockTag) -> Option<Box<Page>> {
        read_page(&self.data_dir(), tag)
    }

    /// The page as initdb made it.
    pub fn page_of_initdb(&self, tag: BlockTag) -> Option<Box<Page>> {
        read_page(&self.cold_dir(), tag)
    }

    /// The engine of this cluster, with usual limits.
    pub fn engine_config(&self) -> ProcessConfig {
        let program = PostgresProgram {
            postgres: bin_dir(self.version).join("postgres"),
            extension: extension(self.version),
            pg_control: self.pg_control(),
            wal_log_hints: true, // As the server does; see `Delta::HeapAllVisible`.
            preload_libraries: Vec::new(),
            work_dir: None,
            run_as: server_user().map(|user| user.name),
        };
        let mut config = ProcessConfig::new(Program::Postgres(program), self.version);
        config.timeout = Duration::from_secs(20); // The machine may be busy with other tests.
        config
    }

    pub fn engine(&self) -> ProcessEngine {
        ProcessEngine::new(self.engine_config())
    }
}

fn read_page(data_dir: &Path, (rel, fork, block_no): BlockTag) -> Option<Box<Page>> {
    use std::os::unix::fs::FileExt;
    let folder = if rel.db_oid == 0 { "global".to_owned() } else { format!("base/{}", rel.db_oid) };
    let path = data_dir.join(folder).join(format!("{}{}", rel.rel_number, fork.file_suffix()));
    let mut page = Box::new([0; BLCKSZ]);
    let offset = u64::from(block_no) * BLCKSZ as u64;
    fs::File::open(path).ok()?.read_exact_at(&mut page[..], offset).ok()?;
    Some(page)
}

/// The whole chain of each block of `relations`' main fork, as the store would hold it: cut down records since the last
/// one that initialises the page or brings an image.
pub fn chains(records: &[DecodedRecord]) -> HashMap<BlockTag, EngineRequest> {
    let mut chains: HashMap<BlockTag, EngineRequest> = HashMap::new();
    for record in records {
        for block in &record.blocks {
            let tag = (block.rel, block.fork, block.block_no);
            let empty = EngineRequest {
                rel: block.rel,
                fork: block.fork,
                block_no: block.block_no,
                base: None,
                records: Vec::new(),
            };
            let image = block.image.as_ref().filter(|image| image.apply);
            let starts = block.will_init || image.is_some();
            if starts {
                chains.insert(tag, empty);
            }
            let Some(chain) = chains.get_mut(&tag) else { continue };
            let mut trimmed = Vec::new();
            trim::trim_for_block(record, block.block_id, &mut trimmed);
            chain.records.push((record.end_lsn, trimmed.into()));
        }
    }
    chains
}

/// A cluster of version 15 with a table that was inserted into, updated and deleted from, and a request for each block
/// of it. Tests that run at the same time share it.
pub fn heap_requests() -> Arc<(Cluster, Vec<EngineRequest>)> {
    static SHARED: Mutex<Weak<(Cluster, Vec<EngineRequest>)>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap();
    shared.upgrade().unwrap_or_else(|| {
        let made = Arc::new(make_heap_requests(PgVersion::V15));
        *shared = Arc::downgrade(&made);
        made
    })
}

fn make_heap_requests(version: PgVersion) -> (Cluster, Vec<EngineRequest>) {
    let cluster = Cluster::init(version, &["full_page_writes=off"], &[]);
    cluster.sql(&[
        "CREATE TABLE t (id int, v text)",
        "INSERT INTO t SELECT i, repeat('x', i % 100) FROM generate_series(1, 400) i",
        "UPDATE t SET v = v || 'y' WHERE id % 3 = 0",
        "DELETE FROM t WHERE id % 5 = 0",
    ]);
    let chains = chains(&cluster.records());
    let mut requests: Vec<_> = chains.into_values().filter(|chain| chain.records.len() > 1).collect();
    let newest = requests.iter().map(|request| request.rel.rel_number).max().unwrap();
    requests.retain(|request| request.rel.rel_number == newest && request.fork == ForkNumber::Main);
    requests.sort_by_key(|request| request.block_no);
    assert!(requests.len() >= 3);
    (cluster, requests)
}
