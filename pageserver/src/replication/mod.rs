//! The client side of PostgreSQL's replication protocol: what a standby says to its primary, in blocking calls.
//!
//! - One connection does one thing at a time; a [`Connection`] becomes a [`BaseBackup`] or a [`WalStream`] and comes back when that ends.
//! - What the server sends is input: every length is bounded, every message is checked, nothing panics.
//! - The password leaves this module only on the wire; it is in no error, log line or `Debug` output.
//! - Does not retry and does not wait longer than its timeouts: `wal_receiver` decides about that.
//!
//! In reading order: where to connect ([`ConnInfo`]), the socket and TLS, frames, startup and authentication ([`Connection`]),
//! commands, [`BaseBackup`], [`WalStream`].

mod auth;
mod backup;
mod channel_binding;
mod commands;
mod connection;
mod conninfo;
pub(crate) mod error;
mod frames;
mod passfile;
mod query;
mod socket;
mod tls;
mod wal_stream;

pub use backup::{ArchiveReader, BackupEnd, BackupOptions, BackupTablespace, BaseBackup};
pub use commands::{ReplicationSlot, SystemIdentity, TimelineHistoryFile};
pub use connection::{Connection, Mode};
pub use conninfo::{ChannelBindingMode, ConnInfo, ConnInfoError, HostAddress, Password, RootCerts, SslMode};
pub use error::{ReplicationError, ServerError, one_line};
pub use socket::Interrupt;
pub use wal_stream::{Started, Status, WalEvent, WalStream};
