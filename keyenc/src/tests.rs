//! Goal: keys keep order, come back as they went in, and refuse what is not a key. Method: golden bytes, then properties.

use proptest::prelude::*;

use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_bytes_of_a_block_version() {
    let rel = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 };
    let version = VersionKey {
        timeline: TimelineNo(1),
        key: Key::block(rel, ForkNumber::Vm, 7),
        lsn: Lsn::new(0x1_6B5A_5050),
        kind: Kind::Image,
    };
    assert_eq!(
        hex(&version.encode()),
        "00000001400000067f0000000500004000020000000700000001\
         6b5a505003"
            .replace(' ', "")
    );
    assert_eq!(VersionKey::decode(&version.encode()), Ok(version));
}

#[test]
fn golden_bytes_of_a_commit_time_version() {
    let version = VersionKey {
        timeline: TimelineNo(7),
        key: Object::CommitTime.into(),
        lsn: Lsn::new(0x16B_5A50),
        kind: Kind::Image,
    };
    let expected = ["00000007", "04", &"00".repeat(17), "00000000016b5a50", "03"].concat();
    assert_eq!(hex(&version.encode()), expected);
    assert_eq!(VersionKey::decode(&version.encode()), Ok(version));
}

#[test]
fn refuses_what_is_not_a_key() {
    let good =
        VersionKey { timeline: TimelineNo(1), key: Object::Checkpoint.into(), lsn: Lsn::new(8), kind: Kind::Image }
            .encode();
    assert!(VersionKey::decode(&good).is_ok());
    for length in 0..ENCODED_KEY_LEN {
        assert_eq!(VersionKey::decode(&good[..length]), Err(KeyError::Length { expected: ENCODED_KEY_LEN, length }));
    }
    let with = |at: usize, byte: u8| {
        let mut bad = good;
        bad[at] = byte;
        VersionKey::decode(&bad)
    };
    assert_eq!(with(4, 0xEE), Err(KeyError::Class { class: 0xEE }));
    assert_eq!(with(30, 4), Err(KeyError::Kind { kind: 4 }));
    assert_eq!(with(5, 1), Err(KeyError::NotZero { class: 0x03 }));
    let mut time = Key::from(Object::CommitTime);
    time.0[17] = 1;
    assert_eq!(time.object(), Err(KeyError::NotZero { class: 0x04 }));
    let mut block = Key::block(RelTag { spc_oid: 1, db_oid: 2, rel_number: 3 }, ForkNumber::Main, 0);
    block.0[13] = 9;
    assert_eq!(block.object(), Err(KeyError::Fork { number: 9 }));
}

fn any_object() -> impl Strategy<Value = Object> {
    let rel = || any::<(u32, u32, u32)>().prop_map(|(a, b, c)| RelTag { spc_oid: a, db_oid: b, rel_number: c });
    let fork = || (0u8..4).prop_map(|n| ForkNumber::ALL[usize::from(n)]);
    let slru = || (0u8..4).prop_map(|n| SlruKind::ALL[usize::from(n)]);
    prop_oneof![
        Just(Object::Watermark),
        Just(Object::ControlFile),
        Just(Object::Checkpoint),
        Just(Object::CommitTime),
        any::<(u32, u32)>().prop_map(|(spc_oid, db_oid)| Object::Database { spc_oid, db_oid }),
        any::<(u32, u32)>().prop_map(|(spc_oid, db_oid)| Object::RelationMap { spc_oid, db_oid }),
        any::<(u32, u32)>().prop_map(|(spc_oid, db_oid)| Object::DatabaseSize { spc_oid, db_oid }),
        slru().prop_map(|kind| Object::SlruSize { kind }),
        (rel(), fork()).prop_map(|(rel, fork)| Object::RelationSize { rel, fork }),
        (slru(), any::<u32>()).prop_map(|(kind, segment_no)| Object::SlruSegment { kind, segment_no }),
        (slru(), any::<u32>()).prop_map(|(kind, page_no)| Object::SlruPage { kind, page_no }),
        any::<u64>().prop_map(|xid| Object::TwoPhase { xid }),
        any::<u16>().prop_map(|origin_id| Object::ReplicationOrigin { origin_id }),
        (rel(), fork(), any::<u32>()).prop_map(|(rel, fork, block_no)| Object::RelationBlock { rel, fork, block_no }),
    ]
}

fn any_version() -> impl Strategy<Value = VersionKey> {
    (0u32..3, any_object(), any::<u64>(), 0u8..4).prop_map(|(timeline, object, lsn, kind)| VersionKey {
        timeline: TimelineNo(timeline),
        key: object.into(),
        lsn: Lsn::new(lsn),
        kind: Kind::from_byte(kind).expect("0 to 3 are kinds"),
    })
}

proptest! {
    #[test]
    fn what_is_no_page_lies_in_its_ranges_and_nothing_else_does(object in any_object()) {
        let key = Key::from(object);
        let is_in = |(first, last): (Key, Key)| (first..=last).contains(&key);
        let expect =
            !matches!(object, Object::Watermark | Object::SlruPage { .. } | Object::RelationBlock { .. });
        let [before, behind] = Key::objects_that_are_no_pages();
        prop_assert_eq!(is_in(before) || is_in(behind), expect);
        // One in front of the pages of SLRUs, one behind.
        let slru_page = Key::from(Object::SlruPage { kind: SlruKind::Clog, page_no: 0 });
        prop_assert!(!is_in(before) || key < slru_page);
        prop_assert!(!is_in(behind) || slru_page < key);
    }
}

proptest! {
    #[test]
    fn comes_back_as_it_went_in(version in any_version(), object in any_object()) {
        prop_assert_eq!(VersionKey::decode(&version.encode()), Ok(version));
        prop_assert_eq!(Key::from(object).object(), Ok(object));
        prop_assert_eq!(Key::from(object).is_block(), matches!(object, Object::RelationBlock { .. }));
    }

    #[test]
    fn byte_order_is_value_order(a in any_version(), b in any_version()) {
        prop_assert_eq!(a.encode().cmp(&b.encode()), a.cmp(&b));
    }

    #[test]
    fn blocks_sort_by_relation_fork_block(a in any::<(u32, u32, u32, u32)>(), b in any::<(u32, u32, u32, u32)>(), forks in (0u8..4, 0u8..4)) {
        let key = |t: (u32, u32, u32, u32), fork: u8| {
            let fork = ForkNumber::ALL[usize::from(fork)];
            let rel = RelTag { spc_oid: t.0, db_oid: t.1, rel_number: t.2 };
            ((rel, fork, t.3), Key::block(rel, fork, t.3))
        };
        let ((plain_a, key_a), (plain_b, key_b)) = (key(a, forks.0), key(b, forks.1));
        prop_assert_eq!(key_a.cmp(&key_b), plain_a.cmp(&plain_b));
    }

    #[test]
    fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = VersionKey::decode(&bytes);
        let _ = VersionKey::decode_version(&bytes);
        let _ = Key::from_bytes(&bytes).map(|key| key.object());
    }

    #[test]
    fn what_decodes_encodes_to_the_same_bytes(mut bytes in proptest::collection::vec(any::<u8>(), ENCODED_KEY_LEN), class in prop_oneof![Just(0x40u8), Just(0x10), Just(0x08), Just(0x19), Just(0x04)]) {
        bytes[4] = class;
        bytes[30] %= 4;
        if let Ok(version) = VersionKey::decode(&bytes) {
            prop_assert_eq!(&version.encode()[..], &bytes[..]);
        }
    }
}
