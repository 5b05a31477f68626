//! A receiver with its files, and a sink that decodes every record; a load; comparison of files.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pageserver::replication::{ConnInfo, Connection, Mode};
use pageserver::wal::{WalLayout, WalReader};
use pageserver::wal_receiver::{
    KeptWal, ReceiverConfig, ReceiverState, ReceiverStatus, SinkError, WalReceiver, WalSink,
};
use postgres_ffi::wal::{DecodedRecord, WalStreamDecoder};
use postgres_ffi::{Lsn, PgVersion};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tests::workload::tpcb;
use tests::{Postgres, TestDir, wait_until};

pub const LIMIT: Duration = Duration::from_secs(180);

/// What the sink has seen, and what it is to do.
#[derive(Debug, Default)]
pub struct Seen {
    pub records: AtomicU64,
    pub last_record_lsn: AtomicU64,
    pub held: AtomicBool,
    /// WAL below may go; 0: nothing.
    pub keep_lsn: AtomicU64,
}

impl Seen {
    pub fn last_record_lsn(&self) -> Lsn {
        Lsn::new(self.last_record_lsn.load(Ordering::SeqCst))
    }
}

/// Decodes every record, which checks its CRC and its link to the record before.
pub struct DecodingSink {
    layout: WalLayout,
    decoder: WalStreamDecoder,
    last_record_lsn: Lsn,
    seen: Arc<Seen>,
}

impl DecodingSink {
    pub fn new(layout: WalLayout, last_record_lsn: Lsn, seen: Arc<Seen>) -> Self {
        let decoder = Self::decoder(&layout, last_record_lsn);
        seen.last_record_lsn.store(last_record_lsn.as_u64(), Ordering::SeqCst);
        DecodingSink { layout, decoder, last_record_lsn, seen }
    }

    fn decoder(layout: &WalLayout, lsn: Lsn) -> WalStreamDecoder {
        WalStreamDecoder::new(layout.version, lsn, layout.segment_bytes).with_system_id(layout.system_id)
    }
}

impl WalSink for DecodingSink {
    fn last_record_lsn(&self) -> Lsn {
        self.last_record_lsn
    }

    fn restart(&mut self) -> Result<(), SinkError> {
        self.decoder = Self::decoder(&self.layout, self.last_record_lsn);
        Ok(())
    }

    fn kept(&self) -> Option<KeptWal> {
        let from_lsn = Lsn::from_pg(self.seen.keep_lsn.load(Ordering::SeqCst))?;
        Some(KeptWal { from_lsn, needed_by: "the test" })
    }

    fn ingest(&mut self, start_lsn: Lsn, bytes: bytes::Bytes) -> Result<Lsn, SinkError> {
        while self.seen.held.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if start_lsn != self.decoder.fed_until() {
            return Err(format!("fed {start_lsn} after {}", self.decoder.fed_until()).into());
        }
        self.decoder.feed(bytes);
        while let Some((start_lsn, end_lsn, raw)) = self.decoder.next_record()? {
            DecodedRecord::decode(self.layout.version, start_lsn, end_lsn, raw)?;
            self.last_record_lsn = end_lsn;
            self.seen.records.fetch_add(1, Ordering::SeqCst);
        }
        self.seen.last_record_lsn.store(self.last_record_lsn.as_u64(), Ordering::SeqCst);
        Ok(self.last_record_lsn)
    }
}

/// Follows a server into files below a test's directory; can be stopped and started again.
pub struct Follower {
    pub config: ReceiverConfig,
    pub start_lsn: Lsn,
    pub seen: Arc<Seen>,
    receiver: Option<WalReceiver>,
}

impl Follower {
    /// Follows `server` through `conninfo` from the beginning of a fresh segment on.
    pub fn start(dir: &TestDir, server: &Postgres, conninfo: &str) -> Result<Self> {
        let mut follower = Self::prepare(dir, server, conninfo)?;
        follower.resume(follower.start_lsn)?;
        Ok(follower)
    }

    /// The same, not started.
    pub fn prepare(dir: &TestDir, server: &Postgres, conninfo: &str) -> Result<Self> {
        let conninfo: ConnInfo = conninfo.parse()?;
        let mut connection = Connection::connect(&server.conninfo().parse()?, Mode::Replication)?;
        connection.create_physical_slot("follower")?;
        let identity = connection.identify_system()?;
        let sql = "SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'";
        let layout = WalLayout {
            directory: dir.path().join("wal"),
            version: server.version(),
            segment_bytes: server.query_text(sql)?.parse()?,
            system_id: identity.system_id,
        };
        // A segment that begins behind a switch begins with a record.
        server.execute("SELECT pg_switch_wal()")?;
        server.execute("SELECT pg_logical_emit_message(false, 'test', 'begins the segment')")?;
        let start_lsn = layout.segment_start(server.current_lsn()?);
        let config = ReceiverConfig {
            conninfo,
            slot: Some("follower".into()),
            layout,
            data_checksums: None,
            pg_timeline_id: identity.timeline_id,
            status_interval: Duration::from_secs(1),
            receive_timeout: Duration::from_secs(30),
        };
        Ok(Follower { config, start_lsn, seen: Arc::default(), receiver: None })
    }

    /// Starts the receiver with a sink that stands at `last_record_lsn`.
    pub fn resume(&mut self, last_record_lsn: Lsn) -> Result<()> {
        ensure!(self.receiver.is_none(), "already running");
        let sink = DecodingSink::new(self.config.layout.clone(), last_record_lsn, Arc::clone(&self.seen));
        self.receiver = Some(WalReceiver::start(self.config.clone(), Box::new(sink))?);
        Ok(())
    }

