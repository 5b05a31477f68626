//! What no WAL of PostgreSQL shows: record bodies and pages that make no sense. Method: one page, one broken thing at a time.

use super::posting_list::{Encoder, List, items};
use super::*;
use crate::page::{BLCKSZ, PD_LOWER, PD_SPECIAL, ZERO_PAGE};
use proptest::prelude::*;

/// (0,1), (0,3), (1,1), as in the example of [`posting_list`].
const EXAMPLE: [u8; 12] = [0, 0, 0, 0, 1, 0, 3, 0, 0x02, 0xFE, 0x0F, 0];
const FIRST_ID: [u8; 6] = [0, 0, 0, 0, 1, 0];

/// Breaks a page whose posting lists start at the offset.
type Damage = fn(&mut Page, usize);

/// A leaf of a posting tree with [`EXAMPLE`] twice.
fn leaf() -> Page {
    let mut page = ZERO_PAGE;
    page::init(&mut page, DATA | LEAF | COMPRESSED);
    page[page::DATA_RANGE][..24].copy_from_slice(&[EXAMPLE, EXAMPLE].concat());
    page::set_data_end(&mut page, page::DATA_RANGE.start + 24);
    page
}

fn lists_of(page: &Page) -> &[u8] {
    &page[page::DATA_RANGE.start..Header::read(page).lower]
}

/// A count of actions, then the bytes of them all.
fn actions(count: u16, bytes: &[&[u8]]) -> Vec<u8> {
    [&count.to_le_bytes()[..], &bytes.concat()].concat()
}

fn put(page: &mut Page, at: usize, word: u16) {
    LittleEndian::write_u16(&mut page[at..], word);
}

fn packed(ids: &[[u8; 6]]) -> Vec<u8> {
    let mut room = [0xAA; 2048];
    let mut encoder = Encoder::new(&mut room);
    items(&ids.concat()).for_each(|item| encoder.push(item.unwrap()).unwrap());
    let len = encoder.finish().unwrap();
    room[..len].to_vec()
}

