//! Requests to one running redo process and replies from it, for many threads at once.
//!
//! - Sending and receiving have locks of their own: one thread writes its requests while another reads replies.
//!   Replies come in the order of the requests; each is matched by its id.
//! - There is no thread for receiving: of those who wait, one reads for all, and hands over when it has its own.
//!   With a single request in flight that saves two changes of thread.
//! - The process never has to wait for us to read: no more replies are outstanding than fit into its pipe. So it always
//!   goes on reading, and whoever writes gets on, whatever the readers do.
//! - **Never:** a thread waits for ever. Every wait ends when a reply arrives, when the process breaks, or when it has
//!   given no reply for `timeout` although it owes one. A broken process is killed and answers nothing any more.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::{Condvar, Mutex};
use postgres_ffi::BLCKSZ;

use super::keeper::Keeper;
use super::protocol::{self, FRAME_HEADER_LEN, ProtocolError, Reply};
use crate::redo::EngineRequest;

/// What we ask the kernel for; less is used if it gives less. A batch of 30 requests fits.
const REQUEST_PIPE_BYTES: i32 = 256 * 1024;
/// The most that any user may ask for by default (/proc/sys/fs/pipe-max-size).
const REPLY_PIPE_BYTES: i32 = 1024 * 1024;
/// A pipe holds pages; a reply takes at most so many of them, since it may start in the middle of one.
const PIPE_PAGES_PER_REPLY: usize = (FRAME_HEADER_LEN + BLCKSZ).div_ceil(PIPE_PAGE_BYTES) + 1;
const PIPE_PAGE_BYTES: usize = 4096;
/// Room for a good part of the reply pipe in one read.
const READ_BUFFER_BYTES: usize = 256 * 1024;
/// Buffers for encoded requests that are kept for reuse, and how long one may be to be kept.
const SPARE_BUFFERS_MAX: usize = 8;
const SPARE_BUFFER_BYTES_MAX: usize = 1024 * 1024;

/// Why a process is not used any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It closed its pipe: it died, or was killed.
    #[error("process ended")]
    Ended,
    /// No reply in time.
    #[error("no reply in time. timeout=`{0:?}`")]
    TimedOut(Duration),
    /// It sent something that is no reply.
    #[error("process sent garbage: {0}")]
    Garbage(#[from] ProtocolError),
    /// Its pipe failed.
    #[error("pipe to the process failed: {0}")]
    Pipe(String),
    /// Its answers cannot be right.
    #[error("process gave an impossible page: {0}")]
    ImpossiblePage(String),
}

/// A process that has said hello.
pub struct Pipeline {
    keeper: Keeper,
    timeout: Duration,
    window: usize,
    sender: Mutex<Sender>,
    state: Mutex<State>,
    /// Signalled when `State::free` grows or the process breaks.
    room: Condvar,
    room_waiters: AtomicUsize,
    broken: AtomicBool,
    /// Somebody has told of the break.
    reported: AtomicBool,
    panics: AtomicU32,
    spare_buffers: Mutex<Vec<Vec<u8>>>,
    bytes: Traffic,
}

/// Bytes over the pipes.
#[derive(Default)]
struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
}

struct Sender {
    stdin: File,
    next_id: u64,
}

struct State {
    /// Requests that were sent, or are being sent, oldest first.
    pending: VecDeque<Pending>,
    /// How many more replies may be outstanding.
    free: usize,
    /// When the last reply came, or when `pending` last became non-empty.
    progress: Instant,
    /// Taken out by the thread that reads for all.
    reader: Option<Reader>,
    broken: Option<Broken>,
}

struct Pending {
    id: u64,
    batch: Arc<Batch>,
    index: usize,
}

struct Reader {
    stdout: File,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

/// The requests of one call of [`Pipeline::exchange`]. `missing` changes under the lock of `State`.
struct Batch {
    replies: Mutex<Vec<Option<Reply>>>,
    missing: AtomicUsize,
    /// Waits with the lock of `State`.
    wake: Condvar,
}

impl Pipeline {
    /// Takes over a process that has said hello and owes nothing.
    pub fn new(keeper: Keeper, stdin: OwnedFd, stdout: OwnedFd, timeout: Duration) -> io::Result<Self> {
        for pipe in [&stdin, &stdout] {
            set_nonblocking(pipe)?;
        }
        // As large as we may have them; they work at any size.
        let _ = fcntl(&stdin, FcntlArg::F_SETPIPE_SZ(REQUEST_PIPE_BYTES));
        let _ = fcntl(&stdout, FcntlArg::F_SETPIPE_SZ(REPLY_PIPE_BYTES));
        let reply_pipe_bytes = fcntl(&stdout, FcntlArg::F_GETPIPE_SZ).map_err(io::Error::from)?.max(0) as usize;
        // One is always safe: the process writes the only reply when it has read the only request.
        let window = (reply_pipe_bytes / PIPE_PAGE_BYTES / PIPE_PAGES_PER_REPLY).max(1);
        let buffer = vec![0; READ_BUFFER_BYTES].into_boxed_slice();
        let reader = Reader { stdout: stdout.into(), buffer, start: 0, end: 0 };
        Ok(Pipeline {
            keeper,
            timeout,
            window,
            sender: Mutex::new(Sender { stdin: stdin.into(), next_id: 1 }),
            state: Mutex::new(State {
                pending: VecDeque::new(),
                free: window,
                progress: Instant::now(),
                reader: Some(reader),
                broken: None,
            }),
            room: Condvar::new(),
            room_waiters: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
            reported: AtomicBool::new(false),
            panics: AtomicU32::new(0),
            spare_buffers: Mutex::default(),
            bytes: Traffic::default(),
        })
    }