    /// Stops the receiver; how long that took.
    pub fn stop(&mut self) -> Result<Duration> {
        let started = std::time::Instant::now();
        self.receiver.take().context("not running")?.stop();
        Ok(started.elapsed())
    }

    pub fn status(&self) -> Result<ReceiverStatus> {
        Ok(self.receiver.as_ref().context("not running")?.status())
    }

    /// Waits until everything that `server` has written is flushed and ingested here.
    pub fn catch_up(&self, server: &Postgres) -> Result<Lsn> {
        let lsn = flush_lsn(server)?;
        let caught_up = wait_until("the follower to catch up", LIMIT, || {
            let status = self.status()?;
            if let ReceiverState::Failed { reason } = &status.state {
                anyhow::bail!("the receiver failed: {reason}");
            }
            Ok(status.flushed_lsn >= Some(lsn) && status.last_record_lsn >= lsn)
        });
        caught_up.with_context(|| format!("{lsn}: {:?}", self.status()))?;
        Ok(lsn)
    }

    pub fn wait_for_state(&self, what: &str, wanted: impl Fn(&ReceiverState) -> bool) -> Result<ReceiverStatus> {
        let reached = wait_until(what, LIMIT, || Ok(wanted(&self.status()?.state)));
        reached.with_context(|| format!("{:?}", self.status()))?;
        self.status()
    }

    /// Compares our files from `from_lsn` to `to_lsn` with `server`'s own. How many bytes were compared; segments that the server has removed are not.
    pub fn compare(&self, server: &Postgres, from_lsn: Lsn, to_lsn: Lsn) -> Result<u64> {
        let mut reader = WalReader::new(self.config.layout.clone());
        let (mut at_lsn, mut compared) = (from_lsn, 0);
        while at_lsn < to_lsn {
            let ours = reader.read(at_lsn, to_lsn, 64 * 1024)?;
            if let Some(theirs) =
                servers_bytes(&self.config.layout, &server.data_dir().join("pg_wal"), at_lsn, ours.len())?
            {
                if let Some(index) = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs) {
                    anyhow::bail!("byte {index} behind {at_lsn} differs: {:#x} and {:#x}", ours[index], theirs[index]);
                }
                compared += ours.len() as u64;
            }
            at_lsn = Lsn::new(at_lsn.as_u64() + ours.len() as u64);
        }
        Ok(compared)
    }
}

/// The server's bytes, out of the newest timeline's segment file, `None` if it has no such file.
fn servers_bytes(layout: &WalLayout, pg_wal: &Path, lsn: Lsn, length: usize) -> Result<Option<Vec<u8>>> {
    let segment_bytes = u64::from(layout.segment_bytes);
    for timeline_id in (1..10).rev() {
        let name =
            pageserver::wal::names::segment_file_name(timeline_id, lsn.segment_no(segment_bytes), layout.segment_bytes);
        let Ok(file) = fs::File::open(pg_wal.join(name)) else { continue };
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, lsn.segment_offset(segment_bytes))?;
        return Ok(Some(bytes));
    }
    Ok(None)
}

/// Where the server's durable WAL ends.
pub fn flush_lsn(server: &Postgres) -> Result<Lsn> {
    // Something small, flushed at once, so that everything before it is.
    server.execute("SELECT txid_current(); SELECT pg_logical_emit_message(true, 'test', 'flush')")?;
    Ok(server.query_text("SELECT pg_current_wal_flush_lsn()")?.parse()?)
}

/// A pgbench-like load in threads of its own. Errors of the server end a session; it tries again.
pub struct Load {
    stop: Arc<AtomicBool>,
    pub transactions: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn init(server: &Postgres) -> Result<()> {
        tpcb::init(&mut server.connect()?, 1)
    }

    /// Starts `client_count` sessions on the server at `conninfo`.
    pub fn start(conninfo: &str, client_count: u64) -> Self {
        let (stop, transactions) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..client_count).map(|seed| {
            let (stop, transactions, conninfo) = (Arc::clone(&stop), Arc::clone(&transactions), conninfo.to_owned());
            std::thread::spawn(move || {
                let mut rng = SmallRng::seed_from_u64(seed);
                while !stop.load(Ordering::SeqCst) {
                    let Ok(mut client) =
                        postgres::Client::connect(&format!("{conninfo} dbname=postgres"), postgres::NoTls)
                    else {
                        std::thread::sleep(Duration::from_millis(50));
                        continue;
                    };
                    while !stop.load(Ordering::SeqCst) && tpcb::transaction(&mut client, &mut rng, 1).is_ok() {
                        transactions.fetch_add(1, Ordering::SeqCst);
                    }
                }
            })
        });
        Load { threads: threads.collect(), stop, transactions }
    }

    /// Waits until `count` more transactions have gone through.
    pub fn wait_for(&self, count: u64) -> Result<()> {
        let wanted = self.transactions.load(Ordering::SeqCst) + count;
        wait_until("transactions", LIMIT, || Ok(self.transactions.load(Ordering::SeqCst) >= wanted))
    }

    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().expect("a client panicked");
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

pub fn main_versions() -> Vec<PgVersion> {
    [PgVersion::V15, PgVersion::V17].into_iter().filter(|version| Postgres::is_installed(*version)).collect()
}
