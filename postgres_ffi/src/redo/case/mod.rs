//! One application of redo as bytes: a page, a record, and what must come of it. What tests without a server and fuzzers start from.
//!
//! Layout, little endian:
//! ```text
//! u8 major version | u8 flags: 1 hint bits logged, 2 page, 4 image | u8 fork | u8 zero
//! | u32 tablespace, database, relation, block | u64 end LSN | u32 length of the record, the record
//! | page (8192) if flagged: before the record; else it is zeroes | image (8192) if flagged: as PostgreSQL has it after the record
//! ```

mod change;

use bytes::{Buf, Bytes};

pub use change::Changes;

use super::{ClusterFacts, PageAddress, RedoError, redo};
use crate::mask::{Equality, classify, differs_in_gist_flag_alone, equal_after_masking};
use crate::page::{Page, ZERO_PAGE, page_lsn};
use crate::wal::{DecodeError, DecodedRecord};
use crate::{BLCKSZ, ForkNumber, Lsn, PgVersion, RelTag};

const HINT_BITS_LOGGED: u8 = 1;
const HAS_PAGE: u8 = 2;
const HAS_IMAGE: u8 = 4;

/// A page, a record for it, and perhaps what PostgreSQL made of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedoCase {
    /// The cluster.
    pub facts: ClusterFacts,
    /// The page's place.
    pub address: PageAddress,
    /// Where the record ends.
    pub end_lsn: Lsn,
    /// The record, whole or cut down for the page.
    pub record: Bytes,
    /// The page before; `None`: zeroes.
    pub page: Option<Box<Page>>,
    /// The page after, from PostgreSQL; compared under its masks.
    pub image: Option<Box<Page>>,
}

/// Why a case does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaseError {
    /// The bytes are no case.
    #[error("not a case of redo")]
    NotACase,
    /// The record is none.
    #[error("record cannot be decoded: {0}")]
    Record(#[from] DecodeError),
    /// Redo refuses.
    #[error("{0}")]
    Redo(#[from] RedoError),
    /// Another page than PostgreSQL's.
    #[error("page differs from PostgreSQL's at {first_offset}")]
    Different {
        /// The first byte.
        first_offset: usize,
    },
    /// Applied again, the record changed the page again, though the page carries its LSN.
    #[error("the second application changed the page")]
    NotIdempotent,
}

impl RedoCase {
    /// Applies the record and looks at what comes of it: the image, and that a second application of a record that stamps changes nothing.
    pub fn check(&self) -> Result<Box<Page>, CaseError> {
        let record = DecodedRecord::decode(self.facts.version, self.end_lsn, self.end_lsn, self.record.clone())?;
        let mut page = self.page.clone().unwrap_or_else(|| Box::new(ZERO_PAGE));
        redo(&mut page, self.address, &record, self.facts)?;
        if page_lsn(&page) == Some(self.end_lsn) {
            let once = page.clone();
            // A record that makes the page anew does so again, from the same bytes.
            redo(&mut page, self.address, &record, self.facts)?;
            if page != once {
                return Err(CaseError::NotIdempotent);
            }
        }
        if let Some(image) = &self.image {
            let PageAddress { fork, block_no, .. } = self.address;
            let kind = classify(image, fork, block_no);
            if let Equality::Different { first_offset } = equal_after_masking(&page, image, kind, block_no)
                && !differs_in_gist_flag_alone(&page, image)
            {
                return Err(CaseError::Different { first_offset });
            }
        }
        Ok(page)
    }

    /// Appends the bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut flags = if self.facts.hint_bits_logged { HINT_BITS_LOGGED } else { 0 };
        flags |= if self.page.is_some() { HAS_PAGE } else { 0 };
        flags |= if self.image.is_some() { HAS_IMAGE } else { 0 };
        let PageAddress { rel, fork, block_no } = self.address;
        out.extend_from_slice(&[self.facts.version.major() as u8, flags, fork as u8, 0]);
        for number in [rel.spc_oid, rel.db_oid, rel.rel_number, block_no] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.end_lsn.as_u64().to_le_bytes());
        out.extend_from_slice(&(self.record.len() as u32).to_le_bytes()); // `xl_tot_len` is a u32.
        out.extend_from_slice(&self.record);
        for page in [&self.page, &self.image].into_iter().flatten() {
            out.extend_from_slice(&page[..]);
        }
    }

    /// Takes a case from the start of `input`. Errors: there is none.
    pub fn take(input: &mut Bytes) -> Result<Self, CaseError> {
        Self::try_take(input).ok_or(CaseError::NotACase)
    }

    fn try_take(input: &mut Bytes) -> Option<Self> {
        let version = PgVersion::try_from(u32::from(input.try_get_u8().ok()?)).ok()?;
        let flags = input.try_get_u8().ok()?;
        let fork = ForkNumber::from_number(input.try_get_u8().ok()?)?;
        input.try_get_u8().ok()?;
        let mut number = || input.try_get_u32_le().ok();
        let rel = RelTag { spc_oid: number()?, db_oid: number()?, rel_number: number()? };
        let block_no = number()?;
        let end_lsn = Lsn::new(input.try_get_u64_le().ok()?);
        let record_len = input.try_get_u32_le().ok()? as usize;
        if input.len() < record_len {
            return None;
        }
        let record = input.split_to(record_len);
        let mut page = |is_there: bool| match is_there {
            true => Some(Some(take_page(input)?)),
            false => Some(None),
        };
        Some(RedoCase {
            facts: ClusterFacts { version, hint_bits_logged: flags & HINT_BITS_LOGGED != 0 },
            address: PageAddress { rel, fork, block_no },
            end_lsn,
            record,
            page: page(flags & HAS_PAGE != 0)?,
            image: page(flags & HAS_IMAGE != 0)?,
        })
    }
}