#[test]
fn list_is_packed_and_unpacked_as_in_the_example() {
    let [first, second, third] = [FIRST_ID, [0, 0, 0, 0, 3, 0], [0, 0, 1, 0, 1, 0]];
    assert_eq!(packed(&[first, second, third]), EXAMPLE);
    let mut room = [0; 10];
    let mut encoder = Encoder::new(&mut room);
    let mut unpacked = List::first_of(&EXAMPLE).unwrap().items().unwrap();
    unpacked.pack_below(3, &mut encoder).unwrap();
    assert_eq!(encoder.finish().unwrap(), 8);
    assert_eq!(room, [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
    let mut room = [0; 10];
    let mut encoder = Encoder::new(&mut room);
    unpacked.pack_below(u64::MAX, &mut encoder).unwrap();
    assert_eq!(encoder.finish().unwrap(), 10);
    assert_eq!(room, [0, 0, 0, 0, 3, 0, 2, 0, 0xFE, 0x0F]);
}

/// Distances of one byte, which are taken eight at a time, and longer ones between them.
fn sorted_ids() -> impl Strategy<Value = Vec<[u8; 6]>> {
    let distance = prop_oneof![9 => 1..=3_u64, 3 => 100..=130_u64, 1 => 1..1_u64 << 20];
    let of = |item: u64| {
        let [a, b, c, d, ..] = ((item / 200) as u32).to_le_bytes();
        let [low, high] = ((item % 200 + 1) as u16).to_le_bytes();
        [c, d, a, b, low, high]
    };
    proptest::collection::vec(distance, 1..120).prop_map(move |distances| {
        let mut item = 0;
        distances
            .into_iter()
            .map(|distance| {
                item += distance;
                of(item)
            })
            .collect()
    })
}

proptest! {
    /// Whichever ids are added to the others: the list is that of all of them, on the short way (one action) and on the long one.
    #[test]
    fn a_merged_list_is_the_list_of_all(ids in sorted_ids(), added in proptest::collection::vec(any::<bool>(), 120)) {
        let pick = |wanted: bool| -> Vec<[u8; 6]> {
            ids.iter().zip(&added).enumerate().filter(|(i, (_, added))| (*i > 0 && **added) == wanted).map(|(_, (id, _))| *id).collect()
        };
        let (old, new) = (packed(&pick(false)), pick(true));
        let expected = packed(&ids);
        let list = List::first_of(&old).unwrap();
        let mut room = [0; 2048];
        let len = posting_list::merge(list, &new.concat(), &mut room).unwrap();
        prop_assert_eq!(&room[..len], &expected[..]);

        let add = [&[0, 4][..], &(new.len() as u16).to_le_bytes(), &new.concat()].concat();
        for (action_count, record) in [(1, add.clone()), (2, [&add[..], &[1, 2], &EXAMPLE].concat())] {
            let mut page = leaf();
            page[page::DATA_RANGE][..old.len()].copy_from_slice(&old);
            page[page::DATA_RANGE][old.len()..][..EXAMPLE.len()].copy_from_slice(&EXAMPLE);
            page::set_data_end(&mut page, page::DATA_RANGE.start + old.len() + EXAMPLE.len());
            posting_leaf::recompress(&mut page, &actions(action_count, &[&record])).unwrap();
            let inserted: &[u8] = if action_count == 2 { &EXAMPLE } else { &[] };
            prop_assert_eq!(lists_of(&page), &[&expected[..], inserted, &EXAMPLE].concat()[..]);
        }
    }
}

#[test]
fn longest_distance_takes_seven_bytes() {
    let list = packed(&[FIRST_ID, [0xFF, 0xFF, 0xFE, 0xFF, 0xFF, 0x07]]);
    assert_eq!(list.len(), 8 + 7 + 1);
    let mut room = [0; 16];
    let mut encoder = Encoder::new(&mut room);
    List::first_of(&list).unwrap().items().unwrap().pack_below(u64::MAX, &mut encoder).unwrap();
    encoder.finish().unwrap();
    assert_eq!(room[..], list);
}

#[test]
fn lists_close_up_and_bytes_behind_them_stay() {
    let mut page = leaf();
    let before = page;
    posting_leaf::recompress(&mut page, &actions(1, &[&[0, 1]])).unwrap();
    assert_eq!(lists_of(&page), EXAMPLE);
    assert_eq!(page[page::DATA_RANGE], before[page::DATA_RANGE]);
    posting_leaf::recompress(&mut page, &actions(1, &[&[0, 4, 1, 0], &[0, 0, 0, 0, 2, 0]])).unwrap();
    assert_eq!(lists_of(&page), [0, 0, 0, 0, 1, 0, 4, 0, 1, 1, 0xFE, 0x0F]);
}

#[test]
fn actions_that_make_no_sense_are_refused() {
    let cases: &[(&str, Vec<u8>)] = &[
        ("no body", vec![]),
        ("no action", actions(0, &[])),
        ("fewer actions than promised", actions(2, &[&[0, 1]])),
        ("more bytes than actions", actions(1, &[&[0, 1, 0]])),
        ("unknown action", actions(1, &[&[0, 0]])),
        ("numbers descend", actions(2, &[&[1, 1], &[0, 1]])),
        ("list deleted twice", actions(2, &[&[0, 1], &[0, 1]])),
        ("no list with this number", actions(1, &[&[255, 1]])),
        ("deleted behind the last", actions(1, &[&[2, 1]])),
        ("replaced behind the last", actions(1, &[&[2, 3], &EXAMPLE])),
        ("added behind the last", actions(1, &[&[2, 4, 1, 0], &FIRST_ID])),
        ("new list is cut", actions(1, &[&[0, 2], &EXAMPLE[..11]])),
        ("new list promises too much", actions(1, &[&[0, 2], &FIRST_ID, &[0xFF, 0xFF]])),
        ("new ids are cut", actions(1, &[&[0, 4, 2, 0], &FIRST_ID])),
        ("new id is there already", actions(1, &[&[0, 4, 1, 0], &FIRST_ID])),
        ("offset number 0", actions(1, &[&[0, 4, 1, 0], &[0; 6]])),
        ("offset number 2048", actions(1, &[&[0, 4, 1, 0], &[0, 0, 0, 0, 0, 8]])),
    ];
    for (name, body) in cases {
        assert!(posting_leaf::recompress(&mut leaf(), body).is_err(), "{name}");
    }
    // The place behind the last list is one to insert at.
    posting_leaf::recompress(&mut leaf(), &actions(1, &[&[2, 2], &EXAMPLE])).unwrap();
}

#[test]
fn lists_that_do_not_fit_are_refused() {
    let large = [&FIRST_ID[..], &8000_u16.to_le_bytes(), &[1; 8000]].concat();
    let (insert, delete) = ([&[0, 2][..], &large].concat(), [0, 1]);
    posting_leaf::recompress(&mut leaf(), &actions(1, &[&insert])).unwrap();
    assert!(posting_leaf::recompress(&mut leaf(), &actions(2, &[&insert, &insert])).is_err());
    let mut full = leaf();
    posting_leaf::recompress(&mut full, &actions(2, &[&insert, &delete])).unwrap();
    let rest_len = page::DATA_RANGE.end - Header::read(&full).lower;
    let rest = [&FIRST_ID[..], &(rest_len as u16 - 8).to_le_bytes(), &vec![1; rest_len - 8]].concat();
    posting_leaf::recompress(&mut full, &actions(1, &[&[0, 2], &rest])).unwrap();
    assert_eq!(Header::read(&full).lower, page::DATA_RANGE.end);
    // No byte is free: one more item does not fit.
    assert!(posting_leaf::recompress(&mut full, &actions(1, &[&[2, 4, 1, 0], &[0, 0, 2, 0, 1, 0]])).is_err());
}

#[test]
fn broken_lists_on_the_page_are_refused() {
    let add = actions(1, &[&[0, 4, 1, 0], &[0, 0, 0, 0, 2, 0]]);
    let at = page::DATA_RANGE.start;
    let cases: &[(&str, Damage)] = &[
        ("lists end before they start", |page, _| put(page, PD_LOWER, 31)),
        ("lists end behind the page", |page, _| put(page, PD_LOWER, 0xFFFF)),
        ("list reaches beyond the last", |page, at| put(page, at + 6, 100)),
        ("head is cut", |page, at| put(page, PD_LOWER, at as u16 + 7)),
        ("first id is none", |page, at| put(page, at + 4, 0)),
        ("distance does not end with the list", |page, at| page[at + 10] = 0x80),
        ("distance of eight bytes", |page, at| {
            put(page, at + 6, 8);
            page[at + 8..at + 16].copy_from_slice(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0]);
        }),
        ("distance leads beyond all blocks", |page, at| {
            put(page, at + 6, 7);
            page[at + 8..at + 15].copy_from_slice(&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]);
        }),
        ("distance 0", |page, at| page[at + 8] = 0),
        ("distance longer than it needs to be", |page, at| page[at + 10] = 0x8F),
        ("special area of another kind", |page, _| put(page, PD_SPECIAL, BLCKSZ as u16 - 16)),
    ];
    for (name, damage) in cases {
        let mut page = leaf();
        damage(&mut page, at);
        assert!(posting_leaf::recompress(&mut page, &add).is_err(), "{name}");
    }
}

