//! Progress of replication origins. PG: src/backend/replication/logical/origin.c.

use keyenc::{Key, Kind, Object};
use postgres_ffi::Lsn;
use postgres_ffi::records::replorigin::{DO_NOT_REPLICATE, DROP, OriginSet, SET, parse_drop};

use super::step::Step;
use super::{IngestError, WalIngest};

/// How far an origin was replayed. The value of `Object::ReplicationOrigin`: both positions as u64, big-endian, 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginProgress {
    /// Position at the origin, [`Lsn::ZERO`] for none.
    pub remote_lsn: Lsn,
    /// End of the local record that brought it there.
    pub local_lsn: Lsn,
}

impl OriginProgress {
    /// The stored bytes.
    pub fn encode(&self) -> [u8; 16] {
        (u128::from(self.remote_lsn.as_u64()) << 64 | u128::from(self.local_lsn.as_u64())).to_be_bytes()
    }

    /// What the stored bytes say, `None` if they are not 16.
    pub fn decode(value: &[u8]) -> Option<Self> {
        let both = u128::from_be_bytes(value.try_into().ok()?);
        Some(OriginProgress { remote_lsn: Lsn::new((both >> 64) as u64), local_lsn: Lsn::new(both as u64) })
    }
}

impl WalIngest {
    /// PG: replorigin_redo.
    pub(super) fn ingest_replication_origin(&mut self, step: &mut Step<'_>) -> Result<(), IngestError> {
        let main_data = step.record.main_data();
        match step.record.operation() {
            SET => {
                let set = OriginSet::parse(main_data).map_err(|source| step.bad_body(source))?;
                self.advance_origin(step, set.origin_id, Lsn::new(set.remote_lsn), set.force)
            }
            DROP => {
                let origin_id = parse_drop(main_data).map_err(|source| step.bad_body(source))?;
                if self.origin(step, origin_id)?.is_some() {
                    step.put(Object::ReplicationOrigin { origin_id }, Kind::Tombstone, &[]);
                    self.known.origins.insert(origin_id, None);
                }
                Ok(())
            }
            _ => Err(step.unknown_operation()),
        }
    }

    /// Moves an origin forward, or back if `go_backward`. PG: replorigin_advance.
    pub(super) fn advance_origin(
        &mut self,
        step: &mut Step<'_>,
        origin_id: u16,
        remote_lsn: Lsn,
        go_backward: bool,
    ) -> Result<(), IngestError> {
        if origin_id == DO_NOT_REPLICATE || origin_id == 0 {
            return Ok(());
        }
        let before = self.origin(step, origin_id)?;
        let mut progress = before.unwrap_or(OriginProgress { remote_lsn: Lsn::ZERO, local_lsn: Lsn::ZERO });
        if go_backward || progress.remote_lsn < remote_lsn {
            progress.remote_lsn = remote_lsn;
        }
        progress.local_lsn = step.lsn(); // Records come in order: always forward.
        if before != Some(progress) {
            step.put(Object::ReplicationOrigin { origin_id }, Kind::Image, &progress.encode());
            self.known.origins.insert(origin_id, Some(progress));
        }
        Ok(())
    }

    fn origin(&mut self, step: &Step<'_>, origin_id: u16) -> Result<Option<OriginProgress>, IngestError> {
        if let Some(known) = self.known.origins.get(&origin_id) {
            return Ok(*known);
        }
        let object = Object::ReplicationOrigin { origin_id };
        let found = match step.object(object)? {
            None => None,
            Some(value) => {
                let wrong = IngestError::StoredValue { key: Key::from(object), length: value.len() };
                Some(OriginProgress::decode(&value).ok_or(wrong)?)
            }
        };
        self.known.origins.insert(origin_id, found);
        Ok(found)
    }
}
