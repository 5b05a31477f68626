//! Leases on the wire: from the command to the repository, and to rows.

use std::time::Duration;

use postgres_ffi::Lsn;

use super::backend::BackendError;
use super::message::{Column, Value};
use crate::timeline::{LEASE_DEFAULT, Lease, Repository};
use crate::wall_time::WallTime;

/// What is to be done about leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseCommand {
    /// `LEASE name AT lsn [FOR seconds]`
    Give {
        /// The timeline.
        timeline: String,
        /// What is needed of it.
        lsn: Lsn,
        /// For how long; the default without.
        seconds: Option<u64>,
    },
    /// `LEASE LIST [name]`
    List {
        /// Only those on this timeline.
        timeline: Option<String>,
    },
    /// `LEASE END lease`
    End {
        /// Its number.
        lease_id: u64,
    },
}

/// One lease, as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseInfo {
    /// Its number.
    pub lease_id: u64,
    /// The timeline's name, or its id where it is gone.
    pub timeline: String,
    /// The LSN that it keeps.
    pub lsn: Lsn,
    /// When it is over.
    pub valid_until: WallTime,
}

/// Columns of its rows.
pub(super) const COLUMNS: &[Column] =
    &[Column::int8("lease"), Column::text("timeline"), Column::text("lsn"), Column::text("valid_until")];

impl LeaseInfo {
    pub(super) fn row(&self) -> [Value; 4] {
        [
            Value::count(self.lease_id),
            self.timeline.as_str().into(),
            Value::display(Some(self.lsn)),
            Value::display(Some(self.valid_until)),
        ]
    }
}

/// Does it.
pub(super) fn apply(repository: &Repository, command: &LeaseCommand) -> Result<Vec<LeaseInfo>, BackendError> {
    let leases = match command {
        LeaseCommand::Give { timeline, lsn, seconds } => {
            let duration = seconds.map_or(LEASE_DEFAULT, Duration::from_secs);
            vec![repository.lease(timeline, *lsn, duration)?]
        }
        LeaseCommand::List { timeline } => repository.leases(timeline.as_deref())?,
        LeaseCommand::End { lease_id } => vec![repository.end_lease(*lease_id)?],
    };
    Ok(leases.into_iter().map(|lease| info(repository, lease)).collect())
}

fn info(repository: &Repository, lease: Lease) -> LeaseInfo {
    let timeline = repository.timeline(lease.timeline_id);
    let seconds = i64::try_from(lease.valid_until_unix_seconds).unwrap_or(i64::MAX);
    LeaseInfo {
        lease_id: lease.lease_id,
        timeline: timeline.map_or_else(|_| lease.timeline_id.to_string(), |timeline| timeline.metadata().name.clone()),
        lsn: lease.lsn,
        valid_until: WallTime::from_unix_seconds(seconds),
    }
}