fn take_page(input: &mut Bytes) -> Option<Box<Page>> {
    if input.len() < BLCKSZ {
        return None;
    }
    let mut page = Box::new(ZERO_PAGE);
    page.copy_from_slice(&input.split_to(BLCKSZ));
    Some(page)
}

/// Any bytes as a case for the resource manager `rmid`: for fuzzing. What must hold is that nothing panics, and that a record is applied once.
///
/// Every block that the record names is tried with the same page, whatever page the case is of.
pub fn fuzz(rmid: u8, data: &[u8]) {
    /// Where `xl_rmid` stands in a record. PG: xlogrecord.h, XLogRecord.
    const RMID_AT: usize = 17;
    let Ok(mut case) = RedoCase::take(&mut Bytes::copy_from_slice(data)) else { return };
    let mut record = case.record.to_vec();
    // What a fuzzer would only find by luck: the length, and whose record it is.
    let total_len = (record.len() as u32).to_le_bytes();
    let Some(len_field) = record.get_mut(..4) else { return };
    len_field.copy_from_slice(&total_len);
    let Some(rmid_field) = record.get_mut(RMID_AT) else { return };
    *rmid_field = rmid;
    case.record = record.into();
    case.image = None;
    let Ok(decoded) = DecodedRecord::decode(case.facts.version, case.end_lsn, case.end_lsn, case.record.clone()) else {
        return;
    };
    for block in &decoded.blocks {
        case.address = PageAddress { rel: block.rel, fork: block.fork, block_no: block.block_no };
        assert!(case.check() != Err(CaseError::NotIdempotent), "applied twice: {:?}", case.address);
    }
}

#[cfg(test)]
mod tests {
    //! The bytes; real cases are in `tests/redo_cases`.

    use super::*;

    #[test]
    fn encodes_and_decodes() {
        let case = RedoCase {
            facts: ClusterFacts { version: PgVersion::V17, hint_bits_logged: true },
            address: PageAddress {
                rel: RelTag { spc_oid: 1, db_oid: 2, rel_number: 3 },
                fork: ForkNumber::Vm,
                block_no: 4,
            },
            end_lsn: Lsn::new(5),
            record: Bytes::from_static(b"record"),
            page: Some(Box::new([1; BLCKSZ])),
            image: None,
        };
        let mut bytes = Vec::new();
        case.encode(&mut bytes);
        for cut in 0..bytes.len() {
            assert_eq!(RedoCase::take(&mut Bytes::copy_from_slice(&bytes[..cut])), Err(CaseError::NotACase), "{cut}");
        }
        assert_eq!(RedoCase::take(&mut bytes.into()), Ok(case));
    }
}
