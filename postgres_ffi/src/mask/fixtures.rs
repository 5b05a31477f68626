//! Real pages for the tests of masks and decoders.
//!
//! Each file holds two pages, compressed: the one in the directory of a cleanly stopped primary, and the same block of its
//! standby, that is, as PostgreSQL's own replay made it. Checksums were on. Where a kind of page has one with other hints on the two
//! sides, that one was taken.

use crate::page::{BLCKSZ, Page, ZERO_PAGE};
use crate::{BlockNumber, ForkNumber};

/// A page as two servers have it.
pub(crate) struct Fixture {
    pub major: u32,
    /// What it is: `heap`, `btree-meta`, `gin-data-leaf`, ...
    pub name: &'static str,
    pub block_no: BlockNumber,
    compressed: &'static [u8],
}

impl Fixture {
    pub fn fork(&self) -> ForkNumber {
        match self.name {
            "vm" => ForkNumber::Vm,
            "fsm" => ForkNumber::Fsm,
            _ => ForkNumber::Main,
        }
    }

    pub fn primary(&self) -> Page {
        self.page(0)
    }

    pub fn standby(&self) -> Page {
        self.page(1)
    }

    fn page(&self, side: usize) -> Page {
        let both = zstd::decode_all(self.compressed).expect("decompress fixture");
        let mut page = ZERO_PAGE;
        page.copy_from_slice(&both[side * BLCKSZ..(side + 1) * BLCKSZ]);
        page
    }
}

/// The fixture of PostgreSQL 15 with this name.
pub(crate) fn fixture(name: &str) -> &'static Fixture {
    FIXTURES.iter().find(|fixture| fixture.major == 15 && fixture.name == name).expect("known fixture")
}

macro_rules! fixture {
    ($major:literal, $name:literal, $block_no:literal) => {
        Fixture {
            major: $major,
            name: $name,
            block_no: $block_no,
            compressed: include_bytes!(concat!(
                "../../tests/data/pages/pg",
                $major,
                "-",
                $name,
                "-block",
                $block_no,
                ".zst"
            )),
        }
    };
}

pub(crate) static FIXTURES: [Fixture; 36] = [
    fixture!(15, "brin", 2),
    fixture!(15, "brin-meta", 0),
    fixture!(15, "brin-revmap", 1),
    fixture!(15, "btree", 30),
    fixture!(15, "btree-meta", 0),
    fixture!(15, "fsm", 3),
    fixture!(15, "gin", 35),
    fixture!(15, "gin-data", 361),
    fixture!(15, "gin-data-leaf", 38),
    fixture!(15, "gin-meta", 0),
    fixture!(15, "gist", 166),
    fixture!(15, "hash", 7),
    fixture!(15, "hash-meta", 0),
    fixture!(15, "heap", 5),
    fixture!(15, "sequence", 0),
    fixture!(15, "spgist", 24),
    fixture!(15, "spgist-meta", 0),
    fixture!(15, "vm", 0),
    fixture!(17, "brin", 2),
    fixture!(17, "brin-meta", 0),
    fixture!(17, "brin-revmap", 1),
    fixture!(17, "btree", 1),
    fixture!(17, "btree-meta", 0),
    fixture!(17, "fsm", 3),
    fixture!(17, "gin", 35),
    fixture!(17, "gin-data", 361),
    fixture!(17, "gin-data-leaf", 40),
    fixture!(17, "gin-meta", 0),
    fixture!(17, "gist", 12),
    fixture!(17, "hash", 7),
    fixture!(17, "hash-meta", 0),
    fixture!(17, "heap", 5),
    fixture!(17, "sequence", 0),
    fixture!(17, "spgist", 24),
    fixture!(17, "spgist-meta", 0),
    fixture!(17, "vm", 0),
];
