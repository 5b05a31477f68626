//! Databases created, copied, dropped; relation maps; tablespaces.

use std::collections::BTreeSet;

use keyenc::{Key, Kind, Object};
use postgres_ffi::page::ZERO_PAGE;
use postgres_ffi::records::{dbase, relmap, xact, xlog};
use postgres_ffi::wal::rmgr;
use postgres_ffi::{ForkNumber, PgVersion, RelTag};

use super::rig::*;

fn image(rel: RelTag, fork: ForkNumber, block_no: u32, mark: u8) -> Rec {
    let mut page = ZERO_PAGE;
    (page[14], page[100]) = (0x20, mark);
    rec(rmgr::XLOG, xlog::operation::FPI, 0, Body::default())
        .block(block(0, block_no).of(rel).fork(fork).image(true, &page))
}

fn map(version: PgVersion, db_oid: u32, mark: u8) -> Rec {
    let len = relmap::file_len(version);
    rec(rmgr::RELMAP, relmap::UPDATE, 0, Body::default().u32(db_oid).u32(1663).u32(len as u32).bytes(&vec![mark; len]))
}

fn copy_5_to_9(version: PgVersion) -> Rec {
    let _same_number_in_all = version;
    rec(rmgr::DBASE, 0x00, 1000, Body::default().u32(9).u32(1663).u32(5).u32(1663))
}

fn drop_9(version: PgVersion) -> Rec {
    let info = if version >= PgVersion::V15 { 0x20 } else { 0x10 };
    rec(rmgr::DBASE, info, 1000, Body::default().u32(9).u32(1).u32(1663))
}

#[test]
fn a_file_copy_takes_every_fork_page_and_map() {
    for version in [PgVersion::V14, PgVersion::V18] {
        let mut rig = Rig::new(version);
        let copy = RelTag { db_oid: 9, ..REL };
        rig.ingest(&image(REL, ForkNumber::Main, 2, 1));
        rig.ingest(&image(REL, ForkNumber::Init, 0, 2));
        rig.ingest(&map(version, 5, 3));
        // Left in the target from before: goes.
        rig.ingest(&image(RelTag { rel_number: 777, ..copy }, ForkNumber::Main, 0, 9));
        let puts = rig.shown(&copy_5_to_9(version));
        let map_len = relmap::file_len(version);
        let expect = [
            format!("RelationMap {{ spc_oid: 1663, db_oid: 9 }} Image {map_len} bytes"),
            "size 1663/9/777 main Tombstone".to_owned(),
            "size 1663/9/16384 main Image 3".to_owned(),
            "size 1663/9/16384 init Image 1".to_owned(),
            "block 1663/9/16384 main 0 Image".to_owned(),
            "block 1663/9/16384 main 1 Image".to_owned(),
            "block 1663/9/16384 main 2 Image page".to_owned(),
            "block 1663/9/16384 init 0 Image page".to_owned(),
        ];
        assert_eq!(puts, expect);
        let read = |rel, block_no| rig.timeline.page(&Key::block(rel, ForkNumber::Main, block_no), rig.lsn()).unwrap();
        assert_eq!(read(REL, 2), read(copy, 2), "byte for byte, the LSN too");
    }
}

#[test]
fn a_copy_shows_the_template_as_of_its_record() {
    let mut rig = Rig::new(PgVersion::V15);
    rig.try_ingest(&image(REL, ForkNumber::Main, 0, 1)).unwrap(); // still in the batch
    rig.try_ingest(&copy_5_to_9(PgVersion::V15)).unwrap();
    rig.try_ingest(&image(REL, ForkNumber::Main, 0, 2)).unwrap();
    rig.commit();
    let key = Key::block(RelTag { db_oid: 9, ..REL }, ForkNumber::Main, 0);
    assert_eq!(rig.timeline.page(&key, rig.lsn()).unwrap()[100], 1);
}

