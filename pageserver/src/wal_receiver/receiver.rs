//! The thread of a receiver, its configuration and the handle to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select};
use parking_lot::Mutex;
use postgres_ffi::{Lsn, TimeLineId};
use rand::Rng;

use super::checks::explain_refused_connection;
use super::error::ReceiverError;
use super::session::Session;
use super::{ReceiverState, ReceiverStatus, WalSink};
use crate::replication::{ConnInfo, Connection, Interrupt, Mode, one_line};
use crate::wal::{WalFileError, WalLayout, WalLog};

/// The first pause after a connection ended.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// The longest pause while the trouble may pass by itself.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// The pause when a person has to change something.
const BACKOFF_PERSON: Duration = Duration::from_secs(30);

/// What a receiver is to do.
#[derive(Clone, Debug)]
pub struct ReceiverConfig {
    /// The primary.
    pub conninfo: ConnInfo,
    /// The physical slot to stream from; it is made when it is not there. `None`: without one, for tests and short-lived readers.
    pub slot: Option<String>,
    /// Where our WAL files are, and which cluster they are of.
    pub layout: WalLayout,
    /// Whether the cluster's pages carry checksums, as they did when it was imported; `None`: that is not compared.
    pub data_checksums: Option<bool>,
    /// PostgreSQL timeline of the sink's last record, for a directory that is empty.
    pub pg_timeline_id: TimeLineId,
    /// How often the primary hears from us when nothing happens. PostgreSQL: `wal_receiver_status_interval`, 10 s.
    pub status_interval: Duration,
    /// Silence of the primary after which the connection counts as lost. PostgreSQL: `wal_receiver_timeout`, 60 s.
    pub receive_timeout: Duration,
}

/// What the thread and its handle share.
pub(super) struct Shared {
    status: Mutex<ReceiverStatus>,
    stopping: AtomicBool,
    interrupt: Mutex<Option<Interrupt>>,
}

impl Shared {
    pub(super) fn update(&self, change: impl FnOnce(&mut ReceiverStatus)) {
        change(&mut self.status.lock());
    }

    pub(super) fn set_state(&self, state: ReceiverState) {
        self.update(|status| status.state = state);
    }

    pub(super) fn check_stop(&self) -> Result<(), ReceiverError> {
        if self.stopping.load(Ordering::Acquire) { Err(ReceiverError::Stopped) } else { Ok(()) }
    }

    /// Lets a stop request end this connection. Errors: the request has come already.
    pub(super) fn set_interrupt(&self, interrupt: Interrupt) -> Result<(), ReceiverError> {
        *self.interrupt.lock() = Some(interrupt);
        self.check_stop()
    }
}

