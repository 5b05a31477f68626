//! The process engine with real records: pages equal PostgreSQL's own, errors are answers, processes come and go.

use pageserver::redo::Engine;
use postgres_ffi::mask::compare_pages;
use postgres_ffi::{ForkNumber, PgVersion};

use crate::cluster::{Cluster, chains};

const HEAP_AND_INDEX: &[&str] = &[
    "CREATE TABLE t (id int PRIMARY KEY, v text)",
    "INSERT INTO t SELECT i, repeat('x', i % 100) FROM generate_series(1, 2000) i",
    "UPDATE t SET v = v || 'y' WHERE id % 3 = 0",
    "DELETE FROM t WHERE id % 5 = 0",
    "VACUUM t",
    "INSERT INTO t SELECT i, 'again' FROM generate_series(3001, 3500) i",
];

fn whole_chains_give_the_pages_on_disk(version: PgVersion) {
    let cluster = Cluster::init(version, &["full_page_writes=off"], &[]);
    cluster.sql(HEAP_AND_INDEX);
    let chains = chains(&cluster.records());
    let requests: Vec<_> = chains.into_values().filter(|chain| chain.fork == ForkNumber::Main).collect();
    let engine = cluster.engine();
    let answers = engine.redo(&requests);
    let mut compared = 0;
    for (request, answer) in requests.iter().zip(answers) {
        let tag = (request.rel, request.fork, request.block_no);
        let page = answer.unwrap_or_else(|error| panic!("{tag:?}: {error}"));
        let Some(on_disk) = cluster.page_on_disk(tag) else { continue };
        let comparison = compare_pages(&page, &on_disk, request.fork, request.block_no);
        assert!(!comparison.is_mismatch(), "{tag:?}, {} records: {comparison:?}", request.records.len());
        compared += 1;
    }
    assert!(compared >= 30, "only {compared} pages of {} compared", requests.len());
    assert_eq!((engine.stats().starts, engine.stats().refused), (1, 0));
}

#[test]
fn whole_chains_give_the_pages_on_disk_15() {
    whole_chains_give_the_pages_on_disk(PgVersion::V15);
}

#[test]
fn whole_chains_give_the_pages_on_disk_17() {
    whole_chains_give_the_pages_on_disk(PgVersion::V17);
}

#[test]
fn whole_chains_give_the_pages_on_disk_18() {
    whole_chains_give_the_pages_on_disk(PgVersion::V18);
}
