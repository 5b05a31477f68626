//! The page service over real sockets, in front of a timeline in a map.
//!
//! Goal: every byte and every rule of the protocol, with clients that we did not write (`psql`, the `postgres` crate) and with clients
//! that mean harm. Method: each test starts a server of its own on a free port; [`toy`] knows what every page must read.

mod backups;
mod commands;
mod drivers;
mod hostile;
mod properties;
mod streams;
mod toy;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use super::{PageService, PageServiceConfig};
use crate::client::{Client, ClientConfig, PageStream};
use crate::page_service::pagestream::wire::Version;
use toy::{Toy, ToyRepository};

/// A server and what it serves.
struct Fixture {
    service: PageService,
    toy: Arc<Toy>,
}

impl Fixture {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut PageServiceConfig)) -> Self {
        let mut config = PageServiceConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            wait_lsn_timeout: Duration::from_secs(20),
            ..PageServiceConfig::default()
        };
        change(&mut config);
        let toy = Arc::new(Toy::new());
        let service = PageService::start(config, Arc::new(ToyRepository(toy.clone()))).expect("a free port");
        Fixture { service, toy }
    }

    fn config(&self) -> ClientConfig {
        let read_timeout = Some(Duration::from_secs(30)); // A hanging server fails the test instead of hanging it.
        ClientConfig { read_timeout, ..ClientConfig::new(self.service.local_addr().to_string()) }
    }

    fn client(&self) -> Client {
        Client::connect(&self.config()).expect("connects")
    }

    fn stream(&self, version: Version) -> PageStream {
        PageStream::start(self.client(), version, None, "main").expect("starts")
    }

    /// A bare socket.
    fn socket(&self) -> TcpStream {
        let socket = TcpStream::connect(self.service.local_addr()).expect("connects");
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("sets");
        socket
    }

    /// A bare socket after the first ReadyForQuery.
    fn session(&self) -> TcpStream {
        let mut socket = self.socket();
        socket.write_all(b"\0\0\0\x12\0\x03\0\0user\0joe\0\0").expect("writes");
        read_until_ready(&mut socket);
        socket
    }
}

/// One message: type and payload.
fn read_message(socket: &mut impl Read) -> (u8, Vec<u8>) {
    let mut header = [0; 5];
    socket.read_exact(&mut header).expect("a message header");
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    let mut payload = vec![0; length - 4];
    socket.read_exact(&mut payload).expect("a message");
    (header[0], payload)
}

/// Messages up to and including ReadyForQuery.
fn read_until_ready(socket: &mut impl Read) -> Vec<(u8, Vec<u8>)> {
    let mut messages = Vec::new();
    while messages.last().is_none_or(|(tag, _)| *tag != b'Z') {
        messages.push(read_message(socket));
    }
    messages
}

/// Everything up to the end of the connection.
fn read_to_end(socket: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).expect("an orderly end");
    bytes
}

fn message(tag: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len() + 4).expect("small").to_be_bytes();
    [&[tag][..], &length, payload].concat()
}

/// The SQLSTATE in an ErrorResponse's payload.
fn sqlstate(payload: &[u8]) -> String {
    payload
        .split(|byte| *byte == 0)
        .find_map(|field| field.strip_prefix(b"C"))
        .map(|code| String::from_utf8_lossy(code).into_owned())
        .expect("a SQLSTATE")
}

fn tags(messages: &[(u8, Vec<u8>)]) -> String {
    messages.iter().map(|(tag, _)| *tag as char).collect()
}
