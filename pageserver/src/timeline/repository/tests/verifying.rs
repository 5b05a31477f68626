//! Goal: a check says what it could not look at, and nothing of what nobody reads any more. Method: a sink that writes and collects garbage right when pages are to be read.

use std::ops::ControlFlow;

use super::super::*;
use super::rig::*;
use crate::verify::{Finding, VerifyOptions, VerifyProgress, VerifySink};

/// When the first pages are to be read it ends a lease and gives up all history of `main`. Keeps the LSNs at which pages could not be read any more.
struct Overtakes<'a> {
    repository: &'a Repository,
    lease_id: u64,
    has_overtaken: bool,
    overtaken: Vec<Option<Lsn>>,
}

impl VerifySink for Overtakes<'_> {
    fn finding(&mut self, finding: &Finding) -> ControlFlow<()> {
        if finding.what.contains("garbage collection has given up") {
            self.overtaken.push(finding.lsn);
        }
        ControlFlow::Continue(())
    }

    fn progress(&mut self, progress: &VerifyProgress) -> ControlFlow<()> {
        if progress.phase == "pages" && !self.has_overtaken {
            self.has_overtaken = true;
            self.repository.end_lease(self.lease_id).unwrap();
            write_rounds(self.repository, 11..=20);
            collect(self.repository, "main", 1);
        }
        ControlFlow::Continue(())
    }
}

fn write_rounds(repository: &Repository, rounds: std::ops::RangeInclusive<u64>) {
    let main = repository.timeline_named("main").unwrap();
    for n in rounds {
        write(repository, &main, at(n), &[Write::Size(0, Some(1)), Write::Block(0, 0, n)]);
    }
}

#[test]
fn a_newest_lsn_that_garbage_collection_overtakes_is_told_and_a_lease_that_has_ended_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open(&dir);
    let main = import(&repository, "main");
    write_rounds(&repository, 1..=10);
    let lease_id = repository.lease("main", at(5), LEASE_DEFAULT).unwrap().lease_id;
    let mut sink = Overtakes { repository: &repository, lease_id, has_overtaken: false, overtaken: Vec::new() };
    repository.verify(&VerifyOptions::default(), &mut sink).unwrap();
    assert!(main.get_page_at_lsn(block(0, 0), at(5)).is_err(), "nothing holds it");
    assert_eq!(sink.overtaken, [Some(at(10))]);
    sink.overtaken.clear();
    repository.verify(&VerifyOptions::default(), &mut sink).unwrap();
    assert_eq!(sink.overtaken, [], "the next check reads at the newest LSN of then");
}
