//! The threads with engines that panic, lose answers or take their time, and chains of our own deltas.

use keyenc::Object;
use postgres_ffi::page::{PD_UPPER, Page, ZERO_PAGE, set_page_lsn};
use postgres_ffi::slru::XidStatus;
use postgres_ffi::{BLCKSZ, ForkNumber, RelTag, SlruKind, slru};

use super::*;
use crate::delta::{Delta, Index, POSTGRES_TAG};
use crate::redo::{EngineRequest, RedoErrorKind};

/// Answers each request with a page that carries the LSN of its last record, unless a record says otherwise.
#[derive(Default)]
struct Scripted {
    /// Whoever asks may make the page.
    computes: bool,
    /// A slow record waits for a word from there, or until nobody can say one any more.
    gate: Option<Receiver<()>>,
    /// A slow record has come.
    has_slow: AtomicBool,
}

impl Engine for Scripted {
    fn redo(&self, requests: &[EngineRequest]) -> Vec<Result<Box<Page>, RedoError>> {
        let mut answers = Vec::new();
        for request in requests {
            let (lsn, record) = request.records.last().unwrap();
            match &record[..] {
                b"panic" => panic!("as the test wants it"),
                b"lose" => return answers,
                b"slow" => {
                    self.has_slow.store(true, Ordering::SeqCst);
                    _ = self.gate.as_ref().expect("a gate").recv();
                }
                _ => {}
            }
            let mut page = Box::new(ZERO_PAGE);
            if let Some(base) = &request.base {
                page.copy_from_slice(base);
            }
            page[PD_UPPER + 1] = 0x20; // Not a new page.
            page[100] += request.records.len() as u8;
            set_page_lsn(&mut page, *lsn);
            answers.push(Ok(page));
        }
        answers
    }

    fn computes(&self, _record: &[u8]) -> bool {
        self.computes
    }

    fn report(&self) -> EngineReport {
        EngineReport::default()
    }
}

fn start(threads: usize) -> Arc<WalRedo> {
    WalRedo::start(&RedoConfig { threads, ..RedoConfig::default() }, Arc::new(Scripted::default()))
}

/// With a gate for slow records, which opens for all when it is dropped.
fn start_gated(config: &RedoConfig, computes: bool) -> (Arc<WalRedo>, Arc<Scripted>, Sender<()>) {
    let (gate, waits) = bounded(1);
    let engine = Arc::new(Scripted { computes, gate: Some(waits), has_slow: AtomicBool::new(false) });
    (WalRedo::start(config, engine.clone()), engine, gate)
}

fn spin_until(is_so: impl Fn() -> bool) {
    while !is_so() {
        std::thread::yield_now();
    }
}

fn chain(block_no: u32, records: &[&[u8]]) -> Chain {
    let rel = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 };
    let delta = |record: &&[u8]| Bytes::from([&[POSTGRES_TAG], *record].concat());
    let deltas: Vec<_> = (1..).map(Lsn::new).zip(records.iter().map(delta)).collect();
    let version_lsn = deltas.last().map_or(Lsn::ZERO, |(lsn, _)| *lsn);
    Chain { timeline: TimelineNo(1), key: Key::block(rel, ForkNumber::Main, block_no), version_lsn, base: None, deltas }
}

fn clog_chain(commits: u16) -> Chain {
    let commit = |index: u16| {
        let indexes = [Index::new(index)];
        let mut value = Vec::new();
        Delta::ClogStatus { status: XidStatus::Committed, indexes: &indexes }.encode(&mut value);
        (Lsn::new(u64::from(index) + 1), Bytes::from(value))
    };
    let deltas: Vec<_> = (0..commits).map(commit).collect();
    Chain {
        timeline: TimelineNo(1),
        key: Object::SlruPage { kind: SlruKind::Clog, page_no: 0 }.into(),
        version_lsn: Lsn::new(u64::from(commits)),
        base: Some((Lsn::ZERO, Bytes::new())),
        deltas,
    }
}