#[test]
fn a_large_copy_leaves_in_parts_that_move_no_watermark() {
    let mut rig = Rig::new(PgVersion::V16);
    for block_no in 0..5_000 {
        rig.try_ingest(&image(REL, ForkNumber::Main, block_no, 1)).unwrap();
    }
    rig.commit();
    let (before, commits) = (rig.lsn(), rig.timeline.commits.get());
    rig.try_ingest(&copy_5_to_9(PgVersion::V16)).unwrap();
    assert!(rig.timeline.commits.get() >= commits + 2);
    assert!(rig.batch.value_bytes() < 17 << 20);
    assert_eq!(rig.timeline.watermark.get(), before);
    rig.commit();
    assert_eq!(rig.timeline.watermark.get(), rig.lsn());
}

#[test]
fn a_dropped_database_is_gone_and_may_come_again() {
    for version in [PgVersion::V14, PgVersion::V15] {
        let mut rig = Rig::new(version);
        let rel = RelTag { db_oid: 9, ..REL };
        rig.ingest(&image(rel, ForkNumber::Main, 0, 1));
        rig.ingest(&map(version, 9, 3));
        let expect = [
            "database 1663/9 Tombstone",
            "RelationMap { spc_oid: 1663, db_oid: 9 } Tombstone",
            "size 1663/9/16384 main Tombstone",
        ];
        assert_eq!(rig.shown(&drop_9(version)), expect);
        let expect =
            ["database 1663/9 Image", "size 1663/9/16384 main Image 1", "block 1663/9/16384 main 0 Image page"];
        assert_eq!(rig.shown(&image(rel, ForkNumber::Main, 0, 1)), expect);
    }
}

#[test]
fn a_database_by_wal_is_an_empty_directory() {
    let mut rig = Rig::new(PgVersion::V15);
    let create = rec(rmgr::DBASE, 0x10, 1000, Body::default().u32(9).u32(1663));
    assert_eq!(rig.shown(&create), ["database 1663/9 Image"]);
    assert!(rig.ingest(&create).is_empty());
}

#[test]
fn a_dropped_tablespace_takes_its_directories() {
    let mut rig = Rig::new(PgVersion::V17);
    let rel = RelTag { spc_oid: 20_000, ..REL };
    rig.ingest(&rec(rmgr::TBLSPC, dbase::TABLESPACE_CREATE, 1000, Body::default().u32(20_000).bytes(b"/somewhere\0")));
    rig.ingest(&image(rel, ForkNumber::Main, 0, 1));
    rig.ingest(&rec(rmgr::XACT, xact::COMMIT | xact::HAS_INFO, 1000, Body::default().u64(1).u32(4).u32(1).rel(rel)));
    let drop = rec(rmgr::TBLSPC, dbase::TABLESPACE_DROP, 1001, Body::default().u32(20_000));
    assert_eq!(rig.shown(&drop), ["database 20000/5 Tombstone"]);
}

/// PostgreSQL removes a database's directory before it logs that; a crash in between takes the record back.
#[test]
fn a_dropped_tablespace_takes_what_was_removed_without_a_record() {
    let mut rig = Rig::new(PgVersion::V17);
    let [rel, other] = [20_000, 20_001].map(|spc_oid| RelTag { spc_oid, ..REL });
    rig.ingest(&image(rel, ForkNumber::Main, 0, 1));
    rig.ingest(&image(other, ForkNumber::Main, 0, 1));
    let map = Body::default().u32(5).u32(20_000).u32(524).bytes(&[5; 524]);
    rig.ingest(&rec(rmgr::RELMAP, relmap::UPDATE, 0, map));
    let drop = rec(rmgr::TBLSPC, dbase::TABLESPACE_DROP, 1001, Body::default().u32(20_000));
    let expect = [
        "database 20000/5 Tombstone",
        "RelationMap { spc_oid: 20000, db_oid: 5 } Tombstone",
        "size 20000/5/16384 main Tombstone",
    ];
    assert_eq!(rig.shown(&drop), expect);
}

