//! Accepts connections, one thread each, and ends them.
//!
//! - More than `connections_max` are refused with 53300 after their startup packet, so that clients see why; far more are closed at once.
//! - Shutting down wakes every thread through its socket: nobody polls a flag.

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};
use socket2::{SockRef, TcpKeepalive};

use super::backend::RepositoryBackend;
use super::connection;

/// Connections beyond the limit that are told so (and may cancel others) instead of being closed without a word.
const REFUSED_POLITELY_MAX: usize = 32;
/// After running out of file descriptors or threads, a moment for others to close.
const ACCEPT_RETRY_PAUSE: Duration = Duration::from_millis(50);
/// A host that vanished is noticed after this and a few probes.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How the page service listens and what it allows.
#[derive(Debug, Clone)]
pub struct PageServiceConfig {
    /// Where to listen; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Connections served at the same time.
    pub connections_max: usize,
    /// A client that is silent for longer is disconnected.
    pub idle_timeout: Duration,
    /// A client that has not finished its startup by then is disconnected.
    pub startup_timeout: Duration,
    /// A client that takes nothing of what we send for longer is disconnected.
    pub write_timeout: Duration,
    /// How long a request waits for its LSN to arrive.
    pub wait_lsn_timeout: Duration,
    /// How long a shutdown waits for requests that are being answered.
    pub shutdown_grace: Duration,
}

impl Default for PageServiceConfig {
    fn default() -> Self {
        PageServiceConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 64_000)),
            connections_max: 1_000,
            idle_timeout: Duration::from_secs(600),
            startup_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            wait_lsn_timeout: Duration::from_secs(300),
            shutdown_grace: Duration::from_secs(5),
        }
    }
}

/// What another thread may do to a connection.
#[derive(Debug)]
pub struct Control {
    /// Number of the connection, its "process id" on the wire.
    pub connection_id: u32,
    /// What a cancel request must repeat.
    pub secret: [u8; 32],
    /// How much of it the client was told: the first 4 bytes before protocol 3.2. 0: nothing yet.
    pub told_bytes: AtomicUsize,
    /// Set by a cancel request.
    pub cancelled: AtomicBool,
    stream: Arc<TcpStream>,
}

/// Counters since start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections accepted.
    pub connections_total: AtomicU64,
    /// Connections refused for want of room.
    pub refused_total: AtomicU64,
    /// Pages sent over pagestream.
    pub pages_total: AtomicU64,
    /// Batches of GetPage requests; pages over batches is how well pipelining works.
    pub batches_total: AtomicU64,
    /// Errors sent within a pagestream.
    pub stream_errors_total: AtomicU64,
}

/// What all connections share.
pub(super) struct Shared {
    pub config: PageServiceConfig,
    pub repository: Arc<dyn RepositoryBackend>,
    pub shutting_down: Arc<AtomicBool>,
    pub counters: Counters,
    pub started_at: SystemTime,
    connections: Mutex<HashMap<u32, Arc<Control>>>,
    connection_ended: Condvar,
    next_connection_id: AtomicU32,
}