#[test]
fn panic_of_an_engine_is_an_error_for_its_requests_and_the_thread_lives() {
    let redo = start(1);
    for _ in 0..3 {
        let error = redo.submit(chain(1, &[b"panic"])).wait().unwrap_err();
        assert_eq!(error.kind(), RedoErrorKind::Internal);
        assert!(redo.submit(chain(2, &[b"fine"])).wait().is_ok());
    }
    assert_eq!((redo.stats().panics, redo.stats().failed, redo.stats().pages), (3, 3, 3));
}

#[test]
fn lost_answer_is_an_error() {
    let redo = start(1);
    assert_eq!(redo.submit(chain(1, &[b"lose"])).wait().unwrap_err().kind(), RedoErrorKind::Internal);
}

#[test]
fn deltas_of_ours_need_neither_engine_nor_thread() {
    let redo = WalRedo::start(&RedoConfig::default(), Arc::new(crate::redo::NoEngine));
    let page = redo.submit(clog_chain(100)).wait().unwrap();
    let page: &Page = page[..].first_chunk().unwrap();
    for index in 0..100 {
        assert_eq!(slru::clog_status(page, index), XidStatus::Committed, "{index}");
    }
    assert_eq!(slru::clog_status(page, 100), XidStatus::InProgress);
    assert!(!redo.threads_started.load(Ordering::Relaxed));
    // A long chain does go to a thread.
    let longer = redo.submit(clog_chain(INLINE_DELTAS_MAX as u16 + 1)).wait().unwrap();
    assert_ne!(page[..], longer[..]);
    assert_eq!(
        (redo.stats().inline, redo.stats().batches, redo.stats().records_ours),
        (1, 1, 101 + INLINE_DELTAS_MAX as u64)
    );
}

#[test]
fn computed_page_is_made_by_who_asks_and_once_for_all_who_ask() {
    let (redo, _engine, gate) = start_gated(&RedoConfig::default(), true);
    let slow = || redo.submit(chain(1, &[b"slow"])).wait();
    std::thread::scope(|scope| {
        let first = scope.spawn(slow);
        spin_until(|| redo.stats().inline == 1);
        let later: Vec<_> = (0..20).map(|_| scope.spawn(slow)).collect();
        spin_until(|| redo.stats().coalesced == 20);
        drop(gate);
        let page = first.join().unwrap().unwrap();
        assert!(later.into_iter().all(|asker| asker.join().unwrap().as_ref() == Ok(&page)));
    });
    assert_eq!((redo.stats().pages, redo.stats().inline), (1, 1));
    // Who comes after the page was made asks anew.
    assert!(slow().is_ok());
    assert_eq!((redo.stats().pages, redo.stats().coalesced), (2, 20));
    let error = redo.submit(chain(1, &[b"panic"])).wait().unwrap_err();
    assert_eq!((error.kind(), redo.stats().panics), (RedoErrorKind::Internal, 1));
    assert!(!redo.threads_started.load(Ordering::Relaxed));
}

#[test]
fn runs_of_records_go_to_the_engine_with_our_deltas_in_between() {
    let redo = start(1);
    let mut chain = chain(0, &[b"a", b"b", b"c", b"d"]);
    let mut clear = Vec::new();
    Delta::VisibilityMapClear { lsn_guarded: false, bits: 3, indexes: &[Index::new(0)] }.encode(&mut clear);
    chain.deltas[2].1 = clear.into();
    chain.base = Some((Lsn::ZERO, vec![0; BLCKSZ].into()));
    let page = redo.submit(chain).wait().unwrap();
    // Three records, in two runs; the last one's LSN.
    assert_eq!((page[100], page[4]), (3, 4));
    assert_eq!((redo.stats().records_postgres, redo.stats().records_ours), (3, 1));
}

