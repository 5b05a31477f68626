//! GetPage@LSN: gather, redo, remember.

use bytes::{Bytes, BytesMut};
use keyenc::{Key, Kind, Object};
use postgres_ffi::page::{self, Page, ZERO_PAGE};
use postgres_ffi::{BLCKSZ, BlockNumber, ForkNumber, Lsn, RelTag, SlruKind};
use std::sync::Arc;

use super::{ReadError, Timeline};
use crate::redo::{Chain, PendingPage};
use crate::store::Gathered;

/// A page that is there, or one that redo is still making.
enum Begun {
    Done(Result<Bytes, ReadError>),
    Redo { made: Made, pending: PendingPage },
}

/// What redo makes a page of.
struct Made {
    key: Key,
    request_lsn: Lsn,
    version_lsn: Lsn,
    record_count: usize,
}

/// The size of the fork that was asked for last: neighbours in a batch mostly ask for the same.
pub(super) type SizeSeen = Option<((RelTag, ForkNumber, Lsn), Option<BlockNumber>)>;

impl Timeline {
    /// The page `key` as of `request_lsn`: 8,192 bytes, with its checksum where the cluster has them.
    /// Requires: `request_lsn <= last_record_lsn`; wait with [`Timeline::wait_lsn`] first.
    /// Errors: the fork or SLRU segment does not exist there; the LSN is out of range; the page cannot be proven right.
    pub fn get_page_at_lsn(&self, key: Key, request_lsn: Lsn) -> Result<Bytes, ReadError> {
        let begun = self.begin_page(&key, request_lsn, &mut None);
        self.finish_page(begun)
    }

    /// As [`Timeline::get_page_at_lsn`] for many, answers in order. What goes to the walredo threads is made there at the same time.
    pub fn get_pages_at_lsn(&self, requests: &[(Key, Lsn)]) -> Vec<Result<Bytes, ReadError>> {
        let mut size_seen = None;
        let begun: Vec<Begun> =
            requests.iter().map(|(key, request_lsn)| self.begin_page(key, *request_lsn, &mut size_seen)).collect();
        begun.into_iter().map(|begun| self.finish_page(begun)).collect()
    }

    /// The pages of `keys` as of `request_lsn` for ingest, which may read what nobody else can yet. Existence is not checked.
    pub(super) fn pages_unchecked(&self, keys: &[Key], request_lsn: Lsn) -> Result<Vec<Bytes>, ReadError> {
        let begun: Vec<Begun> =
            keys.iter().map(|key| self.begin_existing_page(key, request_lsn)).collect::<Result<_, _>>()?;
        begun.into_iter().map(|begun| self.finish_page(begun)).collect()
    }

    /// The pages of `keys` as of `request_lsn`, past the caches (the store's too): for work over whole clusters, which nobody reads again soon.
    /// Existence is not checked.
    pub(super) fn pages_uncached(&self, keys: &[Key], request_lsn: Lsn) -> Result<Vec<Bytes>, ReadError> {
        self.pages_cold(keys, request_lsn).into_iter().collect()
    }

    /// As [`Timeline::pages_uncached`], an answer for each page.
    pub(crate) fn pages_cold(&self, keys: &[Key], request_lsn: Lsn) -> Vec<Result<Bytes, ReadError>> {
        let begin = |key: &Key| self.begin_gathered(key, request_lsn, self.gather_cold(key, request_lsn)?);
        let begun: Vec<Result<Begun, ReadError>> = keys.iter().map(begin).collect();
        begun.into_iter().map(|begun| self.finish_made(begun?).map(|(page, _)| page)).collect()
    }

    fn begin_page(&self, key: &Key, request_lsn: Lsn, size_seen: &mut SizeSeen) -> Begun {
        let mut begin = || {
            self.check_readable(request_lsn)?;
            match key.object()? {
                Object::RelationBlock { rel, fork, block_no } => {
                    if self.block_exists(rel, fork, block_no, request_lsn, size_seen)? {
                        self.begin_existing_page(key, request_lsn)
                    } else {
                        Ok(Begun::Done(Ok(Bytes::from_static(&ZERO_PAGE))))
                    }
                }
                Object::SlruPage { kind, page_no } => {
                    self.check_slru_page_exists(key, kind, page_no, request_lsn)?;
                    self.begin_existing_page(key, request_lsn)
                }
                _ => Err(ReadError::Missing { key: *key, request_lsn }),
            }
        };
        begin().unwrap_or_else(|error| Begun::Done(Err(error)))
    }

    /// False for a block behind the end of its fork. Errors: the fork does not exist.
    pub(super) fn block_exists(
        &self,
        rel: RelTag,
        fork: ForkNumber,
        block_no: BlockNumber,
        request_lsn: Lsn,
        size_seen: &mut SizeSeen,
    ) -> Result<bool, ReadError> {
        let asked = (rel, fork, request_lsn);
        let block_count = match size_seen {
            Some((seen, block_count)) if *seen == asked => *block_count,
            _ => {
                let block_count = self.count_object(Object::RelationSize { rel, fork }, request_lsn)?;
                *size_seen = Some((asked, block_count));
                block_count
            }
        };
        match block_count {
            Some(block_count) => Ok(block_no < block_count),
            // Both maps come into being at their first use; before that they read as zeroes.
            None if matches!(fork, ForkNumber::Fsm | ForkNumber::Vm) => Ok(false),
            None => Err(ReadError::RelationMissing { rel, fork, request_lsn }),
        }
    }

