//! Who looks after a child process: reads its stderr all the time, kills it, waits for it.
//!
//! - stderr is read until the process is gone, so it never blocks on a full pipe; what reaches our log is bounded in
//!   line length and in bytes per time.
//! - A process is killed together with the group that it leads, and always waited for: no zombies.
//! - A pid is never signalled after it was waited for: it may be somebody else's by then.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ExitStatus};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use parking_lot::{Condvar, Mutex};

use super::protocol::readable;

/// A longer line is cut.
const LINE_BYTES_MAX: usize = 500;
/// So much of its stderr reaches our log per window; the rest is counted.
const LOG_BYTES_PER_WINDOW: usize = 16 * 1024;
const LOG_WINDOW: Duration = Duration::from_secs(10);
/// What is kept of stderr to explain a failed start.
const LAST_WORDS_BYTES: usize = 1000;
/// How soon a kill is noticed although somebody else holds the stderr pipe open.
const STDERR_POLL_MS: u16 = 200;

/// A running child process and the thread that looks after it. Dropped: killed and waited for.
pub struct Keeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    pid: Pid,
    life: Mutex<Life>,
    ended: Condvar,
}

#[derive(Default)]
struct Life {
    killed: bool,
    status: Option<ExitStatus>,
    last_words: String,
    stderr_bytes: u64,
}

