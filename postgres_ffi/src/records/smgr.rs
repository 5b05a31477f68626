//! Relation files: create, truncate. PG 14-18: src/include/catalog/storage_xlog.h.

use super::fields::{Fields, RecordError};
use crate::{BlockNumber, ForkNumber, RelTag};

/// XLOG_SMGR_CREATE
pub const CREATE: u8 = 0x10;
/// XLOG_SMGR_TRUNCATE
pub const TRUNCATE: u8 = 0x20;

/// Flags of a truncation: which forks. PG: SMGR_TRUNCATE_HEAP, _VM, _FSM.
const TRUNCATE_HEAP: u32 = 1;
const TRUNCATE_VM: u32 = 2;
const TRUNCATE_FSM: u32 = 4;

/// Body of CREATE: a fork's file comes into being. PG: xl_smgr_create.
pub fn parse_create(main_data: &[u8]) -> Result<(RelTag, ForkNumber), RecordError> {
    let mut fields = Fields::new("xl_smgr_create", main_data);
    let rel = fields.rel()?;
    let number = fields.i32()?;
    let fork = u8::try_from(number).ok().and_then(ForkNumber::from_number);
    Ok((rel, fork.ok_or_else(|| fields.impossible("forkNum", number.into()))?))
}

/// Body of TRUNCATE. PG: xl_smgr_truncate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncate {
    /// The relation.
    pub rel: RelTag,
    /// Blocks of the main fork that remain.
    pub block_count: BlockNumber,
    /// The main fork is cut.
    pub main: bool,
    /// The visibility map is cut to what `block_count` heap blocks need.
    pub vm: bool,
    /// The free space map is cut to what `block_count` heap blocks need.
    pub fsm: bool,
}

impl Truncate {
    /// Reads the body.
    pub fn parse(main_data: &[u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::new("xl_smgr_truncate", main_data);
        let (block_count, rel, flags) = (fields.u32()?, fields.rel()?, fields.u32()?);
        if flags & !(TRUNCATE_HEAP | TRUNCATE_VM | TRUNCATE_FSM) != 0 {
            return Err(fields.impossible("flags", flags.into()));
        }
        Ok(Truncate {
            rel,
            block_count,
            main: flags & TRUNCATE_HEAP != 0,
            vm: flags & TRUNCATE_VM != 0,
            fsm: flags & TRUNCATE_FSM != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    //! Bodies made by hand.

    use super::*;
    use crate::records::fields::Body;

    const REL: RelTag = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 };

    #[test]
    fn create_names_a_fork() {
        let body = Body::default().rel(REL).u32(3).0;
        assert_eq!(parse_create(&body), Ok((REL, ForkNumber::Init)));
        for bad in [4, u32::MAX] {
            assert!(parse_create(&Body::default().rel(REL).u32(bad).0).is_err());
        }
        assert!(parse_create(&body[..15]).is_err());
    }

    #[test]
    fn truncate_names_forks_by_flags() {
        let parsed = Truncate::parse(&Body::default().u32(7).rel(REL).u32(5).0).unwrap();
        assert_eq!(parsed, Truncate { rel: REL, block_count: 7, main: true, vm: false, fsm: true });
        assert!(Truncate::parse(&Body::default().u32(7).rel(REL).u32(8).0).is_err());
    }
}
