//! Why a read gave no answer.

use std::sync::Arc;

use keyenc::{Key, KeyError};
use postgres_ffi::{ForkNumber, Lsn, RelTag};

use crate::redo::RedoError;
use crate::seq_wait::WaitError;
use crate::store::StoreError;

/// A read failed. What the caller does next follows from the variant. Cheap to clone: many may wait for the same page.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The LSN lies below what this timeline can show.
    #[error(
        "the LSN is below the first readable one. request_lsn=`{request_lsn}`, first_readable_lsn=`{first_readable_lsn}`"
    )]
    BelowFirstReadable {
        /// What was asked for.
        request_lsn: Lsn,
        /// The lowest LSN that can be read.
        first_readable_lsn: Lsn,
    },
    /// The LSN has not arrived yet; wait for it first.
    #[error("the LSN has not arrived yet. request_lsn=`{request_lsn}`, last_record_lsn=`{last_record_lsn}`")]
    NotYet {
        /// What was asked for.
        request_lsn: Lsn,
        /// End of the last record ingested.
        last_record_lsn: Lsn,
    },
    /// The LSN did not arrive in time.
    #[error(
        "LSN timeout: the LSN did not arrive in time (`wait_lsn_timeout_seconds`). request_lsn=`{request_lsn}`, last_record_lsn=`{last_record_lsn}`{state}"
    )]
    WaitTimeout {
        /// What was asked for.
        request_lsn: Lsn,
        /// End of the last record ingested.
        last_record_lsn: Lsn,
        /// Why nothing arrives, if that is known; begins with `; `.
        state: String,
    },
    /// The relation fork does not exist at this LSN.
    #[error(
        "Not found: the relation fork does not exist at this LSN. relation=`{rel}`, fork=`{fork}`, request_lsn=`{request_lsn}`"
    )]
    RelationMissing {
        /// The relation.
        rel: RelTag,
        /// The fork.
        fork: ForkNumber,
        /// What was asked for.
        request_lsn: Lsn,
    },
    /// Neither relation nor SLRU nor anything else that is read as a page.
    #[error("Not found: nothing is there at this LSN. key=`{key}`, request_lsn=`{request_lsn}`")]
    Missing {
        /// What was asked for.
        key: Key,
        /// As of when.
        request_lsn: Lsn,
    },
    /// A stored value does not have the form that its key promises.
    #[error("Read error: a stored version is damaged. key=`{key}`, version_lsn=`{version_lsn}`: {reason}")]
    Damaged {
        /// Of what.
        key: Key,
        /// Which version.
        version_lsn: Lsn,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Records, but nothing to apply them to.
    #[error("Read error: base image missing. key=`{key}`, oldest_lsn=`{oldest_lsn}`")]
    BaseMissing {
        /// Of what.
        key: Key,
        /// The oldest record found.
        oldest_lsn: Lsn,
    },
    /// A stored key does not decode.
    #[error("Read error: a stored key is damaged")]
    DamagedKey(#[from] KeyError),
    /// The records could not be applied.
    #[error("Read error: the page cannot be made from its records. key=`{key}`, request_lsn=`{request_lsn}`: {source}")]
    Redo {
        /// The page.
        key: Key,
        /// As of when.
        request_lsn: Lsn,
        /// What the engine said.
        source: Arc<RedoError>,
    },
    /// The store failed.
    #[error("Read error: {0}")]
    Store(Arc<StoreError>),
    /// The timeline was deleted or reset while somebody held it: ask for it by name again.
    #[error("the timeline was deleted or reset meanwhile. timeline=`{timeline}`")]
    Gone {
        /// Its name.
        timeline: String,
    },
    /// What the timeline is opened with could not be read when the server started.
    #[error(
        "Read error: the timeline could not be opened at the start of the server; stop it and let `pageserver mend` tell what is left. timeline=`{timeline}`: {reason}"
    )]
    Unopened {
        /// Its name.
        timeline: String,
        /// What could not be read.
        reason: Arc<str>,
    },
    /// The server is shutting down.
    #[error("shutdown")]
    ShuttingDown,
}

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        ReadError::Store(Arc::new(error))
    }
}

impl ReadError {
    /// True if versions that the answer may have depended on were taken out of the store because they could not be read.
    pub fn is_lost(&self) -> bool {
        matches!(self, ReadError::Store(error) if matches!(**error, StoreError::Lost { .. }))
    }

    /// What a failed wait for `request_lsn` means to the reader.
    pub(super) fn from_wait(error: WaitError<Lsn>, request_lsn: Lsn, state: String) -> Self {
        match error {
            WaitError::Timeout { current } => ReadError::WaitTimeout { request_lsn, last_record_lsn: current, state },
            WaitError::Shutdown => ReadError::ShuttingDown,
        }
    }
}
