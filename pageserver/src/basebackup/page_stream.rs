//! Pages in a given order, read a little ahead by threads of their own.
//!
//! - The order is that of the keys; who takes pages need not know where batches end.
//! - At most [`BATCHES_AHEAD`] batches wait: about 8 MiB.
//! - Each page's LSN is compared with that of the backup before it is given out.

use std::collections::VecDeque;
use std::thread::Scope;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use keyenc::Key;
use postgres_ffi::Lsn;
use postgres_ffi::page::{Page, page_lsn};

use super::BackupError;
use crate::timeline::Timeline;

/// Pages that a thread reads at once: 1 MiB.
const BATCH_PAGES: usize = 128;
/// Batches that are being read or wait to be taken.
const BATCHES_AHEAD: usize = 8;
/// Threads that read.
const READERS: usize = 4;

type Batch = Vec<Result<Bytes, BackupError>>;

struct Task {
    keys: Vec<Key>,
    answer: Sender<Batch>,
}

/// Gives pages one by one.
pub(super) struct PageStream<'a> {
    keys: Box<dyn Iterator<Item = Key> + 'a>,
    tasks: Sender<Task>,
    ahead: VecDeque<Receiver<Batch>>,
    current: std::vec::IntoIter<Result<Bytes, BackupError>>,
}

impl<'a> PageStream<'a> {
    /// Reads the pages of `keys` as of `branch_lsn` with threads of `scope`, which end when the stream is dropped.
    pub(super) fn start<'scope, 'env>(
        scope: &'scope Scope<'scope, 'env>,
        timeline: &'env Timeline,
        branch_lsn: Lsn,
        keys: impl Iterator<Item = Key> + 'a,
    ) -> Result<Self, BackupError> {
        let (tasks, taken) = unbounded::<Task>();
        for _ in 0..READERS {
            let taken = taken.clone();
            let reader = std::thread::Builder::new().name("base backup".to_owned());
            reader
                .spawn_scoped(scope, move || {
                    for task in taken {
                        // Nobody takes it any more: the backup has ended.
                        let _ = task.answer.send(read_batch(timeline, branch_lsn, &task.keys));
                    }
                })
                .map_err(BackupError::Thread)?;
        }
        let mut stream =
            PageStream { keys: Box::new(keys), tasks, ahead: VecDeque::new(), current: Vec::new().into_iter() };
        while stream.ahead.len() < BATCHES_AHEAD && stream.ask() {}
        Ok(stream)
    }

    /// The next page, 8,192 bytes. Errors: it cannot be read, or is newer than the backup. Requires: there is one.
    pub(super) fn next_page(&mut self) -> Result<Bytes, BackupError> {
        loop {
            if let Some(page) = self.current.next() {
                return page;
            }
            let ended = || BackupError::Thread(std::io::ErrorKind::BrokenPipe.into());
            let batch = self.ahead.pop_front().ok_or_else(ended)?;
            self.ask();
            self.current = batch.recv().map_err(|_| ended())?.into_iter();
        }
    }

    /// Hands the next batch to the threads. False: there are no more keys.
    fn ask(&mut self) -> bool {
        let keys: Vec<Key> = self.keys.by_ref().take(BATCH_PAGES).collect();
        if keys.is_empty() {
            return false;
        }
        let (answer, batch) = bounded(1);
        self.ahead.push_back(batch);
        self.tasks.send(Task { keys, answer }).is_ok()
    }
}

fn read_batch(timeline: &Timeline, branch_lsn: Lsn, keys: &[Key]) -> Batch {
    let requests: Vec<(Key, Lsn)> = keys.iter().map(|key| (*key, branch_lsn)).collect();
    let pages = timeline.get_pages_at_lsn(&requests);
    keys.iter().zip(pages).map(|(key, page)| checked(*key, branch_lsn, page?)).collect()
}

/// Refuses a relation's page that is newer than the backup. Pages of SLRUs have no LSN.
fn checked(key: Key, branch_lsn: Lsn, page: Bytes) -> Result<Bytes, BackupError> {
    let bytes: &Page = page[..].try_into().map_err(|_| BackupError::Damaged { key })?;
    match page_lsn(bytes) {
        Some(page_lsn) if key.is_block() && page_lsn > branch_lsn => {
            Err(BackupError::PageAhead { key, page_lsn, branch_lsn })
        }
        _ => Ok(page),
    }
}

#[cfg(test)]
mod tests {
    use postgres_ffi::page::{ZERO_PAGE, set_page_lsn};
    use postgres_ffi::{ForkNumber, RelTag};

    use super::*;

    #[test]
    fn a_page_that_is_newer_is_refused() {
        let key = Key::block(RelTag { spc_oid: 1, db_oid: 2, rel_number: 3 }, ForkNumber::Main, 0);
        let mut page = ZERO_PAGE;
        set_page_lsn(&mut page, Lsn::new(0x1000));
        let page = Bytes::copy_from_slice(&page);
        assert!(checked(key, Lsn::new(0x1000), page.clone()).is_ok());
        let refused = checked(key, Lsn::new(0xFF8), page.clone());
        assert!(matches!(refused, Err(BackupError::PageAhead { .. })), "{refused:?}");
        assert!(matches!(checked(key, Lsn::MAX, page.slice(1..)), Err(BackupError::Damaged { .. })));
    }
}