impl Keeper {
    /// Looks after `child`, the leader of a process group of its own, from now on.
    pub fn new(mut child: Child) -> std::io::Result<Self> {
        let pid = Pid::from_raw(child.id() as i32);
        let shared = Arc::new(Shared { pid, life: Mutex::default(), ended: Condvar::new() });
        let stderr = child.stderr.take();
        // The child goes over a channel, so that it is still ours if the thread cannot be started.
        let (sender, receiver) = crossbeam_channel::bounded::<Child>(1);
        let keeper = shared.clone();
        let run = move || {
            if let Ok(child) = receiver.recv() {
                keeper.run(child, stderr);
            }
        };
        match std::thread::Builder::new().name(format!("redo-{pid}")).spawn(run) {
            Ok(thread) => {
                // The thread waits for exactly this.
                let _ = sender.send(child);
                Ok(Keeper { shared, thread: Some(thread) })
            }
            Err(error) => {
                let _ = killpg(pid, Signal::SIGKILL);
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.shared.pid.as_raw() as u32
    }

    /// Kills the process and its group, if they are still there. Does not wait.
    pub fn kill(&self) {
        self.shared.kill();
    }

    /// True once the process has ended and been waited for.
    pub fn has_ended(&self) -> bool {
        self.shared.life.lock().status.is_some()
    }

    /// How the process ended and what it said last on stderr. Kills it first and waits for its end.
    pub fn end(&self) -> String {
        let was_alive = !self.has_ended();
        self.kill();
        let mut life = self.shared.life.lock();
        while life.status.is_none() {
            self.shared.ended.wait(&mut life);
        }
        let how = match life.status.map(|status| (status.code(), status.signal())) {
            Some((Some(code), _)) => format!("exit code {code}"),
            Some((_, Some(signal))) if was_alive && signal == Signal::SIGKILL as i32 => "killed".to_owned(),
            Some((_, Some(signal))) => format!("signal {signal}"),
            _ => "unknown end".to_owned(),
        };
        if life.last_words.is_empty() { how } else { format!("{how}, stderr: {}", life.last_words) }
    }

    /// Bytes that the process has written to stderr.
    pub fn stderr_bytes(&self) -> u64 {
        self.shared.life.lock().stderr_bytes
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.kill();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn kill(&self) {
        let mut life = self.life.lock();
        life.killed = true;
        if life.status.is_none() {
            let _ = killpg(self.pid, Signal::SIGKILL); // Fails only if the process has just ended.
        }
    }

    fn run(&self, mut child: Child, stderr: Option<ChildStderr>) {
        if let Some(stderr) = stderr {
            self.read_stderr(stderr);
        }
        // Whoever closes stderr has nothing to do any more, or means no good.
        self.kill();
        // Waits without taking the pid away, so that `kill` never meets another process.
        let _ = waitid(Id::Pid(self.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        let mut life = self.life.lock();
        let status = child.wait().unwrap_or_default();
        life.status = Some(status);
        self.ended.notify_all();
        drop(life);
        tracing::debug!(pid = self.pid.as_raw(), %status, "redo process ended");
    }

    fn read_stderr(&self, mut stderr: ChildStderr) {
        let mut log = BoundedLog::new(self.pid, Instant::now());
        let mut buffer = [0; 4096];
        loop {
            let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(STDERR_POLL_MS)) {
                Ok(0) if self.life.lock().killed => break,
                Ok(0) => continue,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => break,
                Ok(_) => {}
            }
            match stderr.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => {
                    let mut life = self.life.lock();
                    life.stderr_bytes += len as u64;
                    keep_last_words(&mut life.last_words, &buffer[..len]);
                    drop(life);
                    log.take(&buffer[..len], Instant::now());
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        log.finish();
    }
}

/// What PostgreSQL says at level LOG, which no `log_min_messages` below FATAL keeps back: a library has been loaded, and the like. Behind `log_line_prefix`,
/// untranslated (`send_message_to_server_log` of `src/backend/utils/error/elog.c`, 14 to 18).
fn is_plain_log(line: &[u8]) -> bool {
    let prefix_end = line.windows(2).position(|found| found == b"] ");
    prefix_end.is_some_and(|at| line[at + 2..].starts_with(b"LOG:"))
}

/// The first words count, not the last: PostgreSQL says why it ends in its first line.
fn keep_last_words(words: &mut String, bytes: &[u8]) {
    let room = LAST_WORDS_BYTES.saturating_sub(words.len());
    if room > 0 {
        if !words.is_empty() {
            words.push(' ');
        }
        words.push_str(&readable(&bytes[..bytes.len().min(room)]));
    }
}

/// Lines to our log, but only so many.
struct BoundedLog {
    pid: Pid,
    line: Vec<u8>,
    window_start: Instant,
    window_bytes: usize,
    suppressed_bytes: u64,
}

impl BoundedLog {
    fn new(pid: Pid, now: Instant) -> Self {
        BoundedLog { pid, line: Vec::new(), window_start: now, window_bytes: 0, suppressed_bytes: 0 }
    }

    fn take(&mut self, bytes: &[u8], now: Instant) {
        if now.duration_since(self.window_start) >= LOG_WINDOW {
            self.window_start = now;
            self.window_bytes = 0;
            self.tell_suppressed();
        }
        for &byte in bytes {
            if byte == b'\n' {
                self.end_line();
            } else if self.line.len() < LINE_BYTES_MAX {
                self.line.push(byte);
            } else {
                self.suppressed_bytes += 1;
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return;
        }
        if self.window_bytes + line.len() > LOG_BYTES_PER_WINDOW {
            self.suppressed_bytes += line.len() as u64;
            return;
        }
        self.window_bytes += line.len();
        let (pid, text) = (self.pid.as_raw(), readable(&line));
        if is_plain_log(&line) {
            tracing::info!(pid, line = text, "redo process wrote to stderr");
        } else {
            tracing::warn!(pid, line = text, "redo process wrote to stderr");
        }
    }

    fn tell_suppressed(&mut self) {
        if self.suppressed_bytes > 0 {
            tracing::warn!(
                pid = self.pid.as_raw(),
                bytes = self.suppressed_bytes,
                "redo process wrote more to stderr than is logged"
            );
            self.suppressed_bytes = 0;
        }
    }

    fn finish(&mut self) {
        self.end_line();
        self.tell_suppressed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_takes_a_bounded_number_of_bytes_per_window() {
        let start = Instant::now();
        let mut log = BoundedLog::new(Pid::from_raw(1), start);
        log.take(&[b'x'; 100_000], start);
        assert_eq!(log.line.len(), LINE_BYTES_MAX);
        assert_eq!(log.suppressed_bytes, 100_000 - LINE_BYTES_MAX as u64);
        for _ in 0..1000 {
            log.take(b"\nabc\n", start);
            log.take(&[b'y'; 80], start);
        }
        assert!(log.window_bytes <= LOG_BYTES_PER_WINDOW);
        assert!(log.suppressed_bytes > 100_000);
        log.take(b"z\n", start + LOG_WINDOW);
        assert_eq!((log.suppressed_bytes, log.window_bytes), (0, 81));
    }

    #[test]
    fn a_line_of_level_log_is_no_warning() {
        assert!(is_plain_log(
            b"2026-11-27 03:00:00.000 UTC [7] LOG:  registered custom resource manager \"x\" with ID 128"
        ));
        assert!(!is_plain_log(b"2026-11-27 03:00:00.000 UTC [7] WARNING:  [8] LOG:  "));
        assert!(!is_plain_log(b"LOG"));
    }

    #[test]
    fn last_words_are_bounded() {
        let mut words = String::new();
        for _ in 0..100 {
            keep_last_words(&mut words, &[b'w'; 300]);
        }
        assert!(words.len() <= LAST_WORDS_BYTES + 4);
    }
}
