//! Keys: encode, decode, compare.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use keyenc::{Key, Kind, TimelineNo, VersionKey};
use postgres_ffi::{ForkNumber, Lsn, RelTag};

const KEYS: u32 = 1000;

fn version(n: u32) -> VersionKey {
    let rel = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 + n % 7 };
    VersionKey {
        timeline: TimelineNo(1),
        key: Key::block(rel, ForkNumber::Main, n.wrapping_mul(2_654_435_761)),
        lsn: Lsn::new(u64::from(n) * 64),
        kind: Kind::Delta,
    }
}

fn keys(c: &mut Criterion) {
    let mut group = c.benchmark_group("keys");
    group.throughput(Throughput::Elements(KEYS.into()));
    let versions: Vec<VersionKey> = (0..KEYS).map(version).collect();
    let encoded: Vec<_> = versions.iter().map(VersionKey::encode).collect();
    group.bench_function("encode", |b| {
        b.iter(|| versions.iter().fold(0u8, |sum, version| sum ^ black_box(version.encode())[30]))
    });
    group.bench_function("decode", |b| {
        b.iter(|| encoded.iter().filter(|bytes| VersionKey::decode(black_box(&bytes[..])).is_ok()).count())
    });
    group.bench_function("decode_version", |b| {
        b.iter(|| encoded.iter().filter(|bytes| VersionKey::decode_version(black_box(&bytes[..])).is_ok()).count())
    });
    group.bench_function("sort", |b| {
        b.iter_batched(
            || versions.iter().map(|version| version.key).collect::<Vec<_>>(),
            |mut keys| keys.sort_unstable(),
            criterion::BatchSize::SmallInput,
        )
    });
    group.finish();
}

criterion_group!(benches, keys);
criterion_main!(benches);
