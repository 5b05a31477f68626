//! Goal: WAL around an LSN is looked for where the history has it. Method: a branch of a branch, each with WAL files of its own.

use super::super::*;
use super::rig::*;
use crate::timeline::BranchPoint;

#[test]
fn what_a_branch_has_in_front_of_its_own_wal_counts_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open(&dir);
    let main = import(&repository, "main");
    write(&repository, &main, at(5), &[Write::Size(0, Some(1))]);
    let branch = repository.create_branch("branch", "main", BranchPoint::Last).unwrap().timeline;
    write(&repository, &branch, at(9), &[Write::Size(0, Some(2))]);
    let twig = repository.create_branch("twig", "branch", BranchPoint::Last).unwrap().timeline;
    write(&repository, &twig, at(12), &[Write::Size(0, Some(3))]);
    for timeline in [&main, &branch, &twig] {
        std::fs::create_dir_all(repository.wal_layout(timeline).directory).unwrap();
    }
    let found = |timeline: &Arc<Timeline>, lsn: Lsn| -> Vec<String> {
        let of = |layout: &crate::wal::WalLayout| {
            let is_of = |other: &&&Arc<Timeline>| repository.wal_layout(other).directory == layout.directory;
            [&main, &branch, &twig].iter().find(is_of).map(|timeline| timeline.metadata().name.clone()).unwrap()
        };
        repository.wal_layouts(timeline, lsn).iter().map(of).collect()
    };
    for (n, of_main, of_branch, of_twig) in [
        (4, &["main"][..], &["main"][..], &["main"][..]),
        (5, &["main"], &["main", "branch"], &["main", "branch"]),
        (7, &["main"], &["branch"], &["branch"]),
        (9, &["main"], &["branch"], &["branch", "twig"]),
        (11, &["main"], &["branch"], &["twig"]),
    ] {
        assert_eq!(
            [found(&main, at(n)), found(&branch, at(n)), found(&twig, at(n))],
            [of_main, of_branch, of_twig],
            "{n}"
        );
    }
}
