//! Tests of the store as its callers see it.

mod concurrent;
mod damaged;
mod faults;
mod kill;
mod model;
mod rules;
mod search;
mod sweep;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keyenc::{Key, Kind, TimelineNo};
use postgres_ffi::{ForkNumber, Lsn, RelTag};

use super::{Batch, Gathered, Settled, Store, StoreConfig, StoreError, TimelineStore};

const T1: TimelineNo = TimelineNo(1);

fn small_config() -> StoreConfig {
    StoreConfig {
        layer_bytes: 1 << 20,
        block_cache_bytes: 4 << 20,
        cache_back_bytes: 256 << 10,
        flush_interval: Duration::from_secs(3600),
        file_bytes: 64 << 10,
        block_bytes: 4 << 10,
        chain_weight_max: super::CHAIN_WEIGHT_LIMIT,
        ..StoreConfig::default()
    }
}

fn open(dir: &Path) -> Arc<Store> {
    Store::open(dir, &small_config()).expect("the store opens")
}

fn block(block_no: u32) -> Key {
    Key::block(RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 }, ForkNumber::Main, block_no)
}

fn batch(versions: &[(Key, u64, Kind, &[u8])]) -> Batch {
    let mut batch = Batch::new();
    for (key, lsn, kind, value) in versions {
        batch.put(*key, Lsn::new(*lsn), *kind, value);
    }
    batch
}

/// Versions found, newest first, and whether they end the gather.
type Chain = (Vec<(u64, Kind, Vec<u8>)>, bool);

fn gather(timeline: &TimelineStore, key: &Key, request_lsn: u64) -> Result<Chain, StoreError> {
    let mut found = Gathered::default();
    let ended = timeline.gather(key, Lsn::new(request_lsn), &mut found)?;
    Ok((found.versions.iter().map(|(lsn, kind, value)| (lsn.as_u64(), *kind, value.to_vec())).collect(), ended))
}