#[test]
fn relation_maps_are_kept_whole() {
    let mut rig = Rig::new(PgVersion::V16);
    let shared = rec(rmgr::RELMAP, 0, 0, Body::default().u32(0).u32(1664).u32(524).bytes(&[5; 524]));
    let object = Object::RelationMap { spc_oid: 1664, db_oid: 0 };
    assert_eq!(rig.ingest(&shared), [(object, Kind::Image, vec![5; 524])]);
}

/// Ingest over a base backup that holds database 5 with a page, and ends at `END_LSN`.
mod over_a_backup {
    use postgres_ffi::Lsn;
    use postgres_ffi::records::dbase::DatabaseDir;
    use postgres_ffi::records::smgr;

    use super::*;
    use crate::ingest::{FileCopy, IngestError};

    const VERSION: PgVersion = PgVersion::V15;
    const END_LSN: Lsn = Lsn::new(0x10_0000);

    fn over_backup(mut rig: Rig) -> Rig {
        rig.ingest = rig.ingest.over_backup_until(END_LSN, BTreeSet::new(), &rig.timeline).unwrap();
        rig
    }

    fn begin() -> Rig {
        let rig = Rig::new(VERSION);
        for (object, value) in [
            (Object::Database { spc_oid: 1663, db_oid: 5 }, &[][..]),
            (Object::RelationSize { rel: REL, fork: ForkNumber::Main }, &[0, 0, 0, 1]),
            (Object::RelationBlock { rel: REL, fork: ForkNumber::Main, block_no: 0 }, &[]),
        ] {
            rig.timeline.put(object, START_LSN, Kind::Image, value);
        }
        over_backup(rig)
    }

    fn copy(from: u32, to: u32) -> Rec {
        rec(rmgr::DBASE, 0x00, 1000, Body::default().u32(to).u32(1663).u32(from).u32(1663))
    }

    fn drop_database(db_oid: u32) -> Rec {
        rec(rmgr::DBASE, 0x20, 1000, Body::default().u32(db_oid).u32(1).u32(1663))
    }

    /// A change in a database, which needs none of its pages.
    fn change(db_oid: u32) -> Rec {
        image(RelTag { db_oid, ..REL }, ForkNumber::Main, 0, 7)
    }

    fn dir(db_oid: u32) -> DatabaseDir {
        DatabaseDir { spc_oid: 1663, db_oid }
    }

    /// Crashes, and goes on from what was committed.
    fn restart(rig: Rig) -> Rig {
        let lsn = rig.lsn();
        over_backup(Rig::over(VERSION, rig.timeline, lsn))
    }

    /// A record that ends behind the backup's end.
    fn end(mut rig: Rig) -> Result<(), IngestError> {
        rig.next_lsn = END_LSN.as_u64();
        let nothing = rec(rmgr::LOGICALMSG, 0x00, 0, Body::default());
        rig.try_ingest(&nothing)?;
        // Then nothing is watched any more.
        for later in [copy(5, 30), change(5)] {
            rig.try_ingest(&later).unwrap();
        }
        rig.commit();
        let value = rig.timeline.newest(&Object::Database { spc_oid: 1663, db_oid: 30 }.into(), rig.lsn()).unwrap().1;
        assert!(value.is_empty());
        Ok(())
    }

