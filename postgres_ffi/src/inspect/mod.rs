//! Decoded pages, for a person: header, line pointers, tuples, special area.
//!
//! - Every bound is checked: what does not decode is shown as damaged, with the reason, and the rest of the page is still shown.
//! - Nothing is looked up in a catalog, so tuples are shown as headers and lengths, not as values.
//! - Everything is `Serialize` (for `--json`) and `Display`.

mod fields;
mod heap;
pub(crate) mod index;
mod maps;
pub mod record;
pub(crate) mod special;
mod text;

use serde::Serialize;

use crate::mask::{PageKind, classify};
use crate::page::layout::{Header, Item, ItemFlags, items};
use crate::page::{Page, compute_checksum, page_is_new, page_lsn, stored_checksum};
use crate::{BlockNumber, ForkNumber, Lsn};

pub use fields::Fields;
pub use heap::HeapTuple;
pub use index::{BrinTuple, IndexTuple, SpgistTuple, TupleId};
pub use maps::{FreeSpace, Visible};
pub use special::Special;
pub use text::hex_dump;

/// A decoded page.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PageView {
    /// Its block number, as the caller gave it.
    pub block_no: BlockNumber,
    /// Its fork, as the caller gave it.
    pub fork: ForkNumber,
    /// What the special area says it is.
    pub kind: PageKind,
    /// End of the last record that changed it.
    pub lsn: Option<Lsn>,
    /// The checksum in the page.
    pub checksum: u16,
    /// True when it is the right one. Only then did the page come from a cluster with checksums, unchanged.
    pub checksum_is_right: bool,
    /// The header as it stands.
    pub header: Header,
    /// What is wrong with the page, in words.
    pub damage: Vec<String>,
    /// The special area of an index, or what a sequence or meta page holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub special: Option<Special>,
    /// What a meta page, a sequence, a posting page or a revmap holds instead of tuples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contents: Option<Fields>,
    /// The visibility map's bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub visible: Option<Visible>,
    /// The free space map's tree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_space: Option<FreeSpace>,
    /// Line pointers with what they point to.
    pub items: Vec<ItemView>,
}

/// A line pointer and its tuple.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ItemView {
    /// The pointer.
    #[serde(flatten)]
    pub item: Item,
    /// The tuple, when there is one and it lies within the page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tuple: Option<Tuple>,
}

/// What a line pointer points to.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Tuple {
    /// A row version.
    Heap(HeapTuple),
    /// An entry of a btree, hash, GiST or GIN index.
    Index(IndexTuple),
    /// An entry of an SP-GiST index.
    Spgist(SpgistTuple),
    /// A summary of a range of blocks.
    Brin(BrinTuple),
    /// Bytes of an unknown kind.
    Raw {
        /// Their number.
        len: usize,
    },
}

/// Decodes a page.
pub fn inspect(page: &Page, fork: ForkNumber, block_no: BlockNumber) -> PageView {
    let kind = classify(page, fork, block_no);
    let header = Header::read(page);
    let mut view = PageView {
        block_no,
        fork,
        kind,
        lsn: page_lsn(page),
        checksum: stored_checksum(page),
        checksum_is_right: !page_is_new(page) && stored_checksum(page) == compute_checksum(page, block_no),
        header,
        damage: Vec::new(),
        special: special::decode(page, kind),
        contents: special::contents(page, kind),
        visible: (kind == PageKind::VisibilityMap).then(|| maps::visible(page, block_no)),
        free_space: (kind == PageKind::FreeSpaceMap).then(|| maps::free_space(page)),
        items: Vec::new(),
    };
    if kind == PageKind::New {
        if page.iter().any(|byte| *byte != 0) {
            view.damage.push("the page is new by its header, and not all zeroes".into());
        }
        return view;
    }
    if !header.is_sane() {
        view.damage.push(format!(
            "areas are out of order: lower {}, upper {}, special {}",
            header.lower, header.upper, header.special
        ));
    }
    if special::has_items(page, kind) {
        for item in items(page) {
            view.add_item(page, item);
        }
    }
    view
}

impl PageView {
    fn add_item(&mut self, page: &Page, item: Item) {
        let has_storage = item.len > 0 && matches!(item.flags, ItemFlags::Normal | ItemFlags::Dead);
        let tuple = has_storage.then(|| self.decode_tuple(page, &item));
        let tuple = tuple.flatten();
        if has_storage && tuple.is_none() {
            self.damage
                .push(format!("item {} does not decode: offset {}, length {}", item.offset_no, item.offset, item.len));
        }
        self.items.push(ItemView { item, tuple });
    }

    /// `None`: not within the page, or shorter than its header.
    fn decode_tuple(&self, page: &Page, item: &Item) -> Option<Tuple> {
        let bytes = &page[item.range()?];
        match self.kind {
            PageKind::Heap | PageKind::Sequence => HeapTuple::decode(bytes).map(Tuple::Heap),
            PageKind::Btree | PageKind::Hash | PageKind::Gist | PageKind::Gin => {
                IndexTuple::decode(bytes, self.kind).map(Tuple::Index)
            }
            PageKind::Spgist => SpgistTuple::decode(bytes, special::is_spgist_leaf(page)).map(Tuple::Spgist),
            PageKind::Brin => BrinTuple::decode(bytes).map(Tuple::Brin),
            _ => Some(Tuple::Raw { len: bytes.len() }),
        }
    }
}

#[cfg(test)]
mod tests;
