//! The WAL of one timeline on our disk: ordinary segment files in a directory of its own.
//!
//! - A name, a length and every byte are PostgreSQL's: `pg_waldump` reads the files, and a server could recover from them.
//! - The end is always the end of the last whole record; a torn tail is zeroed when the directory is opened and leaves no trace.
//! - A segment is durable, with its name, before the next one is begun; so only the last one can be torn.
//! - After a failed write or fsync the log is poisoned: nobody retries an fsync.
//! - Does not know what the records mean; that is `ingest/`.
//!
//! In reading order: [`names`], [`history`], where records end ([`record_ends`]), the directory ([`layout`]), writing ([`log`]), recovery
//! ([`recover`]), reading ([`reader`]), from where on it leads to a position (`leads_to`), from where on it leads to a position (`leads_to`), where the record at a position ends ([`record_at`]), whole files for others (`whole_file`).

mod error;
pub use error::WalFileError;

pub mod names;

pub mod history;

pub mod record_ends;

mod layout;
pub use layout::{SegmentFile, WalLayout};

mod log;
pub use log::WalLog;

mod recover;

mod reader;
pub use reader::WalReader;

mod leads_to;

mod record_at;
pub use record_at::RecordAt;

mod whole_file;
pub(crate) use whole_file::check_records;
pub use whole_file::{WalFileName, WholeFile};

#[cfg(test)]
pub(crate) mod tests;