    fn refused(outcome: Result<(), IngestError>) -> (DatabaseDir, DatabaseDir) {
        match outcome {
            Err(IngestError::OriginChanged { target, origin, first_readable_lsn: END_LSN }) => (target, origin),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_copy_of_what_stays_as_it_is_can_be_read() {
        let mut rig = begin();
        rig.ingest(&change(5));
        rig.ingest(&copy(5, 9));
        for untouched in [change(9), change(6), copy(9, 10)] {
            rig.ingest(&untouched);
        }
        let value = |rig: &Rig, db_oid| {
            rig.timeline.newest(&Object::Database { spc_oid: 1663, db_oid }.into(), rig.lsn()).unwrap().1
        };
        for db_oid in [9, 10] {
            let expect = FileCopy { origin: dir(5), is_origin_changed: false };
            assert_eq!(value(&rig, db_oid), expect.encode());
        }
        end(restart(rig)).unwrap();
    }

    #[test]
    fn a_copy_of_what_changes_before_the_end_cannot() {
        let truncate = rec(rmgr::SMGR, smgr::TRUNCATE, 1000, Body::default().u32(0).rel(REL).u32(7));
        let create = rec(rmgr::SMGR, smgr::CREATE, 1000, Body::default().rel(REL).u32(0));
        let create_by_wal = rec(rmgr::DBASE, 0x10, 1000, Body::default().u32(5).u32(1663));
        let drop_tablespace = rec(rmgr::TBLSPC, dbase::TABLESPACE_DROP, 1000, Body::default().u32(1663));
        // Of these, several change nothing that we have.
        for change in [change(5), truncate, create, create_by_wal, drop_database(5), map(VERSION, 5, 1), copy(6, 5)] {
            for is_restarted in [false, true] {
                let mut rig = begin();
                rig.ingest(&image(RelTag { db_oid: 6, ..REL }, ForkNumber::Main, 0, 1));
                rig.ingest(&copy(5, 9));
                rig.ingest(&change);
                let rig = if is_restarted { restart(rig) } else { rig };
                assert_eq!(refused(end(rig)), (dir(9), dir(5)));
            }
        }
        let mut rig = begin();
        rig.ingest(&rec(rmgr::DBASE, 0x00, 1000, Body::default().u32(9).u32(1664).u32(5).u32(1663)));
        rig.ingest(&drop_tablespace);
        assert_eq!(refused(end(rig)).1, dir(5));
    }

    #[test]
    fn a_copy_that_is_gone_by_then_does_no_harm() {
        let mut rig = begin();
        for record in [copy(5, 9), change(5), drop_database(9)] {
            rig.ingest(&record);
        }
        end(restart(rig)).unwrap();
        // Origin and copy in one record: the copy's directory stays gone.
        let mut rig = begin();
        rig.ingest(&rec(rmgr::DBASE, 0x00, 1000, Body::default().u32(5).u32(1664).u32(5).u32(1663)));
        rig.ingest(&rec(rmgr::DBASE, 0x20, 1000, Body::default().u32(5).u32(2).u32(1663).u32(1664)));
        let object = Object::Database { spc_oid: 1664, db_oid: 5 };
        assert_eq!(rig.timeline.newest(&object.into(), rig.lsn()).unwrap().0, Kind::Tombstone);
        end(rig).unwrap();
    }

    #[test]
    fn a_copy_of_a_copy_depends_on_what_the_first_was_made_of() {
        let mut rig = begin();
        for record in [copy(5, 9), copy(9, 10), change(9), drop_database(9), copy(5, 9)] {
            rig.ingest(&record);
        }
        let rig = restart(rig);
        end(rig).unwrap();
        let mut rig = begin();
        for record in [copy(5, 9), copy(9, 10), drop_database(9), change(5)] {
            rig.ingest(&record);
        }
        assert_eq!(refused(end(restart(rig))), (dir(10), dir(5)));
        let mut rig = begin();
        for record in [copy(5, 9), change(5), copy(9, 10), drop_database(9)] {
            rig.ingest(&record);
        }
        assert_eq!(refused(end(rig)), (dir(10), dir(5)));
    }

    #[test]
    fn a_copy_of_what_the_backup_does_not_have_cannot_be_read() {
        let mut rig = begin();
        rig.ingest(&copy(8, 9));
        assert_eq!(refused(end(rig)), (dir(9), dir(8)));
    }
}
