//! Real pages must decode whole, known ones to known values, damaged ones to words and not to a panic.

use proptest::prelude::*;

use super::*;
use crate::mask::fixtures::{FIXTURES, fixture};
use crate::page::{BLCKSZ, ZERO_PAGE};

fn view_of(name: &str) -> PageView {
    let fixture = fixture(name);
    inspect(&fixture.primary(), fixture.fork(), fixture.block_no)
}

fn field(fields: &Option<Fields>, name: &str) -> i64 {
    let fields = fields.as_ref().expect("contents");
    fields.0.iter().find(|(known, _)| *known == name).expect("field").1
}

#[test]
fn real_pages_decode_without_damage() {
    for fixture in &FIXTURES {
        let view = inspect(&fixture.primary(), fixture.fork(), fixture.block_no);
        assert_eq!(view.damage, Vec::<String>::new(), "{} {}", fixture.major, fixture.name);
        assert!(view.checksum_is_right, "{} {}", fixture.major, fixture.name);
        let text = view.to_string();
        assert!(text.starts_with(view.kind.name()), "{text}");
        assert!(text.lines().count() >= 3 + view.items.len(), "{text}");
    }
}

#[test]
fn entries_name_their_rows_and_sizes() {
    for name in ["btree", "gin", "gist", "hash"] {
        for item in view_of(name).items {
            let Some(Tuple::Index(tuple)) = item.tuple else { panic!("{name}: {item}") };
            assert!(usize::from(tuple.size) <= item.item.len, "{name}: {tuple}");
        }
    }
    for item in view_of("spgist").items {
        let Some(Tuple::Spgist(tuple)) = item.tuple else { panic!("{item}") };
        assert_eq!(tuple.size as usize, item.item.len, "{tuple}");
    }
    let ranges: Vec<_> = view_of("brin")
        .items
        .iter()
        .filter_map(|item| match &item.tuple {
            Some(Tuple::Brin(tuple)) => Some(tuple.heap_block),
            _ => None,
        })
        .collect();
    // pages_per_range was 4.
    assert!(ranges.len() > 10 && ranges.iter().all(|block| block % 4 == 0), "{ranges:?}");
}

#[test]
fn heap_tuples_show_who_wrote_them() {
    let view = view_of("heap");
    let tuples: Vec<_> = view
        .items
        .iter()
        .filter_map(|item| match &item.tuple {
            Some(Tuple::Heap(tuple)) => Some(tuple),
            _ => None,
        })
        .collect();
    assert!(!tuples.is_empty());
    for tuple in tuples {
        // pg_class of PostgreSQL 15 has 33 columns.
        assert_eq!(tuple.columns, 33, "{tuple}");
        assert!(tuple.xmin > 0 && tuple.flags.contains(&"HASNULL"), "{tuple}");
        assert!(tuple.null_columns.iter().all(|column| (1..=33).contains(column)), "{tuple}");
    }
}

#[test]
fn meta_pages_show_their_numbers() {
    assert_eq!(field(&view_of("btree-meta").contents, "magic"), 0x053162);
    assert_eq!(field(&view_of("hash-meta").contents, "magic"), 0x06440640);
    assert_eq!(field(&view_of("gin-meta").contents, "version"), 2);
    assert_eq!(field(&view_of("spgist-meta").contents, "magic"), 0xBA0BABEE);
    assert_eq!(field(&view_of("brin-meta").contents, "pages_per_range"), 4);
    assert!(field(&view_of("brin-revmap").contents, "summarised_ranges") > 10);
    assert!(field(&view_of("gin-data-leaf").contents, "tids") > 100);
    let sequence = view_of("sequence");
    assert_eq!(field(&sequence.contents, "is_called"), 1);
    assert!(field(&sequence.contents, "log_count") > 0);
}

#[test]
fn maps_show_runs() {
    let visible = view_of("vm").visible.expect("visibility");
    assert!(visible.all_visible > 50);
    let of_runs: u64 = visible.visible_runs.iter().map(|(first, last)| last - first + 1).sum();
    assert_eq!(of_runs, u64::from(visible.all_visible));
    assert!(view_of("fsm").free_space.expect("free space").leaves_with_space > 0);
}

#[test]
fn damage_is_told_in_words() {
    let mut page = fixture("heap").primary();
    page[crate::page::PD_LOWER + 1] = 0xFF;
    let view = inspect(&page, ForkNumber::Main, 5);
    assert!(view.damage.iter().any(|words| words.contains("out of order")), "{:?}", view.damage);
    let mut not_new = ZERO_PAGE;
    not_new[100] = 1;
    assert_eq!(inspect(&not_new, ForkNumber::Main, 0).damage.len(), 1);
    assert!(inspect(&ZERO_PAGE, ForkNumber::Main, 0).damage.is_empty());
}

#[test]
fn hex_dumps_fold_repeated_lines() {
    let mut bytes = [0; 64];
    bytes[..2].copy_from_slice(b"Hi");
    let expected = "0000  48 69 00 00 00 00 00 00 00 00 00 00 00 00 00 00  Hi..............\n\
                    0010  00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................\n*\n0040\n";
    assert_eq!(hex_dump(&bytes), expected);
}

proptest! {
    #[test]
    fn damaged_pages_never_panic(
        fixture_no in 0..FIXTURES.len(),
        damage in prop::collection::vec((0..BLCKSZ, any::<u8>()), 0..20),
        block_no: BlockNumber,
    ) {
        let mut page = FIXTURES[fixture_no].primary();
        for (offset, value) in damage {
            page[offset] = value;
        }
        for fork in ForkNumber::ALL {
            let _ = inspect(&page, fork, block_no).to_string();
        }
    }
}