#[test]
fn leaf_from_before_9_4_becomes_one_list() {
    let mut page = ZERO_PAGE;
    page::init(&mut page, DATA | LEAF);
    page[page::DATA_RANGE][..12].copy_from_slice(&[FIRST_ID, [0, 0, 1, 0, 1, 0]].concat());
    page::set_max_offset(&mut page, 2);
    let old = page;
    posting_leaf::recompress(&mut page, &actions(1, &[&[1, 2], &EXAMPLE])).unwrap();
    assert_eq!(lists_of(&page), [&[0, 0, 0, 0, 1, 0, 2, 0, 0x80, 0x10][..], &EXAMPLE].concat());
    assert_eq!((page::flags(&page).unwrap(), page::max_offset(&page)), (DATA | LEAF | COMPRESSED, 0));
    for count in [3, 1359, u16::MAX] {
        let mut page = old;
        page::set_max_offset(&mut page, count);
        assert!(posting_leaf::recompress(&mut page, &actions(1, &[&[0, 1]])).is_err(), "{count}");
    }
}

#[test]
fn posting_item_has_its_place_or_is_refused() {
    let insert = |count: u16, offset_no: u16, item_len: usize| {
        let mut page = ZERO_PAGE;
        page::init(&mut page, DATA);
        page::set_max_offset(&mut page, count);
        let data = [&offset_no.to_le_bytes()[..], &vec![7; item_len]].concat();
        insert_posting_item(&mut page, &data, &[9; 4]).map(|()| page)
    };
    let page = insert(1, 1, 10).unwrap();
    let start = page::DATA_RANGE.start;
    assert_eq!(page[start..start + 20], [&[7; 10][..], &[9; 4], &[0; 6]].concat());
    assert_eq!((page::max_offset(&page), Header::read(&page).lower), (2, start + 20));
    assert!(insert(814, 814, 10).is_ok());
    for (count, offset_no, item_len) in [(1, 0, 10), (1, 2, 10), (0, 1, 10), (815, 1, 10), (u16::MAX, 1, 10), (1, 1, 9)]
    {
        assert!(insert(count, offset_no, item_len).is_err(), "{count} {offset_no} {item_len}");
    }
}

#[test]
fn entry_has_its_place_or_is_refused() {
    let tuple = [1, 0, 2, 0, 3, 0, 8, 0];
    let mut page = ZERO_PAGE;
    page::init(&mut page, 0);
    add_tuples(&mut page, 1, 2, &[tuple, tuple].concat()).unwrap();
    let entry = |offset_no: u8, is_delete: u8, tuple: &[u8]| [&[offset_no, 0, is_delete, 0][..], tuple].concat();
    let mut changed = page;
    insert_entry(&mut changed, &entry(2, 0, &tuple), Some(&[5; 4])).unwrap();
    let link = layout::item(&changed, 3).and_then(|item| item.range()).unwrap();
    assert_eq!(changed[link], [5, 5, 5, 5, 0, 0, 8, 0]);
    let no_child = Some(&[6; 4][..]);
    for (name, data, child) in [
        ("no body", vec![], None),
        ("no tuple", entry(1, 0, &[]), None),
        ("cut tuple", entry(1, 0, &tuple[..7]), None),
        ("two tuples", entry(1, 0, &[tuple, tuple].concat()), None),
        ("offset number 0", entry(0, 0, &tuple), None),
        ("behind the place after the last", entry(4, 0, &tuple), None),
        ("nothing to delete", entry(3, 1, &tuple), None),
        ("no downlink", entry(3, 0, &tuple), no_child),
        ("deleted on an inner page", entry(1, 1, &tuple), no_child),
    ] {
        assert!(insert_entry(&mut page.clone(), &data, child).is_err(), "{name}");
    }
}