    pub(super) fn check_slru_page_exists(
        &self,
        key: &Key,
        kind: SlruKind,
        page_no: u32,
        request_lsn: Lsn,
    ) -> Result<(), ReadError> {
        let pages_per_segment = postgres_ffi::rel::SLRU_PAGES_PER_SEGMENT;
        let segment_no = page_no / pages_per_segment;
        match self.count_object(Object::SlruSegment { kind, segment_no }, request_lsn)? {
            Some(page_count) if page_no % pages_per_segment < page_count => Ok(()),
            _ => Err(ReadError::Missing { key: *key, request_lsn }),
        }
    }

    fn begin_existing_page(&self, key: &Key, request_lsn: Lsn) -> Result<Begun, ReadError> {
        let unchanged = |after, through| self.is_unchanged(key, after, through);
        if let Some(known) = self.cache.get(self.no, key, request_lsn, unchanged) {
            return Ok(Begun::Done(known.ok_or(ReadError::Missing { key: *key, request_lsn })));
        }
        let found = self.gather(key, request_lsn)?;
        self.redo.count_read_chain(found.delta_count());
        let image_lsn = found.versions.first().filter(|(_, kind, _)| *kind == Kind::Image).map(|(lsn, ..)| *lsn);
        let begun = self.begin_gathered(key, request_lsn, found)?;
        if let (Begun::Done(Ok(page)), Some(version_lsn)) = (&begun, image_lsn) {
            self.cache.insert(self.no, key, Some(version_lsn), request_lsn, Some(page.clone()));
        }
        Ok(begun)
    }

    /// The page that `found`, its versions, make.
    fn begin_gathered(&self, key: &Key, request_lsn: Lsn, found: Gathered) -> Result<Begun, ReadError> {
        let Some((version_lsn, kind, value)) = found.versions.first() else {
            // Within the fork, but no record ever touched it: the primary extended the file with zeroes.
            return Ok(Begun::Done(Ok(Bytes::from_static(&ZERO_PAGE))));
        };
        let version_lsn = *version_lsn;
        match kind {
            Kind::Image => Ok(Begun::Done(Ok(self.finished(key, version_lsn, value.clone())?))),
            Kind::Tombstone => Err(ReadError::Missing { key: *key, request_lsn }),
            Kind::Delta | Kind::InitDelta => {
                let chain = self.chain(key, found)?;
                let record_count = chain.deltas.len();
                let pending = self.redo.submit(chain);
                let made = Made { key: *key, request_lsn, version_lsn, record_count };
                Ok(Begun::Redo { made, pending })
            }
        }
    }

    fn finish_page(&self, begun: Begun) -> Result<Bytes, ReadError> {
        let (page, made) = self.finish_made(begun)?;
        if let Some(Made { key, request_lsn, version_lsn, record_count }) = made {
            self.cache.insert(self.no, &key, Some(version_lsn), request_lsn, Some(page.clone()));
            if record_count >= self.cache_back_records_min {
                self.cache_back(key, version_lsn, page.clone());
            }
        }
        Ok(page)
    }

    /// The page, and what redo made it of if it did.
    fn finish_made(&self, begun: Begun) -> Result<(Bytes, Option<Made>), ReadError> {
        match begun {
            Begun::Done(answer) => Ok((answer?, None)),
            Begun::Redo { made: made @ Made { key, request_lsn, version_lsn, .. }, pending } => {
                let page =
                    pending.wait().map_err(|source| ReadError::Redo { key, request_lsn, source: Arc::new(source) })?;
                Ok((self.finished(&key, version_lsn, page)?, Some(made)))
            }
        }
    }

    /// Turns what was gathered, newest first, into base and records, oldest first.
    pub(super) fn chain(&self, key: &Key, found: Gathered) -> Result<Chain, ReadError> {
        let mut versions = found.versions;
        let newest_lsn = versions.first().map_or(Lsn::ZERO, |(lsn, _, _)| *lsn);
        let base = match versions.last() {
            Some((_, Kind::Image, _)) => versions.pop().map(|(lsn, _, page)| (lsn, page)),
            Some((lsn, Kind::Tombstone, _)) => {
                return Err(ReadError::Damaged { key: *key, version_lsn: *lsn, reason: "records behind a tombstone" });
            }
            Some((_, Kind::InitDelta, _)) => None,
            // The maps are read as zeroes where nothing was written, by PostgreSQL too (RBM_ZERO_ON_ERROR).
            Some((_, Kind::Delta, _)) if reads_missing_as_zeroes(key)? => None,
            Some((lsn, Kind::Delta, _)) => return Err(ReadError::BaseMissing { key: *key, oldest_lsn: *lsn }),
            None => None,
        };
        let deltas = versions.into_iter().rev().map(|(lsn, _, delta)| (lsn, delta)).collect();
        Ok(Chain { timeline: self.no, key: *key, version_lsn: newest_lsn, base, deltas })
    }

    /// A page as it is sent: whole, with its checksum. An empty value is a page of zeroes.
    pub(super) fn finished(&self, key: &Key, version_lsn: Lsn, value: Bytes) -> Result<Bytes, ReadError> {
        if value.is_empty() {
            return Ok(Bytes::from_static(&ZERO_PAGE));
        }
        if value.len() != BLCKSZ {
            return Err(ReadError::Damaged { key: *key, version_lsn, reason: "a page that has not 8,192 bytes" });
        }
        let Object::RelationBlock { block_no, .. } = key.object()? else { return Ok(value) };
        if !self.data_checksums {
            return Ok(value);
        }
        let mut page = value.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        let bytes: &mut Page = page.as_mut().try_into().expect("the length was checked above");
        page::set_checksum(bytes, block_no);
        Ok(page.freeze())
    }
}

/// True for the forks whose missing pages PostgreSQL itself takes for zeroes.
fn reads_missing_as_zeroes(key: &Key) -> Result<bool, ReadError> {
    Ok(matches!(key.object()?, Object::RelationBlock { fork: ForkNumber::Fsm | ForkNumber::Vm, .. }))
}
