//! One page on its way from base to result.
//!
//! A chain is split into runs: deltas of ours are applied here, one after the other; PostgreSQL records that follow each
//! other go to the engine as one request, and the page that comes back is what the next run starts from.

use bytes::Bytes;
use keyenc::Object;
use postgres_ffi::page::{Page, ZERO_PAGE};
use postgres_ffi::{BLCKSZ, BlockNumber, ForkNumber, Lsn, RelTag};

use super::{Chain, Engine, EngineRequest, RedoError};
use crate::delta::{self, Delta};

/// Where a chain has got to.
pub struct Making {
    chain: Chain,
    /// The page so far, while nobody has changed it. At most one of the two is there; neither: zeroes.
    shared: Option<Bytes>,
    /// The page so far, ours to change.
    owned: Option<Box<Page>>,
    /// Deltas before this one are in the page.
    next: usize,
    counts: DeltaCounts,
}

/// Deltas that were applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeltaCounts {
    /// PostgreSQL records.
    pub postgres: u64,
    /// Deltas of ours.
    pub ours: u64,
}

/// What is to be done next.
pub enum Step {
    /// The engine must answer this; its page goes to [`Making::resume`].
    Ask(EngineRequest),
    /// All deltas are applied: the page.
    Done(Bytes),
}

impl Making {
    /// Errors: the chain is not one, see [`RedoError::BadChain`].
    pub fn new(chain: Chain) -> Result<Self, RedoError> {
        let bad = |reason: &str| Err(bad_chain(&chain, reason.to_owned()));
        let base_lsn = chain.base.as_ref().map_or(Lsn::ZERO, |(lsn, _)| *lsn);
        let lsns = || chain.deltas.iter().map(|(lsn, _)| *lsn);
        if std::iter::once(base_lsn).chain(lsns()).zip(lsns()).any(|(earlier, later)| earlier > later) {
            return bad("deltas are not in order");
        }
        let shared = match &chain.base {
            Some((_, page)) if page.len() == BLCKSZ => Some(page.clone()),
            Some((_, page)) if !page.is_empty() => return bad("base has not the length of a page"),
            _ => None,
        };
        Ok(Making { chain, shared, owned: None, next: 0, counts: DeltaCounts::default() })
    }

    /// Applies deltas of ours up to the next PostgreSQL record or the end.
    pub fn advance(&mut self) -> Result<Step, RedoError> {
        while let Some((lsn, value)) = self.chain.deltas.get(self.next) {
            if is_postgres(value) {
                return self.ask();
            }
            let (lsn, value) = (*lsn, value.clone());
            let applied = Delta::decode(&value).and_then(|delta| delta::apply(&delta, self.page_mut(), lsn));
            applied.map_err(|error| bad_chain(&self.chain, format!("delta at {lsn}: {error}")))?;
            self.next += 1;
            self.counts.ours += 1;
        }
        Ok(Step::Done(self.take_page().unwrap_or_else(|| Bytes::from_static(&ZERO_PAGE))))
    }

    /// Goes on with the page that the engine made of the last [`Step::Ask`].
    pub fn resume(&mut self, page: Box<Page>) {
        self.owned = Some(page);
        while self.chain.deltas.get(self.next).is_some_and(|(_, value)| is_postgres(value)) {
            self.next += 1;
            self.counts.postgres += 1;
        }
    }

    /// What was applied so far.
    pub fn counts(&self) -> DeltaCounts {
        self.counts
    }

    fn ask(&mut self) -> Result<Step, RedoError> {
        let (rel, fork, block_no) = relation_block(&self.chain)?;
        let run = self.chain.deltas[self.next..].iter().take_while(|(_, value)| is_postgres(value));
        let records = run.map(|(lsn, value)| (*lsn, value.slice(1..))).collect();
        Ok(Step::Ask(EngineRequest { rel, fork, block_no, base: self.take_page(), records }))
    }

    /// The page so far, without a copy; `None` for zeroes.
    fn take_page(&mut self) -> Option<Bytes> {
        let shared = self.shared.take();
        self.owned.take().map(|page| Bytes::from(page as Box<[u8]>)).or(shared)
    }

    fn page_mut(&mut self) -> &mut Page {
        let shared = self.shared.take();
        self.owned.get_or_insert_with(|| {
            let mut page = Box::new(ZERO_PAGE);
            if let Some(shared) = shared {
                page.copy_from_slice(&shared);
            }
            page
        })
    }
}

/// True when redo of the chain waits for nobody: deltas of ours, and records that `engine` computes.
pub fn is_computed(chain: &Chain, engine: &dyn Engine) -> bool {
    chain.deltas.iter().all(|(_, value)| !is_postgres(value) || engine.computes(&value[1..]))
}

fn is_postgres(value: &Bytes) -> bool {
    value.first() == Some(&delta::POSTGRES_TAG)
}

fn relation_block(chain: &Chain) -> Result<(RelTag, ForkNumber, BlockNumber), RedoError> {
    match chain.key.object() {
        Ok(Object::RelationBlock { rel, fork, block_no }) => Ok((rel, fork, block_no)),
        _ => Err(bad_chain(chain, "PostgreSQL record on what is no relation block".to_owned())),
    }
}

fn bad_chain(chain: &Chain, reason: String) -> RedoError {
    RedoError::BadChain { key: chain.key, version_lsn: chain.version_lsn, reason }
}
