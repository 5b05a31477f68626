//! A PostgreSQL 15 cluster without a server: SQL goes through `postgres --single`, its WAL gives real chains, its control file starts a redo process.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use nix::unistd::{Uid, User};
use pageserver::delta::POSTGRES_TAG;
use pageserver::ingest::page_changes::{PageContent, page_changes};
use pageserver::redo::native::NativeEngine;
use pageserver::redo::process::{PostgresProgram, ProcessConfig, ProcessEngine, Program};
use pageserver::redo::{Engine, EngineRequest, NoEngine};
use postgres_ffi::control_file::ControlFile;
use postgres_ffi::wal::{DecodedRecord, RecordHeader, WalStreamDecoder};
use postgres_ffi::{BlockNumber, ForkNumber, Lsn, PgVersion, RelTag};

const VERSION: PgVersion = PgVersion::V15;
const INCLUDE_DIR: &str = "/usr/include/postgresql/15/server";

/// The cluster; its directory goes with it.
pub struct RedoCluster {
    dir: tempfile::TempDir,
    bin: PathBuf,
    user: Option<User>,
}

/// Records of a page, oldest first.
type Records = Vec<(Lsn, Bytes)>;

impl RedoCluster {
    /// Makes it and runs `statements`. Needs PostgreSQL 15 (`scripts/setup`).
    pub fn new(statements: &[&str]) -> Result<Self> {
        let bin =
            std::env::var_os("PAGESERVER_TEST_PG15_BIN").map_or("/usr/lib/postgresql/15/bin".into(), PathBuf::from);
        let dir = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir()?;
        let user = if Uid::effective().is_root() { User::from_name("postgres")? } else { None };
        let cluster = RedoCluster { dir, bin, user };
        fs::create_dir(cluster.data_dir())?;
        if let Some(user) = &cluster.user {
            chown(cluster.data_dir(), Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        }
        let mut initdb = cluster.command("initdb");
        initdb.args(["--no-sync", "--no-instructions", "--auth=trust", "--locale=C", "-D"]).arg(cluster.data_dir());
        let output = initdb.output().context("run initdb")?;
        ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        fs::copy(cluster.data_dir().join("global/pg_control"), cluster.dir.path().join("first_pg_control"))?;
        cluster.run(statements)?;
        Ok(cluster)
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.env("LC_ALL", "C").current_dir(self.dir.path());
        if let Some(user) = &self.user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    fn run(&self, statements: &[&str]) -> Result<()> {
        let mut command = self.command("postgres");
        command.args(["--single", "-j", "-D"]).arg(self.data_dir());
        for setting in ["full_page_writes=off", "fsync=off", "exit_on_error=on", "autovacuum=off", "wal_keep_size=4GB"]
        {
            command.arg("-c").arg(setting);
        }
        command.arg("postgres").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let script: String = statements.iter().map(|statement| format!("{statement};\n\n")).collect();
        child.stdin.take().context("a pipe")?.write_all(script.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// A redo process for this cluster, not started yet.
    pub fn process(&self) -> Result<Arc<ProcessEngine>> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pageserver/redo_extension");
        let mut make = Command::new("make");
        make.arg("--silent").arg("-C").arg(source).arg(format!("INCLUDE={INCLUDE_DIR}"));
        let built = make.arg(format!("OUT={}", self.dir.path().display())).status().context("run make")?;
        ensure!(built.success(), "the redo extension does not build");
        let program = PostgresProgram {
            postgres: self.bin.join("postgres"),
            extension: self.dir.path().join("pageserver_redo.so"),
            pg_control: fs::read(self.data_dir().join("global/pg_control"))?.into(),
            wal_log_hints: true,
            preload_libraries: Vec::new(),
            work_dir: None,
            run_as: self.user.as_ref().map(|user| user.name.clone()),
        };
        Ok(Arc::new(ProcessEngine::new(ProcessConfig::new(Program::Postgres(program), VERSION))))
    }

    /// The redo that is a function.
    pub fn native(&self) -> Arc<NativeEngine> {
        Arc::new(NativeEngine::new(VERSION, Arc::new(NoEngine)))
    }

    /// The last `length` records of the page that has the most of `rmid`, on the page as it was before them. The page has more than
    /// 200 records since it began.
    pub fn chain(&self, rmid: u8, length: usize) -> Result<EngineRequest> {
        let histories = self.histories()?;
        let of_manager = |records: &Records| {
            records
                .iter()
                .filter(|(_, record)| RecordHeader::parse(record).is_some_and(|header| header.rmid == rmid))
                .count()
        };
        let longest = histories.into_iter().max_by_key(|(_, records)| of_manager(records));
        let ((rel, fork, block_no), mut records) = longest.context("no page has records")?;
        ensure!(of_manager(&records) > 200, "only {} records of rmid {rmid} on one page", records.len());
        let last = records.split_off(records.len() - length);
        let before = EngineRequest { rel, fork, block_no, base: None, records };
        let base = self.native().redo(&[before]).pop().context("an answer")??;
        Ok(EngineRequest { rel, fork, block_no, base: Some(Bytes::from(base as Box<[u8]>)), records: last })
    }

    /// Records of each page that begins in this WAL, since it began anew.
    fn histories(&self) -> Result<HashMap<(RelTag, ForkNumber, BlockNumber), Records>> {
        let control = ControlFile::decode(&fs::read(self.dir.path().join("first_pg_control"))?)?;
        let mut decoder = WalStreamDecoder::new(VERSION, control.checkpoint_lsn, control.xlog_seg_size);
        let mut segments: Vec<PathBuf> =
            fs::read_dir(self.data_dir().join("pg_wal"))?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        segments.retain(|path| path.file_name().is_some_and(|name| name.len() == 24));
        segments.sort();
        for (number, path) in segments.iter().enumerate() {
            let bytes = Bytes::from(fs::read(path)?);
            let skipped = control.checkpoint_lsn.segment_offset(control.xlog_seg_size.into()) as usize;
            decoder.feed(if number == 0 { bytes.slice(skipped..) } else { bytes });
        }
        let (mut histories, mut value) = (HashMap::<_, Records>::new(), Vec::new());
        while let Ok(Some((start_lsn, end_lsn, raw))) = decoder.next_record() {
            let record = DecodedRecord::decode(VERSION, start_lsn, end_lsn, raw)?;
            page_changes(&record, true, &mut value, &mut |change| {
                let PageContent::Delta { starts_anew, value: [POSTGRES_TAG, cut_down @ ..] } = change.content else {
                    return Ok(());
                };
                let page = (change.rel, change.fork, change.block_no);
                if starts_anew {
                    histories.insert(page, Records::new());
                }
                if let Some(records) = histories.get_mut(&page) {
                    records.push((end_lsn, Bytes::copy_from_slice(cut_down)));
                }
                Ok(())
            })?;
        }
        Ok(histories)
    }
}