/// A running receiver. Dropped: stopped, and waited for.
pub struct WalReceiver {
    shared: Arc<Shared>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl WalReceiver {
    /// Opens the WAL files and starts the thread. Everything that concerns the primary happens there and shows in the status.
    ///
    /// Errors: the files cannot be opened, or the thread not started.
    pub fn start(config: ReceiverConfig, sink: Box<dyn WalSink>) -> Result<Self, WalFileError> {
        let last_record_lsn = sink.last_record_lsn();
        let log = open_log(&config, last_record_lsn)?;
        let status = ReceiverStatus {
            state: ReceiverState::Connecting,
            primary: config.conninfo.to_string(),
            slot: config.slot.clone(),
            pg_timeline_id: log.timeline_id(),
            last_error: None,
            reconnect_count: 0,
            received_lsn: log.flushed_record_end_lsn(),
            flushed_lsn: log.flushed_record_end_lsn(),
            last_record_lsn,
            primary_lsn: None,
            last_message_time: None,
            received_bytes: 0,
            flush_count: 0,
            oldest_wal_lsn: log.oldest_lsn()?,
            wal_needed_by: None,
        };
        let shared = Arc::new(Shared {
            status: Mutex::new(status),
            stopping: AtomicBool::new(false),
            interrupt: Mutex::new(None),
        });
        let (stop, stopped) = bounded(0);
        let path = config.layout.directory.clone();
        let thread = std::thread::Builder::new().name("wal-receiver".into());
        let thread = thread.spawn({
            let shared = Arc::clone(&shared);
            move || receive(&config, &shared, sink, log, &stopped)
        });
        let thread = thread.map_err(|source| WalFileError::Io { action: "start a thread for", path, source })?;
        Ok(WalReceiver { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// How it is doing.
    pub fn status(&self) -> ReceiverStatus {
        self.shared.status.lock().clone()
    }

    /// Asks it to stop and returns at once.
    pub fn request_stop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.stop = None;
        if let Some(interrupt) = self.shared.interrupt.lock().as_ref() {
            interrupt.interrupt();
        }
    }

    /// Stops it and returns when it has ended. A sink that blocks is waited for.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.request_stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a WAL receiver panicked");
        }
    }
}

impl Drop for WalReceiver {
    fn drop(&mut self) {
        self.end();
    }
}

/// The log as it is on disk. Begun anew, with the segment that holds the sink's last record, when it is empty or ends before that.
fn open_log(config: &ReceiverConfig, last_record_lsn: Lsn) -> Result<WalLog, WalFileError> {
    if let Some(log) = WalLog::open(config.layout.clone(), last_record_lsn)? {
        let end_lsn = log.flushed_record_end_lsn().unwrap_or(Lsn::ZERO);
        if last_record_lsn <= end_lsn {
            return Ok(log);
        }
        tracing::warn!(%end_lsn, %last_record_lsn, "WAL files end before what is ingested; taking that segment from the primary again");
        let timeline_id = log.timeline_id().max(config.pg_timeline_id);
        return WalLog::create(config.layout.clone(), timeline_id, config.layout.segment_start(last_record_lsn));
    }
    WalLog::create(config.layout.clone(), config.pg_timeline_id, config.layout.segment_start(last_record_lsn))
}

fn receive(config: &ReceiverConfig, shared: &Shared, mut sink: Box<dyn WalSink>, mut log: WalLog, stop: &Receiver<()>) {
    let span = tracing::info_span!("wal_receiver", primary = %config.conninfo);
    let _entered = span.enter();
    let _guard = PanicGuard { shared };
    let apply_lsn = sink.last_record_lsn();
    let mut session = Session {
        config,
        shared,
        sink: sink.as_mut(),
        log: &mut log,
        apply_lsn,
        wanted_lsn: apply_lsn,
        tidied_segment_start: None,
    };
    let mut backoff = BACKOFF_MIN;
    let mut outcome = session.catch_up();
    loop {
        if outcome.is_ok() {
            let received_before = shared.status.lock().received_bytes;
            let error = match run_once(&mut session, stop) {
                Ok(never) => match never {},
                Err(error) => error,
            };
            // A connection that brought something starts the count anew.
            if received_before != shared.status.lock().received_bytes {
                backoff = BACKOFF_MIN;
            }
            outcome = Err(error);
        }
        let Err(error) = outcome else { continue };
        *shared.interrupt.lock() = None;
        let stopping = shared.stopping.load(Ordering::Acquire);
        if stopping || error.is_final() {
            end_with(shared, stopping, &error);
            return;
        }
        show(shared, &error);
        let pause = if error.needs_a_person() { BACKOFF_PERSON } else { backoff };
        backoff = (backoff * 2).min(BACKOFF_MAX);
        // Half of it by chance, so that many timelines do not come back at once.
        let pause = pause.mul_f64(rand::rng().random_range(0.5..1.0));
        match stop.recv_timeout(pause) {
            Err(crossbeam_channel::RecvTimeoutError::Timeout) => {}
            _ => {
                shared.set_state(ReceiverState::Stopped);
                return;
            }
        }
        outcome = Ok(());
    }
}

/// A fault of ours that panics ends the thread: the status must not go on saying that WAL flows.
struct PanicGuard<'a> {
    shared: &'a Shared,
}

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let reason = "the WAL receiver panicked, the log says where; restart the server".to_owned();
            self.shared.update(|status| {
                status.last_error = Some(reason.clone());
                status.state = ReceiverState::Failed { reason };
            });
        }
    }
}

fn run_once(session: &mut Session<'_>, stop: &Receiver<()>) -> Result<std::convert::Infallible, ReceiverError> {
    session.shared.set_state(ReceiverState::Connecting);
    let connection = connect(session.config, stop)?;
    session.shared.set_interrupt(connection.interrupt_handle()?)?;
    session.run(connection)
}

/// Connects in a thread of its own: looking up a name cannot be interrupted. A stop request leaves that thread behind; it ends by its timeouts.
fn connect(config: &ReceiverConfig, stop: &Receiver<()>) -> Result<Connection, ReceiverError> {
    let (sender, connected) = bounded(1);
    let conninfo = config.conninfo.clone();
    let spawned = std::thread::Builder::new().name("wal-connect".into()).spawn(move || {
        let outcome = Connection::connect(&conninfo, Mode::Replication);
        // Nobody is waiting any more if that fails; the connection is closed then.
        let _ = sender.send(outcome.map_err(|error| explain_refused_connection(&conninfo, error)));
    });
    if let Err(error) = spawned {
        return Err(crate::replication::ReplicationError::Io(error).into());
    }
    select! {
        recv(connected) -> outcome => outcome.unwrap_or(Err(ReceiverError::Stopped)),
        recv(stop) -> _ => Err(ReceiverError::Stopped),
    }
}

fn end_with(shared: &Shared, stopping: bool, error: &ReceiverError) {
    if stopping {
        tracing::info!("stopped");
        shared.set_state(ReceiverState::Stopped);
        return;
    }
    let reason = one_line(error);
    tracing::error!(reason, "WAL receiver failed");
    shared.update(|status| {
        status.last_error = Some(reason.clone());
        status.state = ReceiverState::Failed { reason };
    });
}

/// Puts the error into the status; logs it if it is not the one of the last attempt.
fn show(shared: &Shared, error: &ReceiverError) {
    let text = one_line(error);
    shared.update(|status| {
        status.state = match error {
            ReceiverError::Diverged(divergence) => ReceiverState::Diverged { divergence: *divergence },
            ReceiverError::WalRemoved { next_lsn, reason } => {
                ReceiverState::WalRemoved { next_lsn: *next_lsn, reason: reason.clone() }
            }
            _ => ReceiverState::Waiting,
        };
        status.reconnect_count += 1;
        if status.last_error.as_ref() != Some(&text) {
            tracing::warn!(error = text, "connection to the primary ended; trying again");
            status.last_error = Some(text);
        }
    });
}
