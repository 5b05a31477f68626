//! Names of timelines are unique, those of timelines in the making included.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Repository, RepositoryError};
use crate::timeline::metadata::check_name;

/// Names of timelines that are being made.
#[derive(Clone, Default)]
pub(super) struct Names(Arc<Mutex<HashSet<String>>>);

/// A name that nobody else can take while this lives.
pub(super) struct ReservedName {
    name: String,
    names: Names,
}

impl ReservedName {
    pub fn as_str(&self) -> &str {
        &self.name
    }
}

impl Drop for ReservedName {
    fn drop(&mut self) {
        self.names.0.lock().remove(&self.name);
    }
}

impl Repository {
    /// Takes `name` for a timeline that is to be made or renamed. Errors: it is no name, or taken.
    pub(super) fn reserve_name(&self, name: &str) -> Result<ReservedName, RepositoryError> {
        check_name(name)?;
        let mut reserved = self.names.0.lock();
        let is_taken = self.timelines.read().values().any(|timeline| timeline.metadata().name == name);
        if is_taken || !reserved.insert(name.to_owned()) {
            return Err(RepositoryError::NameTaken { name: name.to_owned() });
        }
        Ok(ReservedName { name: name.to_owned(), names: self.names.clone() })
    }
}
