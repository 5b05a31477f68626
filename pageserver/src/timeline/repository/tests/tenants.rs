//! Goal: PostgreSQL timeline ids are given once, above all that are known; histories are those of the files. Method: files as a receiver leaves them.

use super::super::*;
use super::rig::*;
use crate::timeline::BranchPoint;

#[test]
fn ids_are_given_once_and_above_all_known_ones() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open(&dir);
    let main = import(&repository, "main");
    let other = import(&repository, "other");
    let (tenant_id, other_tenant_id) = (main.metadata().tenant_id, other.metadata().tenant_id);
    let next = |repository: &Repository| repository.next_pg_timeline_id(tenant_id).unwrap();
    assert_eq!([next(&repository), next(&repository)], [PG_TIMELINE_ID_FIRST, PG_TIMELINE_ID_FIRST + 1]);
    assert_eq!(repository.next_pg_timeline_id(other_tenant_id).unwrap(), PG_TIMELINE_ID_FIRST);
    let wal = repository.wal_layout(&main).directory;
    drop((main, other));
    drop(repository);
    let repository = open(&dir);
    assert_eq!(next(&repository), PG_TIMELINE_ID_FIRST + 2);
    std::fs::write(wal.join("00002000.history"), b"").unwrap();
    assert_eq!(next(&repository), 0x2001);
    std::fs::write(wal.join("000030000000000000000001"), b"").unwrap();
    assert_eq!(next(&repository), 0x3001);
    std::fs::write(wal.join("FFFFFFFF.history"), b"").unwrap();
    let none_left = repository.next_pg_timeline_id(tenant_id).err().unwrap();
    assert!(matches!(none_left, RepositoryError::Tenant(TenantError::NoTimelineIdLeft { .. })));
    let missing = repository.next_pg_timeline_id(TenantId::generate()).err().unwrap();
    assert!(matches!(missing, RepositoryError::Tenant(TenantError::Missing { .. })));
    let path = repository.tenant_dir(other_tenant_id).join("tenant.json");
    std::fs::write(&path, b"{\"format\": 2}").unwrap();
    assert_eq!(repository.next_pg_timeline_id(other_tenant_id).unwrap(), PG_TIMELINE_ID_FIRST + 1);
    std::fs::remove_file(path.with_extension("json.copy")).unwrap();
    std::fs::write(&path, b"{\"format\": 2}").unwrap();
    let damaged = repository.next_pg_timeline_id(other_tenant_id).err().unwrap();
    assert!(matches!(damaged, RepositoryError::Tenant(TenantError::Damaged { .. })));
}

#[test]
fn the_history_at_an_lsn_is_that_of_the_files_and_of_the_ancestors() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open(&dir);
    let main = import(&repository, "main");
    write(&repository, &main, at(9), &[]);
    let history = |timeline: &Timeline, n| {
        let PgHistory { timeline_id, content } = repository.pg_history_at(timeline, at(n)).unwrap();
        (timeline_id, String::from_utf8(content.to_vec()).unwrap())
    };
    assert_eq!(history(&main, 5), (1, String::new()));
    // The primary was promoted twice.
    let lines = [format!("1\t{}\tx\n", at(3)), format!("2\t{}\tx\n", at(6))];
    let wal = repository.wal_layout(&main);
    wal.write_history(2, lines[0].as_bytes()).unwrap();
    wal.write_history(3, lines.concat().as_bytes()).unwrap();
    for (n, expect) in
        [(3, (1, String::new())), (4, (2, lines[0].clone())), (6, (2, lines[0].clone())), (7, (3, lines.concat()))]
    {
        assert_eq!(history(&main, n), expect, "at {n}");
    }

    let branch = repository.create_branch("branch", "main", BranchPoint::Lsn(at(6))).unwrap().timeline;
    assert_eq!(branch.metadata().cluster.pg_timeline_id, 2);
    assert_eq!(history(&branch, 6), (2, lines[0].clone()));
    assert_eq!(history(&branch, 3), (1, String::new()));
    // Before it has WAL of its own, it goes on on its ancestor's timeline; and its files know how that came about.
    write(&repository, &branch, at(7), &[]);
    assert_eq!(history(&branch, 7), (2, lines[0].clone()));
    assert!(repository.wal_layout(&branch).history(2).unwrap().is_some());
    let own = format!("{}2\t{}\tclone\n", lines[0], at(6));
    repository.wal_layout(&branch).write_history(0x1000, own.as_bytes()).unwrap();
    assert_eq!(history(&branch, 7), (0x1000, own.clone()));
    assert_eq!(history(&branch, 6), (2, lines[0].clone()));
    assert_eq!(repository.next_pg_timeline_id(branch.metadata().tenant_id).unwrap(), 0x1001);

    let leaf = repository.create_branch("leaf", "branch", BranchPoint::Last).unwrap().timeline;
    assert_eq!(leaf.metadata().cluster.pg_timeline_id, 0x1000);
    assert_eq!(history(&leaf, 7), (0x1000, own.clone()));
    // Detached, it knows by itself.
    repository.detach_branch("branch", &mut |_, _| std::ops::ControlFlow::Continue(())).unwrap();
    repository.delete_timeline("main").unwrap();
    assert_eq!(history(&leaf, 7), (0x1000, own));
    assert_eq!(history(&branch, 6), (2, lines[0].clone()));
}
