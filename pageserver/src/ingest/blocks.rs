//! Pages that a record changes, put as versions.

use keyenc::Kind;

use super::page_changes::{PageContent, page_changes};
use super::step::Step;
use super::{IngestError, WalIngest};

impl WalIngest {
    /// Every page that the record changes, named or not.
    pub(super) fn ingest_blocks(&mut self, step: &mut Step<'_>) -> Result<(), IngestError> {
        let mut value = std::mem::take(&mut self.value);
        let record = step.record;
        let outcome = page_changes(record, self.hint_bits_logged, &mut value, &mut |change| {
            // Redo creates a visibility map or page of it that is not there, and so does the primary before it clears bits.
            let existed = self.touch_block(step, change.rel, change.fork, change.block_no)?;
            let (kind, value) = match change.content {
                PageContent::Image(page) => (Kind::Image, page),
                PageContent::Delta { starts_anew: false, value } if existed => (Kind::Delta, value),
                PageContent::Delta { value, .. } => (Kind::InitDelta, value),
            };
            step.batch.put(change.key(), record.end_lsn, kind, value);
            Ok(())
        });
        self.value = value;
        outcome
    }
}
