//! Goal: what a timeline costs is told as it is: its own and not its ancestor's, who keeps what of whom, and a kept size that is wrong is found. That kept
//! sizes are right is the business of the model. Method: plain cases, and what garbage collection then really removes.

use std::ops::ControlFlow;

use super::super::*;
use super::rig::*;
use crate::ingest::KeptSize;
use crate::store::Batch;
use crate::verify::{Finding, VerifyOptions, VerifyProgress, VerifySink};

const BLOCKS: u32 = 8;

/// A record that writes every block of a relation.
fn write_all(repository: &Repository, timeline: &Timeline, n: u64) {
    let mut writes = vec![Write::Size(0, Some(BLOCKS))];
    writes.extend((0..BLOCKS).map(|block_no| Write::Block(0, block_no, n * 1000 + u64::from(block_no))));
    write(repository, timeline, at(n), &writes);
}

fn sizes(repository: &Repository, name: &str) -> TimelineSizes {
    repository.timeline_sizes(name, None).unwrap()
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl VerifySink for Findings {
    fn finding(&mut self, finding: &Finding) -> ControlFlow<()> {
        self.0.push(finding.clone());
        ControlFlow::Continue(())
    }

    fn progress(&mut self, _: &VerifyProgress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Timelines, LSNs and objects of kept sizes that are wrong. (Made-up pages are something else that is wrong.)
fn wrong_sizes(repository: &Repository) -> Vec<(String, Lsn, String)> {
    let mut findings = Findings::default();
    repository.verify(&VerifyOptions::default(), &mut findings).unwrap();
    let wrong = findings.0.into_iter().filter(|finding| finding.what.contains("a kept size that is not the sum"));
    wrong.map(|finding| (finding.timeline.unwrap(), finding.lsn.unwrap(), finding.object)).collect()
}

#[test]
fn a_kept_size_that_is_wrong_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open(&dir);
    let main = import(&repository, "main");
    write_all(&repository, &main, 1);
    write(&repository, &main, at(2), &[Write::Segment(Some(3))]);
    repository.create_branch("before", "main", BranchPoint::Last).unwrap();
    assert_eq!(wrong_sizes(&repository), []);
    // One block too many; one segment too few.
    let database = Object::DatabaseSize { spc_oid: 1663, db_oid: 5 };
    let slru = Object::SlruSize { kind: postgres_ffi::SlruKind::Clog };
    for (n, object, size) in [
        (3, database, KeptSize { blocks: u64::from(BLOCKS) + 1, count: 1 }),
        (4, slru, KeptSize { blocks: 7, count: 1 }),
    ] {
        let mut batch = Batch::new();
        batch.put(object.into(), at(n), keyenc::Kind::Image, &size.encode());
        main.store.put(&batch, at(n)).unwrap();
        main.last_record.advance(at(n));
    }
    repository.create_branch("behind", "main", BranchPoint::Last).unwrap();
    let found = wrong_sizes(&repository);
    let expect =
        ["behind", "main"].map(|name| [database, slru].map(|object| (name.to_owned(), at(4), format!("{object:?}"))));
    assert_eq!(found, expect.concat());
}

#[test]
fn what_a_branch_shows_of_its_ancestor_is_not_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open(&dir);
    let main = import(&repository, "main");
    // Pages that do not compress, 2 MiB.
    let random = |timeline: &Timeline, lsn: Lsn| {
        let mut batch = Batch::new();
        for block_no in 0..256 {
            let page: [u8; 8192] = std::array::from_fn(|_| rand::random());
            batch.put(block(9, block_no), lsn, keyenc::Kind::Image, &page);
        }
        timeline.store.put(&batch, lsn).unwrap();
        timeline.last_record.advance(lsn);
    };
    write_all(&repository, &main, 1);
    random(&main, at(2));
    let two_mib = 2 << 20;
    assert!(sizes(&repository, "main").versions.memory > two_mib);
    main.store.flush(true).unwrap();
    let of_main = sizes(&repository, "main");
    let near = |bytes: u64| (two_mib..two_mib + (256 << 10)).contains(&bytes);
    assert!(near(of_main.versions.files) && of_main.versions.memory < 4096, "{of_main:?}");
    assert!(of_main.versions.uncompressed >= two_mib, "{of_main:?}");
    assert_eq!(of_main.own_bytes(), of_main.versions.files + of_main.wal_file_bytes);

    let branch = repository.create_branch("branch", "main", BranchPoint::Last).unwrap().timeline;
    let of_branch = sizes(&repository, "branch");
    assert_eq!(of_branch.logical, of_main.logical);
    assert_eq!((of_branch.versions.files, of_branch.wal_history_bytes), (0, Some(0)));
    write_all(&repository, &branch, 3);
    random(&branch, at(4));
    branch.store.flush(true).unwrap();
    let of_branch = sizes(&repository, "branch");
    assert!(near(of_branch.versions.files), "{of_branch:?}");
    assert_eq!(of_branch.wal_history_bytes, Some(16));
    let of_main = sizes(&repository, "main");
    assert!(near(of_main.versions.files), "{of_main:?}");
    let names: Vec<String> = repository.all_sizes(None).unwrap().into_iter().map(|sizes| sizes.timeline).collect();
    assert_eq!(names, ["branch", "main"]);
}

#[test]
fn who_keeps_what_below_a_horizon_is_told_and_how_much_that_is() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open(&dir);
    let main = import(&repository, "main");
    (1..=20).for_each(|n| write_all(&repository, &main, n));
    let lease = repository.lease("main", at(5), LEASE_DEFAULT).unwrap();
    repository.create_branch("old", "main", BranchPoint::Lsn(at(9))).unwrap();
    let pin = |by: &str, n| Pin { by: by.to_owned(), lsn: at(n) };
    let go_on = &mut |_, _| ControlFlow::Continue(());
    // Nothing was given up yet: nobody keeps what is kept anyway.
    assert_eq!((sizes(&repository, "main").pinned_by, sizes(&repository, "old").pins), (vec![], vec![]));
    assert_eq!(repository.pinned_bytes("old", go_on).unwrap(), 0);

    assert_eq!(collect(&repository, "main", 4).horizon_lsn, Some(at(16)));
    repository.create_branch("new", "main", BranchPoint::Lsn(at(18))).unwrap();
    repository.lease("new", at(9), LEASE_DEFAULT).unwrap();
    let of_main = sizes(&repository, "main");
    let lease_name = format!("lease {}", lease.lease_id);
    assert_eq!(of_main.pinned_by, [pin(&lease_name, 5), pin("lease 2", 9), pin("old", 9)]);
    assert_eq!((of_main.wal_history_bytes, of_main.pins), (Some(4 * 8), vec![]));
    assert_eq!(sizes(&repository, "old").pins, [pin("main", 9)]);
    assert_eq!(sizes(&repository, "new").pins, []);
    // Two keep the same: neither alone gives it back.
    assert_eq!(repository.pinned_bytes("old", go_on).unwrap(), 0);
    assert!(repository.delete_timeline("new").is_err());
    repository.end_lease(2).unwrap();
    let pinned_bytes = repository.pinned_bytes("old", go_on).unwrap();
    assert_eq!(pinned_bytes, u64::from(BLOCKS) * (31 + 8192) + 31 + 4);
    assert_eq!(repository.pinned_bytes("main", go_on).unwrap(), 0);
    repository.delete_timeline("old").unwrap();
    let removed = collect(&repository, "main", 4).counts.removed;
    let removed_bytes: u64 =
        removed.iter().filter(|(class, _)| **class != "watermark").map(|(_, removed)| removed.bytes).sum();
    assert_eq!(removed_bytes, pinned_bytes);
}

#[test]
fn an_lsn_that_cannot_be_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open(&dir);
    let main = import(&repository, "main");
    write_all(&repository, &main, 3);
    let refused = |lsn| repository.timeline_sizes("main", Some(lsn)).unwrap_err();
    assert!(matches!(refused(at(4)), RepositoryError::Read(ReadError::NotYet { .. })));
    let below = Lsn::new(START_LSN.as_u64() - 1);
    assert!(matches!(refused(below), RepositoryError::Read(ReadError::BelowFirstReadable { .. })));
    assert!(matches!(repository.timeline_sizes("none", None), Err(RepositoryError::TimelineMissing { .. })));
    let size = |n| repository.timeline_sizes("main", Some(at(n))).unwrap().logical.unwrap().relation_bytes();
    assert_eq!((size(2), size(3)), (0, u64::from(BLOCKS) * 8192));
}
