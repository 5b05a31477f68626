//! Are the sizes that are kept of databases and SLRUs the sums of what they are kept of?

use std::collections::BTreeMap;
use std::sync::Arc;

use keyenc::{Key, Object};
use postgres_ffi::{BlockNumber, ForkNumber, Lsn, RelTag, SlruKind};

use super::finding::advice;
use super::job::{Job, VerifyError};
use super::{Finding, Part, name_of};
use crate::ingest::KeptSize;
use crate::timeline::Timeline;

/// Checks what is kept at `lsn` against the sum of `relations`, which are all there are at that LSN, and of the segments of SLRUs. One that is not kept is
/// summed up by who reads it, and so cannot be wrong.
pub(super) fn check(
    job: &mut Job<'_>,
    timeline: &Arc<Timeline>,
    lsn: Lsn,
    relations: &[(RelTag, ForkNumber, BlockNumber)],
) -> Result<(), VerifyError> {
    let mut sums: BTreeMap<Key, KeptSize> = BTreeMap::new();
    for (RelTag { spc_oid, db_oid, .. }, fork, block_count) in relations {
        let database = Object::DatabaseSize { spc_oid: *spc_oid, db_oid: *db_oid };
        sums.entry(database.into()).or_default().add_fork(*fork, *block_count);
    }
    for kind in SlruKind::ALL {
        let slru = sums.entry(Object::SlruSize { kind }.into()).or_default();
        timeline.slru_segments(kind, lsn)?.into_iter().for_each(|(_, page_count)| slru.add_segment(page_count));
    }
    for class in [Object::DatabaseSize { spc_oid: 0, db_oid: 0 }, Object::SlruSize { kind: SlruKind::Clog }] {
        for (object, kept) in timeline.kept_sizes(class, lsn)? {
            let sum = sums.get(&object.into()).copied().unwrap_or_default();
            if kept != sum {
                job.found(&wrong(timeline, lsn, object, kept, sum))?;
            }
        }
    }
    Ok(())
}

fn wrong(timeline: &Arc<Timeline>, lsn: Lsn, object: Object, kept: KeptSize, sum: KeptSize) -> Finding {
    let what = format!(
        "a kept size that is not the sum of what is there. blocks=`{}`, sum=`{}`; relations or segments=`{}`, sum=`{}`",
        kept.blocks, sum.blocks, kept.count, sum.count
    );
    Finding {
        timeline: Some(name_of(timeline)),
        part: Part::Store,
        object: format!("{object:?}"),
        lsn: Some(lsn),
        file: None,
        what,
        what_to_do: advice::FAULT,
    }
}
