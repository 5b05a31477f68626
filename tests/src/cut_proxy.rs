//! A TCP proxy between the page server and the primary that cuts the stream where the test says: in the middle of a
//! record as a rule, since records are short and the places are many.
//!
//! - After a cut it takes new connections at once: what follows is up to who reconnects.
//! - Bytes pass unchanged and in order until the cut; nothing behind the cut arrives.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

/// "Never": no test moves this many bytes.
const NO_CUT: u64 = u64::MAX;

/// A running proxy. Dropped: closed with all its connections.
#[derive(Debug)]
pub struct CutProxy {
    port: u16,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    upstream_port: AtomicU16,
    closing: AtomicBool,
    /// Bytes from upstream that may still pass before the cut.
    bytes_to_cut: AtomicU64,
    /// Bytes from upstream that have passed.
    bytes_passed: AtomicU64,
    cuts: AtomicU64,
    streams: Mutex<Vec<TcpStream>>,
}

impl CutProxy {
    /// Forwards a port of its own on 127.0.0.1 to `upstream_port`.
    pub fn start(upstream_port: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("listen for the proxy")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            upstream_port: AtomicU16::new(upstream_port),
            closing: AtomicBool::new(false),
            bytes_to_cut: AtomicU64::new(NO_CUT),
            bytes_passed: AtomicU64::new(0),
            cuts: AtomicU64::new(0),
            streams: Mutex::new(Vec::new()),
        });
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Ok(Self { port, shared, acceptor: Some(acceptor) })
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where new connections go from now on.
    pub fn set_upstream(&self, upstream_port: u16) {
        self.shared.upstream_port.store(upstream_port, Ordering::SeqCst);
    }

    /// Lets `bytes` more pass from upstream, then cuts every connection, once.
    pub fn cut_after(&self, bytes: u64) {
        self.shared.bytes_to_cut.store(bytes, Ordering::SeqCst);
    }

    /// Lets everything pass.
    pub fn cut_no_more(&self) {
        self.shared.bytes_to_cut.store(NO_CUT, Ordering::SeqCst);
    }

    /// Cuts every connection now.
    pub fn cut_now(&self) {
        self.shared.cut();
    }

    /// How often it has cut.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// How many bytes have come through from upstream.
    pub fn bytes_passed(&self) -> u64 {
        self.shared.bytes_passed.load(Ordering::SeqCst)
    }
}

impl Drop for CutProxy {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.close_streams();
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Shared {
    fn cut(&self) {
        self.bytes_to_cut.store(NO_CUT, Ordering::SeqCst);
        self.cuts.fetch_add(1, Ordering::SeqCst);
        self.close_streams();
    }

    fn close_streams(&self) {
        let mut streams = self.streams.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for stream in streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn keep(&self, stream: &TcpStream) -> std::io::Result<()> {
        self.streams.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(stream.try_clone()?);
        Ok(())
    }

    /// How many of `len` bytes may pass. Fewer than `len`: the caller passes them on, then cuts.
    fn take_allowance(&self, len: usize) -> usize {
        let before = self.bytes_to_cut.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            if left == NO_CUT { None } else { Some(left.saturating_sub(len as u64)) }
        });
        match before {
            Ok(left) => len.min(usize::try_from(left).unwrap_or(usize::MAX)),
            Err(_) => len,
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.closing.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((client, _)) => drop(forward(client, shared)), // Upstream is down: the client sees its end.
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(5)),
            Err(_) => return,
        }
    }
}

/// Connects `client` to upstream with a thread per direction.
fn forward(client: TcpStream, shared: &Arc<Shared>) -> std::io::Result<()> {
    client.set_nonblocking(false)?;
    let upstream = TcpStream::connect(("127.0.0.1", shared.upstream_port.load(Ordering::SeqCst)))?;
    for stream in [&client, &upstream] {
        stream.set_nodelay(true)?;
        shared.keep(stream)?;
    }
    let (client_read, upstream_write) = (client.try_clone()?, upstream.try_clone()?);
    let pass_up = Arc::clone(shared);
    thread::spawn(move || pump(client_read, upstream_write, &pass_up, false));
    let pass_down = Arc::clone(shared);
    thread::spawn(move || pump(upstream, client, &pass_down, true));
    Ok(())
}

/// Moves bytes until an end, an error or a cut; then closes both sides.
fn pump(mut from: TcpStream, mut to: TcpStream, shared: &Shared, counts: bool) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        let allowed = if counts { shared.take_allowance(len) } else { len };
        if to.write_all(&buffer[..allowed]).is_err() {
            break;
        }
        if counts {
            shared.bytes_passed.fetch_add(allowed as u64, Ordering::SeqCst);
        }
        if allowed < len {
            shared.cut();
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends 10,000 bytes to each who connects.
    fn sender() -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = stream.unwrap().write_all(&[7; 10_000]);
            }
        });
        port
    }

    fn read_all(port: u16) -> usize {
        let mut bytes = Vec::new();
        let _ = TcpStream::connect(("127.0.0.1", port)).unwrap().read_to_end(&mut bytes);
        bytes.len()
    }

    #[test]
    fn cuts_after_the_byte_it_was_told_and_only_once() {
        let proxy = CutProxy::start(sender()).unwrap();
        assert_eq!(read_all(proxy.port()), 10_000);
        proxy.cut_after(1_234);
        assert_eq!(read_all(proxy.port()), 1_234);
        assert_eq!(proxy.cuts(), 1);
        assert_eq!(read_all(proxy.port()), 10_000);
    }
}