    /// The most requests that one call of [`Pipeline::exchange`] takes: half of what may be outstanding, so that two
    /// callers overlap.
    pub fn batch_len_max(&self) -> usize {
        (self.window / 2).max(1)
    }

    /// False once the process has broken or ended.
    pub fn is_usable(&self) -> bool {
        !self.broken.load(Ordering::Acquire) && !self.keeper.has_ended()
    }

    /// Who looks after the process.
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// Why the process broke, if it has.
    pub fn broken(&self) -> Option<Broken> {
        self.state.lock().broken.clone()
    }

    /// True for the first who asks: that one tells of the break.
    pub fn claim_report(&self) -> bool {
        !self.reported.swap(true, Ordering::Relaxed)
    }

    /// Counts a PANIC that the process survived.
    pub fn count_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// PANICs that the process survived.
    pub fn panics(&self) -> u32 {
        self.panics.load(Ordering::Relaxed)
    }

    /// Bytes sent and received so far.
    pub fn traffic(&self) -> (u64, u64) {
        (self.bytes.sent.load(Ordering::Relaxed), self.bytes.received.load(Ordering::Relaxed))
    }

    /// One reply per request, in their order; `None` where the process broke before it replied.
    ///
    /// Requires: at most [`Pipeline::batch_len_max`] requests, each as [`protocol::put_request`] wants it.
    pub fn exchange(&self, requests: &[&EngineRequest]) -> Vec<Option<Reply>> {
        assert!(requests.len() <= self.batch_len_max());
        let batch = Arc::new(Batch {
            replies: Mutex::new(vec![None; requests.len()]),
            missing: AtomicUsize::new(requests.len()),
            wake: Condvar::new(),
        });
        if !requests.is_empty() && self.reserve(requests.len()) {
            let mut frames = self.spare_buffers.lock().pop().unwrap_or_default();
            let mut starts = Vec::with_capacity(requests.len());
            for request in requests {
                starts.push(frames.len());
                protocol::put_request(request, &mut frames);
            }
            self.send(&batch, &mut frames, &starts);
            self.give_back(frames);
            self.receive(&batch);
        }
        let mut replies = batch.replies.lock();
        std::mem::take(&mut *replies)
    }

    /// Ends the use of the process: all that wait for it get nothing, it is killed.
    pub fn break_off(&self, why: Broken) {
        self.broken.store(true, Ordering::Release);
        self.keeper.kill();
        let mut state = self.state.lock();
        state.broken.get_or_insert(why);
        for pending in state.pending.drain(..) {
            pending.batch.wake.notify_all();
        }
        self.room.notify_all();
    }

    /// Waits until `count` more replies may be outstanding. False if the process broke.
    fn reserve(&self, count: usize) -> bool {
        let mut state = self.state.lock();
        while state.broken.is_none() && state.free < count {
            self.room_waiters.fetch_add(1, Ordering::Relaxed);
            self.room.wait(&mut state);
            self.room_waiters.fetch_sub(1, Ordering::Relaxed);
        }
        if state.broken.is_some() {
            return false;
        }
        state.free -= count;
        true
    }

    fn give_back(&self, mut frames: Vec<u8>) {
        frames.clear();
        let mut spare = self.spare_buffers.lock();
        if spare.len() < SPARE_BUFFERS_MAX && frames.capacity() <= SPARE_BUFFER_BYTES_MAX {
            spare.push(frames);
        }
    }

