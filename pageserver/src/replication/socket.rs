//! A TCP or Unix socket to a server, with time limits on everything, plain or under TLS.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ClientConnection, StreamOwned};

use super::conninfo::HostAddress;
use super::error::ReplicationError;

/// A silent TCP peer is probed after this, so that a base backup notices a dead primary. PostgreSQL's own keepalives
/// only flow while WAL is streamed.
const TCP_KEEPALIVE_IDLE_SECONDS: u32 = 60;
/// Time between two probes.
const TCP_KEEPALIVE_INTERVAL_SECONDS: u32 = 10;
/// Probes without an answer until the connection counts as lost.
const TCP_KEEPALIVE_PROBES: u32 = 6;

/// The bare socket.
pub(super) struct Socket {
    stream: Stream,
    /// Nothing is read behind it, so that TLS too, which reads until a record is whole, comes to an end.
    deadline: Option<Instant>,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Ends a connection from another thread: reads and writes in progress return at once.
pub struct Interrupt(Stream);

impl Interrupt {
    /// Shuts the socket down in both directions. Harmless when it is closed already.
    pub fn interrupt(&self) {
        // The peer may have been faster; there is nobody to tell.
        let _ = match &self.0 {
            Stream::Tcp(socket) => socket.shutdown(Shutdown::Both),
            Stream::Unix(socket) => socket.shutdown(Shutdown::Both),
        };
    }
}

impl Socket {
    /// Connects to the first address of `host` that answers.
    pub(super) fn connect(host: &HostAddress, timeout: Duration) -> Result<Self, ReplicationError> {
        let failed = |source| ReplicationError::Connect { address: host.to_string(), source };
        let stream = match host {
            // A Unix socket connects at once or not at all.
            HostAddress::Unix { .. } => {
                let path = host.socket_path().unwrap_or_default();
                Stream::Unix(UnixStream::connect(path).map_err(failed)?)
            }
            HostAddress::Tcp { host: name, address: Some(address), port } => {
                tracing::trace!(name, %address, port, "connecting");
                tcp(&[SocketAddr::new(*address, *port)], timeout).map_err(failed)?
            }
            HostAddress::Tcp { host: name, address: None, port } => {
                let resolved = (name.as_str(), *port)
                    .to_socket_addrs()
                    .map_err(|source| ReplicationError::Resolve { host: name.clone(), source })?;
                tcp(&resolved.collect::<Vec<_>>(), timeout).map_err(failed)?
            }
        };
        let socket = Socket { stream, deadline: None };
        socket.set_timeouts(Some(timeout), Some(timeout))?;
        Ok(socket)
    }

    /// From now on nothing is read behind `deadline`: `TimedOut`.
    pub(super) fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    pub(super) fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        match &self.stream {
            Stream::Tcp(socket) => socket.set_read_timeout(read).and_then(|()| socket.set_write_timeout(write)),
            Stream::Unix(socket) => socket.set_read_timeout(read).and_then(|()| socket.set_write_timeout(write)),
        }
    }

    fn try_clone(&self) -> io::Result<Stream> {
        Ok(match &self.stream {
            Stream::Tcp(socket) => Stream::Tcp(socket.try_clone()?),
            Stream::Unix(socket) => Stream::Unix(socket.try_clone()?),
        })
    }
}

fn tcp(addresses: &[SocketAddr], timeout: Duration) -> io::Result<Stream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(address, timeout) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                setsockopt(&socket, sockopt::KeepAlive, &true)?;
                setsockopt(&socket, sockopt::TcpKeepIdle, &TCP_KEEPALIVE_IDLE_SECONDS)?;
                setsockopt(&socket, sockopt::TcpKeepInterval, &TCP_KEEPALIVE_INTERVAL_SECONDS)?;
                setsockopt(&socket, sockopt::TcpKeepCount, &TCP_KEEPALIVE_PROBES)?;
                return Ok(Stream::Tcp(socket));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match &mut self.stream {
            Stream::Tcp(socket) => socket.read(buffer),
            Stream::Unix(socket) => socket.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Tcp(socket) => socket.write(bytes),
            Stream::Unix(socket) => socket.write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Tcp(socket) => socket.write_vectored(slices),
            Stream::Unix(socket) => socket.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket, with or without TLS around it.
pub(super) enum Transport {
    Plain(Socket),
    Tls(Box<StreamOwned<ClientConnection, Socket>>),
}

impl Transport {
    fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_ref(),
        }
    }

    pub(super) fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        self.socket().set_timeouts(read, write)
    }

    pub(super) fn set_deadline(&mut self, deadline: Option<Instant>) {
        match self {
            Self::Plain(socket) => socket.set_deadline(deadline),
            Self::Tls(stream) => stream.sock.set_deadline(deadline),
        }
    }

    pub(super) fn interrupt(&self) -> io::Result<Interrupt> {
        Ok(Interrupt(self.socket().try_clone()?))
    }
}

impl Read for Transport {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Transport {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