#[test]
fn impossible_chains_are_corrupt() {
    let redo = start(1);
    let mut short_base = chain(0, &[b"a"]);
    short_base.base = Some((Lsn::ZERO, vec![0; 100].into()));
    let mut late_base = chain(0, &[b"a"]);
    late_base.base = Some((Lsn::new(2), Bytes::new()));
    let mut disordered = chain(0, &[b"a", b"b"]);
    disordered.deltas.swap(0, 1);
    let mut unknown = chain(0, &[b"a"]);
    unknown.deltas[0].1 = vec![200, 1, 2].into();
    let mut empty = chain(0, &[b"a"]);
    empty.deltas[0].1 = Bytes::new();
    let mut no_relation = chain(0, &[b"a"]);
    no_relation.key = Object::SlruPage { kind: SlruKind::Clog, page_no: 0 }.into();
    for (no, bad) in [short_base, late_base, disordered, unknown, empty, no_relation].into_iter().enumerate() {
        let error = redo.submit(bad).wait().unwrap_err();
        assert!(matches!(error, RedoError::BadChain { .. }), "{no}: {error}");
        assert_eq!(error.kind(), RedoErrorKind::Corrupt);
    }
    assert!(redo.submit(chain(0, &[b"a"])).wait().is_ok());
}

#[test]
fn chain_without_deltas_is_its_base() {
    let redo = start(1);
    let mut chain = chain(0, &[]);
    assert_eq!(redo.submit(chain.clone()).wait().unwrap(), vec![0; BLCKSZ]);
    chain.base = Some((Lsn::ZERO, vec![7; BLCKSZ].into()));
    assert_eq!(redo.submit(chain).wait().unwrap(), vec![7; BLCKSZ]);
}

#[test]
fn pool_that_goes_down_answers_who_waits() {
    let (redo, engine, gate) = start_gated(&RedoConfig { threads: 1, ..RedoConfig::default() }, false);
    let first = redo.submit(chain(0, &[b"slow"]));
    spin_until(|| engine.has_slow.load(Ordering::SeqCst));
    let waiting: Vec<_> = (1..50).map(|block_no| redo.submit(chain(block_no, &[b"fine"]))).collect();
    let turned_away = redo.offer_backlog(chain(99, &[b"fine"]), Box::new(|_| panic!("not called")));
    assert!(turned_away);
    redo.shut_down();
    drop(gate);
    drop(redo);
    assert!(first.wait().is_ok());
    for pending in waiting {
        assert_eq!(pending.wait(), Err(RedoError::ShuttingDown));
    }
}

#[test]
fn full_backlog_turns_away() {
    let (redo, _engine, gate) = start_gated(&RedoConfig { threads: 1, backlog_len: 2, ..RedoConfig::default() }, false);
    let accepted = (0..50).filter(|no| redo.offer_backlog(chain(*no, &[b"slow"]), Box::new(|_| ()))).count();
    assert!((2..=3).contains(&accepted), "{accepted}"); // Two that wait, and one that is in hand.
    // A request goes before what is left of it.
    let request = redo.submit(chain(99, &[b"fine"]));
    gate.send(()).unwrap();
    assert!(request.wait().is_ok());
    assert!(redo.stats().backlog_made <= 1);
    drop(gate);
    spin_until(|| redo.stats().backlog_made == accepted as u64);
}

#[test]
fn callback_may_hold_the_last_handle() {
    let (redo, _engine, gate) = start_gated(&RedoConfig { threads: 1, ..RedoConfig::default() }, false);
    let held = redo.clone();
    let (sender, receiver) = bounded(1);
    redo.offer_backlog(
        chain(0, &[b"slow"]),
        Box::new(move |page| {
            drop(held);
            sender.send(page).unwrap();
        }),
    );
    drop(redo);
    drop(gate);
    assert!(receiver.recv_timeout(Duration::from_secs(60)).unwrap().is_ok());
}
