//! Goal: leases survive a restart, end by themselves and by hand, and pin their timeline. Method: plain cases.

use std::time::Duration;

use super::super::*;
use super::rig::*;

#[test]
fn leases_are_durable_and_end() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open(&dir);
    import(&repository, "main");
    let first = repository.lease("main", START_LSN, Duration::from_secs(1000)).unwrap();
    let second = repository.lease("main", START_LSN, LEASE_DEFAULT).unwrap();
    assert_eq!((first.lease_id, second.lease_id), (1, 2));
    for seconds in [0, LEASE_MAX.as_secs() + 1, u64::MAX] {
        let refused = repository.lease("main", START_LSN, Duration::from_secs(seconds));
        assert!(matches!(refused, Err(RepositoryError::Lease(LeaseError::Duration { .. }))));
    }
    assert!(repository.lease("main", Lsn::new(START_LSN.as_u64() + 8), LEASE_DEFAULT).is_err());
    assert!(repository.lease("nowhere", START_LSN, LEASE_DEFAULT).is_err());
    repository.end_lease(2).unwrap();
    assert!(matches!(repository.end_lease(2), Err(RepositoryError::Lease(LeaseError::Missing { lease_id: 2 }))));
    drop(repository);

    let repository = open(&dir);
    let timeline = repository.timeline_named("main").unwrap();
    assert_eq!(repository.leases(Some("main")).unwrap(), [first]);
    assert!(timeline.is_leased(START_LSN) && !timeline.is_leased(Lsn::new(START_LSN.as_u64() + 8)));
    let refused = repository.delete_timeline("main").err().unwrap();
    assert!(refused.to_string().contains("leases=[1]"), "{refused}");
    // A number is not given twice, and what is over is as if it had never been.
    let over = repository.lease("main", START_LSN, Duration::from_secs(1)).unwrap();
    assert_eq!(over.lease_id, 3);
    repository.end_lease(1).unwrap();
    while timeline.is_leased(START_LSN) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(repository.leases(None).unwrap(), []);
    repository.delete_timeline("main").unwrap();
}

#[test]
fn a_damaged_file_comes_back_from_its_copy_and_is_named_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open(&dir);
    import(&repository, "main");
    repository.lease("main", START_LSN, LEASE_DEFAULT).unwrap();
    drop(repository);
    let path = dir.path().join(leases::LEASES_FILE_NAME);
    std::fs::write(&path, b"{").unwrap();
    let repository = open(&dir);
    assert_eq!(repository.leases(None).unwrap().len(), 1);
    drop(repository);
    std::fs::write(&path, b"{").unwrap();
    std::fs::write(dir.path().join("leases.json.copy"), b"{").unwrap();
    let refused = Repository::open(dir.path(), Config::default()).err().unwrap();
    assert!(refused.to_string().contains("leases.json"), "{refused}");
}
