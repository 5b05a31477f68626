//! Posting lists: ascending tuple ids, the first as it is, of each other one the distance to the one before.
//!
//! - GinPostingList: first tuple id (6 bytes: block high u16, block low u16, offset number u16), count of bytes u16, the bytes, padded to an even
//!   length.
//! - An item is a tuple id as one number, `block << 11 | offset number`, 43 bits. A distance has seven bits in a byte, lowest first; the high bit
//!   tells that another byte follows, and the seventh byte is the last.
//! - **Never:** items that do not ascend, or that are longer than a tuple id, are packed or unpacked: PostgreSQL has asserts there. That offset numbers
//!   within a packed list are not 0 is not looked at: the bytes would be the same.
//!
//! Example: (0,1), (0,3), (1,1) is `0000 0000 0100 | 0300 | 02 fe0f | 00`: three bytes, distances 2 and 2046, one byte of padding.
//!
//! PG 14-18: src/backend/access/gin/ginpostinglist.c, src/include/access/ginblock.h (GinPostingList).

use byteorder::{ByteOrder, LittleEndian};

use crate::page::BLCKSZ;
use crate::records::RecordError;
use crate::records::fields::Fields;
use crate::redo::{RedoError, page_error};

/// Length of ItemPointerData.
pub(super) const TUPLE_ID_LEN: usize = 6;
/// What stands before the distances.
const HEAD_LEN: usize = TUPLE_ID_LEN + 2;
/// PG: ginpostinglist.c, MaxHeapTuplesPerPageBits.
const OFFSET_NO_BITS: u32 = 11;
const OFFSET_NO_MASK: u64 = (1 << OFFSET_NO_BITS) - 1;
const ITEM_BITS: u32 = 32 + OFFSET_NO_BITS;
/// PG: ginpostinglist.c, MaxBytesPerInteger.
const DISTANCE_LEN_MAX: usize = 7;

/// One posting list where it stands.
#[derive(Clone, Copy)]
pub(super) struct List<'a>(&'a [u8]);

impl<'a> List<'a> {
    /// The list at the start of `bytes`; `None` if it is cut.
    pub(super) fn first_of(bytes: &'a [u8]) -> Option<Self> {
        let len = HEAD_LEN + padded(LittleEndian::read_u16(bytes.get(TUPLE_ID_LEN..HEAD_LEN)?));
        bytes.get(..len).map(List)
    }

    /// The list that comes next in a record.
    pub(super) fn take(fields: &mut Fields<'a>) -> Result<Self, RecordError> {
        let rest = fields.rest();
        let list_len = Self::first_of(rest).map_or(rest.len() + 1, |list| list.0.len());
        fields.take(list_len).map(List)
    }

    /// Head, distances and padding.
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.0
    }

    /// Unpacks it. PG: ginPostingListDecode.
    pub(super) fn items(&self) -> Result<Items<'a>, RedoError> {
        let (head, distances) = self.0.split_at(HEAD_LEN);
        let len = usize::from(LittleEndian::read_u16(&head[TUPLE_ID_LEN..]));
        Ok(Items { next: Some(item_of(&head[..TUPLE_ID_LEN])?), rest: &distances[..len] })
    }
}

/// The items of a posting list, one after the other.
pub(super) struct Items<'a> {
    next: Option<u64>,
    /// Distances of those after `next`.
    rest: &'a [u8],
}

impl Items<'_> {
    /// Takes those below `limit` into another list. Neighbours stay neighbours there, so the distances between them are the same bytes.
    pub(super) fn pack_below(&mut self, limit: u64, encoder: &mut Encoder<'_>) -> Result<(), RedoError> {
        let Some(first) = self.next.filter(|item| *item < limit) else { return Ok(()) };
        encoder.push(first)?;
        let distances = self.rest;
        let mut last = first;
        loop {
            last = checked(self.take_short_distances(last, limit))?;
            let len = distances.len() - self.rest.len();
            self.next = if self.rest.is_empty() { None } else { Some(checked(last + take_distance(&mut self.rest)?)?) };
            match self.next.filter(|item| *item < limit) {
                Some(item) => last = item,
                None => return encoder.push_packed(&distances[..len], last),
            }
        }
    }

    /// Goes on from the item `last` as long as eight distances of one byte each follow and lead to an item below `limit`: the item there.
    fn take_short_distances(&mut self, mut last: u64, limit: u64) -> u64 {
        while let Some((eight, rest)) = self.rest.split_first_chunk::<8>() {
            match sum_of_short(u64::from_le_bytes(*eight)) {
                Some(sum) if last + sum < limit => (last, self.rest) = (last + sum, rest),
                _ => break,
            }
        }
        last
    }
}

/// The sum of eight bytes if all are in `1..=0x7F`: distances of one byte.
#[inline]
fn sum_of_short(bytes: u64) -> Option<u64> {
    const EACH: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = EACH << 7;
    // No byte has its high bit, so a borrow into it tells of a zero; one further up, at worst, of a zero below.
    if bytes & HIGH != 0 || bytes.wrapping_sub(EACH) & HIGH != 0 {
        return None;
    }
    const EVEN: u64 = 0x00FF_00FF_00FF_00FF;
    let pairs = (bytes & EVEN) + (bytes >> 8 & EVEN);
    Some(pairs.wrapping_mul(0x0001_0001_0001_0001) >> 48)
}