/// A running page service. Dropping it shuts it down.
pub struct PageService {
    shared: Arc<Shared>,
    listener: Arc<TcpListener>,
    local_addr: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

impl PageService {
    /// Listens and serves `repository` until shut down. Errors: the address cannot be listened on, no thread to be had.
    pub fn start(config: PageServiceConfig, repository: Arc<dyn RepositoryBackend>) -> io::Result<Self> {
        let listener = Arc::new(TcpListener::bind(config.listen)?);
        let local_addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            config,
            repository,
            shutting_down: Arc::default(),
            counters: Counters::default(),
            started_at: SystemTime::now(),
            connections: Mutex::default(),
            connection_ended: Condvar::new(),
            next_connection_id: AtomicU32::new(1),
        });
        let acceptor = {
            let (listener, shared) = (listener.clone(), shared.clone());
            std::thread::Builder::new().name("page-accept".into()).spawn(move || accept_loop(&listener, &shared))?
        };
        tracing::info!(%local_addr, "page service listens");
        Ok(PageService { shared, listener, local_addr, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Counters since start.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Connections now, those being refused included.
    pub fn connection_count(&self) -> usize {
        self.shared.connections.lock().len()
    }

    /// Stops accepting, lets requests that are being answered finish, tells the clients (57P01), and returns when all are gone.
    pub fn shutdown(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        let Some(acceptor) = self.acceptor.take() else { return };
        self.shared.shutting_down.store(true, Ordering::SeqCst);
        // Linux: shutting down a listening socket makes accept return with an error.
        let woken = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
        if woken.is_err() {
            drop(TcpStream::connect_timeout(&self.local_addr, Duration::from_secs(1)));
        }
        if acceptor.join().is_err() {
            tracing::error!("the accepting thread panicked");
        }
        self.shared.end_all(Shutdown::Read);
        if !self.shared.wait_until_empty(self.shared.config.shutdown_grace) {
            self.shared.end_all(Shutdown::Both);
            self.shared.wait_until_empty(self.shared.config.shutdown_grace);
        }
        tracing::info!(local_addr = %self.local_addr, "page service has stopped");
    }
}

impl Drop for PageService {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl Shared {
    /// Sets the cancel flag of the connection that `connection_id` and `secret` name. A wrong secret changes nothing and is not told.
    pub fn cancel(&self, connection_id: u32, secret: &[u8]) {
        let control = self.connections.lock().get(&connection_id).cloned();
        if let Some(control) = control
            && !secret.is_empty()
            && secret == &control.secret[..control.told_bytes.load(Ordering::Relaxed)]
        {
            control.cancelled.store(true, Ordering::Relaxed);
        }
    }

    fn register(&self, stream: Arc<TcpStream>) -> (Arc<Control>, usize) {
        let mut connections = self.connections.lock();
        let connection_id = loop {
            // Positive as a signed number, as process ids are.
            let id = self.next_connection_id.fetch_add(1, Ordering::Relaxed) & 0x7FFF_FFFF;
            if id != 0 && !connections.contains_key(&id) {
                break id;
            }
        };
        let control = Arc::new(Control {
            connection_id,
            secret: rand::random(),
            told_bytes: AtomicUsize::new(0),
            cancelled: AtomicBool::new(false),
            stream,
        });
        connections.insert(connection_id, control.clone());
        (control, connections.len())
    }

    fn unregister(&self, connection_id: u32) {
        self.connections.lock().remove(&connection_id);
        self.connection_ended.notify_all();
    }

    fn end_all(&self, how: Shutdown) {
        for control in self.connections.lock().values() {
            // It may have gone by itself.
            let _ = control.stream.shutdown(how);
        }
    }

    fn wait_until_empty(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut connections = self.connections.lock();
        while !connections.is_empty() {
            if self.connection_ended.wait_until(&mut connections, deadline).timed_out() {
                return connections.is_empty();
            }
        }
        true
    }

    /// Connections now.
    pub fn connection_count(&self) -> usize {
        self.connections.lock().len()
    }
}

/// Takes the connection off the list when its thread ends, however it ends.
struct Registered {
    shared: Arc<Shared>,
    control: Arc<Control>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.unregister(self.control.connection_id);
    }
}

fn accept_loop(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        let accepted = listener.accept();
        if shared.shutting_down.load(Ordering::SeqCst) {
            return;
        }
        match accepted {
            Ok((stream, peer)) => {
                shared.counters.connections_total.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = start_connection(shared, stream, peer) {
                    tracing::warn!(%peer, %error, "connection could not be started");
                    std::thread::sleep(ACCEPT_RETRY_PAUSE);
                }
            }
            // The client was gone before we got to it.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                std::thread::sleep(ACCEPT_RETRY_PAUSE);
            }
        }
    }
}

fn start_connection(shared: &Arc<Shared>, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    let connection_count = shared.connection_count();
    if connection_count >= shared.config.connections_max + REFUSED_POLITELY_MAX {
        shared.counters.refused_total.fetch_add(1, Ordering::Relaxed);
        return Ok(()); // Closed by being dropped.
    }
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(shared.config.write_timeout))?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_INTERVAL);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    let stream = Arc::new(stream);
    let (control, connection_count) = shared.register(stream.clone());
    let has_room = connection_count <= shared.config.connections_max;
    let registered = Registered { shared: shared.clone(), control };
    let name = format!("page-{}", registered.control.connection_id);
    // If no thread can be had, the closure is dropped and `registered` with it.
    std::thread::Builder::new().name(name).spawn(move || {
        connection::run(stream, peer, registered.control.clone(), &registered.shared, has_room);
    })?;
    Ok(())
}
