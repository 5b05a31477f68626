//! Follows a primary's WAL from the cluster's first record on, and checks redo of each record.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pageserver::redo::native::NativeEngine;
use pageserver::redo::{NoEngine, RedoConfig, WalRedo};
use pageserver::redo_check::{CheckReport, CheckSettings, RedoCheck};
use pageserver::replication::{ConnInfo, Connection, Mode, Started, Status, WalEvent, WalStream};
use postgres_ffi::Lsn;
use postgres_ffi::redo::case::RedoCase;
use postgres_ffi::wal::{DecodedRecord, WalStreamDecoder};
use tools::datadir::DataDir;

use crate::wait_until_some;

/// How long the stream may be silent before the stop position is looked at again.
const TICK: Duration = Duration::from_millis(200);

/// Applications that are kept of each operation on each of its blocks.
const CASES_PER_OPERATION: usize = 6;

/// Until a primary that crashed streams again.
const RESTART_LIMIT: Duration = Duration::from_secs(60);

/// What a check has found, and examples of what it applied.
pub struct Checked {
    pub report: CheckReport,
    pub cases: Vec<RedoCase>,
}

/// A thread that streams and checks.
pub struct Follower {
    thread: JoinHandle<Result<Checked>>,
    /// Where to end; the highest position until it is known.
    stop_lsn: Arc<AtomicU64>,
}

impl Follower {
    /// Starts behind the checkpoint in `cold_dir`, the cluster's directory as initdb left it.
    pub fn start(conninfo: &str, cold_dir: PathBuf) -> Result<Self> {
        let stop_lsn = Arc::new(AtomicU64::new(u64::MAX));
        let conninfo: ConnInfo = conninfo.parse().context("connection string")?;
        let stop = Arc::clone(&stop_lsn);
        let thread =
            thread::Builder::new().name("follower".to_owned()).spawn(move || follow(&conninfo, cold_dir, &stop))?;
        Ok(Follower { thread, stop_lsn })
    }

    /// An error if the thread has ended already.
    pub fn check(&self) -> Result<()> {
        if self.thread.is_finished() {
            bail!("the check of the WAL ended by itself");
        }
        Ok(())
    }

    /// Checks up to `stop_lsn` and gives what was found.
    pub fn finish(self, stop_lsn: Lsn) -> Result<Checked> {
        self.stop_lsn.store(stop_lsn.as_u64(), Ordering::Relaxed);
        self.thread.join().map_err(|panic| anyhow::anyhow!("the check panicked: {panic:?}"))?
    }
}

fn follow(conninfo: &ConnInfo, cold_dir: PathBuf, stop_lsn: &AtomicU64) -> Result<Checked> {
    let base = DataDir::open(&cold_dir)?;
    let control = &base.control;
    let start_lsn = control.checkpoint_lsn;
    let mut stream = start_stream(conninfo, start_lsn)?;
    let engine = Arc::new(NativeEngine::new(control.version, Arc::new(NoEngine)));
    let redo = WalRedo::start(&RedoConfig::default(), engine);
    let settings = CheckSettings {
        version: control.version,
        data_checksums: control.data_checksums(),
        wal_log_hints: control.wal_log_hints,
        has_base: true,
        chains: false,
        cases: CASES_PER_OPERATION,
    };
    let mut check =
        RedoCheck::new(settings, &redo, Box::new(|(rel, fork, block_no)| base.read_page(rel, fork, block_no)));
    let mut decoder = WalStreamDecoder::new(control.version, start_lsn, control.xlog_seg_size);
    while decoder.last_record_end().as_u64() < stop_lsn.load(Ordering::Relaxed) {
        match stream.next(TICK) {
            Ok(WalEvent::Data { bytes, .. }) => decoder.feed(bytes),
            Ok(WalEvent::TimelineEnd { .. }) => bail!("the primary's timeline ended"),
            Ok(WalEvent::Keepalive { .. } | WalEvent::Idle) => {}
            // The primary crashed, as it may under its regression suite. Its WAL goes on behind what was flushed, and no more was sent.
            Err(_) => {
                let start_lsn = decoder.last_record_end();
                stream = wait_until_some("the primary to stream again", RESTART_LIMIT, || {
                    Ok(start_stream(conninfo, start_lsn).ok())
                })?;
                decoder = WalStreamDecoder::new(control.version, start_lsn, control.xlog_seg_size);
                continue;
            }
        }
        while let Some((start_lsn, end_lsn, raw)) = decoder.next_record()? {
            let record = DecodedRecord::decode(control.version, start_lsn, end_lsn, raw)
                .with_context(|| format!("decode the record at {start_lsn}"))?;
            check.record(&record).with_context(|| format!("check the record at {start_lsn}"))?;
        }
        let done = decoder.last_record_end();
        // If it cannot be sent, the stream has ended, which the next round finds.
        let _ = stream.send_status(&Status { write_lsn: done, flush_lsn: done, apply_lsn: done }, false);
    }
    let report = check.report();
    Ok(Checked { report, cases: check.cases().cloned().collect() })
}

fn start_stream(conninfo: &ConnInfo, start_lsn: Lsn) -> Result<WalStream> {
    let mut connection = Connection::connect(conninfo, Mode::Replication)?;
    let identity = connection.identify_system()?;
    match connection.start_replication(Some(super::leg::SLOT), start_lsn, identity.timeline_id)? {
        Started::Streaming(stream) => Ok(stream),
        Started::TimelineEnded { .. } => bail!("nothing to stream"),
    }
}
