//! Streams WAL from a primary into a timeline, for ever: received, written, fsynced, ingested, reported.
//!
//! - One thread per timeline. It reads the socket only when it has nothing else to do, so a slow sink or disk shows at the primary as
//!   replication lag and nowhere as memory.
//! - Whatever one read of the socket brings is written and fsynced together, then reported as flushed, then ingested: never the other way round.
//! - Reports what is true: *write* = in our files, *flush* = end of the last whole record that is fsynced, *apply* = end of the last record that
//!   can be read. So `synchronous_standby_names` may name us.
//! - WAL that was durable but not ingested when we stopped is ingested from our own files before the primary is asked for more.
//! - Connections end and come back; the thread ends only when it is told to, or when disk or ingest fail.
//! - Follows a promotion. A primary whose history leaves ours before our last record is refused: [`ReceiverState::Diverged`].
//!
//! In reading order: what people see ([`status`]), what is checked of a primary ([`checks`]), one connection ([`session`]), the thread ([`receiver`]), one segment again ([`fetch`]).

pub mod status;
pub use status::{KeptWal, ReceiverState, ReceiverStatus};

mod error;
pub use error::{Divergence, ReceiverError};

mod checks;
pub use checks::{check_wal_level, explain_refused_connection};

mod session;

mod fetch;
pub use fetch::fetch_segment;

mod receiver;
pub use receiver::{ReceiverConfig, WalReceiver};

use bytes::Bytes;
use postgres_ffi::Lsn;

/// Why a sink takes no more WAL.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// Where WAL goes once it is durable: a timeline's ingest.
pub trait WalSink: Send {
    /// End of the last record that was ingested: where it wants to go on.
    fn last_record_lsn(&self) -> Lsn;

    /// Forgets what it was given of an unfinished record. The next piece starts at [`WalSink::last_record_lsn`].
    fn restart(&mut self) -> Result<(), SinkError>;

    /// Ingests every record that is whole with `bytes`, which follow those given before. The end of the last one, readable by then.
    /// May block: nothing is read from the primary in the meantime. An error ends the receiver.
    fn ingest(&mut self, start_lsn: Lsn, bytes: Bytes) -> Result<Lsn, SinkError>;

    /// The end of the WAL that is durable in the timeline's files, after each fsync.
    fn durable(&mut self, flushed_lsn: Lsn) {
        let _ = flushed_lsn;
    }

    /// WAL files that lie wholly below may be removed; asked when a segment is full. `None`: all are kept.
    fn kept(&self) -> Option<KeptWal> {
        None
    }
}
