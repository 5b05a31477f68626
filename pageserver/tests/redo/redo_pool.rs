//! Walredo threads in front of a real PostgreSQL: many requesters, few threads, each page once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use keyenc::{Key, TimelineNo};
use pageserver::delta::POSTGRES_TAG;
use pageserver::redo::process::ProcessEngine;
use pageserver::redo::{Chain, Engine, EngineReport, EngineRequest, NoEngine, RedoConfig, RedoError, WalRedo};
use postgres_ffi::page::Page;

use crate::cluster::heap_requests;

/// The chain that the store would give for `request`.
fn chain(request: &EngineRequest) -> Chain {
    let delta = |record: &Bytes| [&[POSTGRES_TAG], &record[..]].concat().into();
    Chain {
        timeline: TimelineNo(1),
        key: Key::block(request.rel, request.fork, request.block_no),
        version_lsn: request.records.last().unwrap().0,
        base: None,
        deltas: request.records.iter().map(|(lsn, record)| (*lsn, delta(record))).collect(),
    }
}

/// The engine of the test, and how often it was asked for a page.
struct Counting {
    engine: ProcessEngine,
    pages: AtomicUsize,
}

impl Engine for Counting {
    fn redo(&self, requests: &[EngineRequest]) -> Vec<Result<Box<Page>, RedoError>> {
        self.pages.fetch_add(requests.len(), Ordering::Relaxed);
        self.engine.redo(requests)
    }

    fn report(&self) -> EngineReport {
        self.engine.report()
    }
}

#[test]
fn thousand_requesters_and_one_thread_come_to_an_end() {
    let shared = heap_requests();
    let (cluster, requests) = &*shared;
    let expected = cluster.engine().redo(requests);
    let config = RedoConfig { threads: 1, queue_len: 16, ..RedoConfig::default() };
    let engine = Arc::new(cluster.engine());
    let redo = WalRedo::start(&config, engine.clone());
    std::thread::scope(|scope| {
        for no in 0..1000 {
            let (redo, request, expected) = (&redo, &requests[no % requests.len()], &expected[no % requests.len()]);
            scope.spawn(move || {
                let page = redo.submit(chain(request)).wait().unwrap();
                assert_eq!(page[..], expected.as_ref().unwrap()[..]);
            });
        }
    });
    let stats = redo.stats();
    assert_eq!((stats.requests, stats.failed, stats.queue_len), (1000, 0, 0));
    assert_eq!(stats.pages + stats.coalesced, 1000);
    assert_eq!(engine.stats().starts, 1);
}

#[test]
fn page_that_hundred_ask_for_at_once_is_made_once() {
    let shared = heap_requests();
    let (cluster, requests) = &*shared;
    let engine = Arc::new(Counting { engine: cluster.engine(), pages: AtomicUsize::new(0) });
    let redo = WalRedo::start(&RedoConfig { threads: 1, ..RedoConfig::default() }, engine.clone());
    // While the process starts, which takes much longer than to ask a hundred times.
    let pending: Vec<_> = (0..100).map(|_| redo.submit(chain(&requests[0]))).collect();
    let pages: Vec<_> = pending.into_iter().map(|pending| pending.wait().unwrap()).collect();
    assert!(pages.iter().all(|page| *page == pages[0]));
    assert_eq!(engine.pages.load(Ordering::Relaxed), 1);
    assert_eq!((redo.stats().coalesced, redo.stats().pages), (99, 1));
    // Asked again later, it is made again: what is kept is kept elsewhere.
    assert_eq!(redo.submit(chain(&requests[0])).wait().unwrap(), pages[0]);
    assert_eq!(engine.pages.load(Ordering::Relaxed), 2);
}

#[test]
fn backlog_is_worked_off_when_nobody_asks() {
    let shared = heap_requests();
    let (cluster, requests) = &*shared;
    let expected = cluster.engine().redo(requests);
    let redo = WalRedo::start(&RedoConfig::default(), Arc::new(cluster.engine()));
    let (sender, receiver) = crossbeam_channel::unbounded();
    for (no, request) in requests.iter().enumerate() {
        let sender = sender.clone();
        assert!(redo.offer_backlog(chain(request), Box::new(move |page| sender.send((no, page)).unwrap())));
    }
    for _ in requests {
        let (no, page) = receiver.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
        assert_eq!(page.unwrap()[..], expected[no].as_ref().unwrap()[..]);
    }
    assert_eq!(redo.stats().backlog_made, requests.len() as u64);
}

#[test]
fn server_without_an_engine_says_so_for_each_page() {
    let shared = heap_requests();
    let redo = WalRedo::start(&RedoConfig::default(), Arc::new(NoEngine));
    for request in &shared.1 {
        let error = redo.submit(chain(request)).wait().unwrap_err();
        let EngineRequest { rel, fork, block_no, .. } = *request;
        assert_eq!(error, RedoError::NoEngine { rel, fork, block_no });
    }
}