    fn send(&self, batch: &Arc<Batch>, frames: &mut [u8], starts: &[usize]) {
        let mut sender = self.sender.lock();
        {
            let mut state = self.state.lock();
            if state.broken.is_some() {
                return;
            }
            if state.pending.is_empty() {
                state.progress = Instant::now();
            }
            for (index, start) in starts.iter().enumerate() {
                let id = sender.next_id;
                sender.next_id += 1;
                protocol::set_id(&mut frames[*start..], id);
                state.pending.push_back(Pending { id, batch: batch.clone(), index });
            }
        }
        match self.write_all(&mut sender.stdin, frames) {
            Ok(()) => _ = self.bytes.sent.fetch_add(frames.len() as u64, Ordering::Relaxed),
            Err(why) => {
                drop(sender);
                self.break_off(why);
            }
        }
    }

    fn write_all(&self, stdin: &mut File, mut bytes: &[u8]) -> Result<(), Broken> {
        while !bytes.is_empty() {
            match stdin.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait_for(stdin, PollFlags::POLLOUT)?;
                }
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(Broken::Ended),
                Err(error) => return Err(Broken::Pipe(error.to_string())),
            }
        }
        Ok(())
    }

    /// Waits until the pipe is ready, and no longer than the process may still take for a reply.
    fn wait_for(&self, pipe: &File, what: PollFlags) -> Result<(), Broken> {
        loop {
            let left = {
                let state = self.state.lock();
                if let Some(why) = &state.broken {
                    return Err(why.clone());
                }
                (state.progress + self.timeout).saturating_duration_since(Instant::now())
            };
            if left.is_zero() {
                return Err(Broken::TimedOut(self.timeout));
            }
            // Rounded up: a wait of nothing would spin.
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(pipe.as_fd(), what)], timeout) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(Broken::Pipe(error.to_string())),
            }
        }
    }

    /// Returns when all replies of `batch` are there or the process has broken.
    fn receive(&self, batch: &Arc<Batch>) {
        let mut state = self.state.lock();
        let mut reader = loop {
            if state.broken.is_some() || batch.missing.load(Ordering::Relaxed) == 0 {
                return;
            }
            match state.reader.take() {
                Some(reader) => break reader,
                None => batch.wake.wait(&mut state),
            }
        };
        drop(state);
        // From here on this thread reads for all, until its own replies are there.
        let mut outcome = Ok(());
        while outcome.is_ok() && batch.missing.load(Ordering::Relaxed) > 0 {
            outcome = self.read_some(&mut reader).and_then(|()| self.deliver(&mut reader));
        }
        if let Err(why) = outcome {
            return self.break_off(why); // The reader goes, and with it the pipe.
        }
        let mut state = self.state.lock();
        state.reader = Some(reader);
        // Somebody who waits must read now. If the oldest one is still sending, it will read when it is done.
        if let Some(oldest) = state.pending.front() {
            oldest.batch.wake.notify_all();
        }
    }

    fn read_some(&self, reader: &mut Reader) -> Result<(), Broken> {
        if reader.start > 0 {
            reader.buffer.copy_within(reader.start..reader.end, 0);
            reader.end -= reader.start;
            reader.start = 0;
        }
        loop {
            // Waits first: a reply is never there so soon, and a useless read costs as much as the wait.
            self.wait_for(&reader.stdout, PollFlags::POLLIN)?;
            match reader.stdout.read(&mut reader.buffer[reader.end..]) {
                Ok(0) => return Err(Broken::Ended),
                Ok(len) => {
                    reader.end += len;
                    self.bytes.received.fetch_add(len as u64, Ordering::Relaxed);
                    return Ok(());
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(error) => return Err(Broken::Pipe(error.to_string())),
            }
        }
    }

    /// Gives each whole reply in the buffer to who asked for it.
    fn deliver(&self, reader: &mut Reader) -> Result<(), Broken> {
        while let Some((id, reply, len)) = protocol::parse_reply(&reader.buffer[reader.start..reader.end])? {
            reader.start += len;
            let mut state = self.state.lock();
            let expected = state.pending.front().map(|pending| pending.id);
            let Some(pending) = state.pending.pop_front_if(|pending| pending.id == id) else {
                return Err(ProtocolError::UnexpectedReply { id, expected }.into());
            };
            state.progress = Instant::now();
            state.free += 1;
            if self.room_waiters.load(Ordering::Relaxed) > 0 {
                self.room.notify_all();
            }
            pending.batch.replies.lock()[pending.index] = Some(reply);
            if pending.batch.missing.fetch_sub(1, Ordering::Relaxed) == 1 {
                pending.batch.wake.notify_all();
            }
        }
        Ok(())
    }
}

fn set_nonblocking(pipe: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(pipe, FcntlArg::F_GETFL)?);
    fcntl(pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

// A reply is always delivered before the buffer is full.
const _: () = assert!(FRAME_HEADER_LEN + BLCKSZ < READ_BUFFER_BYTES);
