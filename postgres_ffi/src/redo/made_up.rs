//! For tests: records that no server wrote, with bodies as a test likes them.

use bytes::Bytes;

use super::{ClusterFacts, PageAddress, RedoError, redo};
use crate::page::edit::init_page;
use crate::page::{BLCKSZ, Page, ZERO_PAGE, set_page_lsn};
use crate::wal::DecodedRecord;
use crate::wal::checks::build::{BlockBuilder, RecordBuilder};
use crate::{BlockNumber, ForkNumber, Lsn, PgVersion, RelTag};

const REL: RelTag = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 };
/// Pages are from before the record.
pub(super) const PAGE_LSN: Lsn = Lsn::new(0x100);
pub(super) const END_LSN: Lsn = Lsn::new(0x1000);

/// A record and its blocks: id, WILL_INIT, data.
pub(super) struct MadeUp<'a> {
    pub version: PgVersion,
    pub rmid: u8,
    pub operation: u8,
    pub main_data: &'a [u8],
    pub blocks: &'a [(u8, bool, &'a [u8])],
}

impl MadeUp<'_> {
    /// Redo of the block `block_id`.
    pub fn redo(&self, block_id: u8, page: &mut Page) -> Result<(), RedoError> {
        let raw = self.builder().build(self.version, Lsn::new(0x80));
        let record = DecodedRecord::decode(self.version, Lsn::new(0x800), END_LSN, Bytes::from(raw)).unwrap();
        let address = PageAddress { rel: REL, fork: ForkNumber::Main, block_no: block_no_of(block_id) };
        redo(page, address, &record, ClusterFacts { version: self.version, hint_bits_logged: true })
    }

    fn builder(&self) -> RecordBuilder {
        let block = |&(block_id, will_init, data): &(u8, bool, &[u8])| BlockBuilder {
            block_id,
            rel: REL,
            fork: ForkNumber::Main,
            block_no: block_no_of(block_id),
            will_init,
            image: None,
            data: data.to_vec(),
        };
        RecordBuilder {
            rmid: self.rmid,
            info: self.operation,
            blocks: self.blocks.iter().map(block).collect(),
            main_data: self.main_data.to_vec(),
            ..RecordBuilder::default()
        }
    }
}

/// Which block a block id stands for.
pub(super) fn block_no_of(block_id: u8) -> BlockNumber {
    100 + BlockNumber::from(block_id)
}

/// A page with an LSN and nothing else but zeroes.
pub(super) fn empty_page(special_len: usize) -> Page {
    let mut page = ZERO_PAGE;
    init_page(&mut page, special_len);
    set_page_lsn(&mut page, PAGE_LSN);
    page
}

/// All operations on all blocks with bodies of all small lengths, on pages good and bad: an error or not, but an end.
pub(super) fn check_any_bodies(rmid: u8, special_len: usize) {
    let good = empty_page(special_len);
    let mut noise = good;
    noise.iter_mut().enumerate().skip(24).for_each(|(i, byte)| *byte = (i * i / 7) as u8);
    let mut bad = [0xFF; BLCKSZ];
    set_page_lsn(&mut bad, PAGE_LSN);
    for (operation, block_id, len) in
        (0..16 * 7 * 28).map(|i| (((i / (7 * 28)) << 4) as u8, (i / 28 % 7) as u8, i % 28))
    {
        for (main_byte, data_byte, will_init) in [(0, 0, false), (0xFF, 0xFF, true), (1, 8, false), (3, 1, true)] {
            let (main_data, data) = (vec![main_byte; len], vec![data_byte; len]);
            let blocks: Vec<_> = (0..7).map(|id| (id, will_init, &data[..])).collect();
            let version = PgVersion::ALL[len % PgVersion::ALL.len()];
            let record = MadeUp { version, rmid, operation, main_data: &main_data, blocks: &blocks };
            for page in [good, noise, bad] {
                let _done_or_refused = record.redo(block_id, &mut { page });
            }
        }
    }
}