/// Tuple ids that are not packed.
pub(super) fn items(ids: &[u8]) -> impl Iterator<Item = Result<u64, RedoError>> + '_ {
    ids.chunks_exact(TUPLE_ID_LEN).map(item_of)
}

/// Packs the items of `list` and `added` tuple ids, which ascend and are not in it yet, into one list at the start of `room`. Its length.
/// PG: ginpostinglist.c, ginMergeItemPointers.
pub(super) fn merge(list: List<'_>, added: &[u8], room: &mut [u8]) -> Result<usize, RedoError> {
    let mut encoder = Encoder::new(room);
    let mut old = list.items()?;
    for item in items(added) {
        let item = item?;
        old.pack_below(item, &mut encoder)?;
        encoder.push(item)?;
    }
    old.pack_below(u64::MAX, &mut encoder)?;
    encoder.finish()
}

/// Packs items into one list. PG: ginCompressPostingList.
pub(super) struct Encoder<'a> {
    /// Where the list starts, with all the room there is for it.
    room: &'a mut [u8],
    /// Written so far; 0 before the first item.
    len: usize,
    last: u64,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(room: &'a mut [u8]) -> Self {
        Encoder { room, len: 0, last: 0 }
    }

    /// Packs one more.
    pub(super) fn push(&mut self, item: u64) -> Result<(), RedoError> {
        if self.len == 0 {
            self.put(&tuple_id_of(item))?;
            self.put(&[0, 0])?; // The count of bytes, known in the end.
        } else if item <= self.last {
            return Err(page_error("tuple ids of a posting list do not ascend", item));
        } else {
            let mut distance = item - self.last;
            while distance > 0x7F {
                self.put(&[0x80 | (distance & 0x7F) as u8])?;
                distance >>= 7;
            }
            self.put(&[distance as u8])?;
        }
        self.last = item;
        Ok(())
    }

    /// Appends distances as they are. `last` is the item that they lead to.
    fn push_packed(&mut self, distances: &[u8], last: u64) -> Result<(), RedoError> {
        self.last = last;
        self.put(distances)
    }

    /// Length of the whole list.
    ///
    /// Requires: there was an item.
    pub(super) fn finish(mut self) -> Result<usize, RedoError> {
        assert!(HEAD_LEN <= self.len);
        let len = (self.len - HEAD_LEN) as u16; // The room is within a page.
        LittleEndian::write_u16(&mut self.room[TUPLE_ID_LEN..HEAD_LEN], len);
        if !len.is_multiple_of(2) {
            self.put(&[0])?;
        }
        Ok(self.len)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), RedoError> {
        let end = self.len + bytes.len();
        let place = self.room.get_mut(self.len..end);
        place.ok_or_else(|| page_error("posting list does not fit", end))?.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }
}

fn padded(len: u16) -> usize {
    usize::from(len).next_multiple_of(2)
}

/// The first distance of `bytes`, which is cut off. PG: decode_varbyte, which also takes those longer than they need to be.
#[inline]
fn take_distance(bytes: &mut &[u8]) -> Result<u64, RedoError> {
    if let [byte @ 1..=0x7F, rest @ ..] = *bytes {
        *bytes = rest; // Nearly all are that short.
        return Ok(u64::from(*byte));
    }
    let mut distance = 0;
    for (index, byte) in bytes.iter().take(DISTANCE_LEN_MAX).enumerate() {
        distance |= u64::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            *bytes = &bytes[index + 1..];
            let is_shortest = 0 < *byte;
            return if is_shortest {
                Ok(distance)
            } else {
                Err(page_error("distance in a posting list is 0 or padded", index))
            };
        }
    }
    Err(page_error("distance in a posting list does not end", bytes.len()))
}

/// PG: itemptr_to_uint64.
fn item_of(tuple_id: &[u8]) -> Result<u64, RedoError> {
    let word = |at: usize| u64::from(LittleEndian::read_u16(&tuple_id[at..]));
    let offset_no = word(4);
    if offset_no == 0 || OFFSET_NO_MASK < offset_no {
        return Err(page_error("offset number of a tuple id makes no sense", offset_no));
    }
    Ok((word(0) << 16 | word(2)) << OFFSET_NO_BITS | offset_no)
}

/// PG: uint64_to_itemptr.
fn tuple_id_of(item: u64) -> [u8; TUPLE_ID_LEN] {
    let block_no = item >> OFFSET_NO_BITS;
    let mut tuple_id = [0; TUPLE_ID_LEN];
    LittleEndian::write_u16(&mut tuple_id[0..], (block_no >> 16) as u16);
    LittleEndian::write_u16(&mut tuple_id[2..], (block_no & 0xFFFF) as u16);
    LittleEndian::write_u16(&mut tuple_id[4..], (item & OFFSET_NO_MASK) as u16);
    tuple_id
}

#[inline]
fn checked(item: u64) -> Result<u64, RedoError> {
    if item >> ITEM_BITS != 0 {
        return Err(page_error("item of a posting list is no tuple id", item));
    }
    Ok(item)
}

/// A list's items cannot overflow: of those before the last one checked each is at most 127 further than the one before.
const _: () = assert!((1 << ITEM_BITS) + 127 * BLCKSZ as u64 <= u64::MAX >> 1);
const _: () = assert!(ITEM_BITS < 63);
const _: () = assert!(7 * DISTANCE_LEN_MAX < 63);
