//! What a server sends in a COPY OUT, as a [`Read`].

use std::io::{self, Read};

use super::connection::{Client, server_error, unexpected};
use super::error::ClientError;

/// The bytes of one COPY OUT. The connection takes commands again once all of it was read, or after an error of the server; dropped before
/// that, it is of no more use.
#[derive(Debug)]
pub struct CopyOut<'a> {
    client: &'a mut Client,
    notices: Vec<String>,
    piece: Vec<u8>,
    taken: usize,
    is_done: bool,
}

impl Client {
    /// Runs a command that answers with COPY OUT, up to where its bytes begin. Errors: the server refuses; the command gives something else.
    pub fn copy_out(&mut self, command: &str) -> Result<CopyOut<'_>, ClientError> {
        self.send_query(command)?;
        let mut notices = Vec::new();
        let mut refused = None;
        loop {
            let frame = self.frame()?;
            match frame.tag {
                b'H' => break,
                b'N' => notices.push(server_error(self.payload(&frame)).message),
                b'S' | b'C' | b'I' => {}
                b'E' => refused = Some(server_error(self.payload(&frame))),
                b'Z' => {
                    return Err(refused.map_or(ClientError::Result { command: "COPY OUT" }, ClientError::Server));
                }
                _ => return Err(unexpected(&frame, "waiting for a COPY OUT")),
            }
            if let Some(error) = refused.take_if(|error| error.severity == "FATAL") {
                return Err(ClientError::Server(error));
            }
        }
        Ok(CopyOut { client: self, notices, piece: Vec::new(), taken: 0, is_done: false })
    }
}

impl CopyOut<'_> {
    /// The notices that came before the first byte.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Fetches the next piece. False: there is none.
    fn fetch(&mut self) -> Result<bool, ClientError> {
        loop {
            let frame = self.client.frame()?;
            match frame.tag {
                b'd' => {
                    self.piece.clear();
                    self.piece.extend_from_slice(self.client.payload(&frame));
                    self.taken = 0;
                    if !self.piece.is_empty() {
                        return Ok(true);
                    }
                }
                b'c' | b'C' | b'N' | b'S' => {}
                b'Z' => return Ok(false),
                b'E' => {
                    let error = server_error(self.client.payload(&frame));
                    while error.severity != "FATAL" && self.client.frame()?.tag != b'Z' {}
                    return Err(ClientError::Server(error));
                }
                _ => return Err(unexpected(&frame, "reading a COPY OUT")),
            }
        }
    }
}

impl Read for CopyOut<'_> {
    /// An error of the server comes as a [`ClientError`] within the [`io::Error`].
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.piece.len() && !self.is_done {
            let fetched = self.fetch();
            self.is_done = !matches!(fetched, Ok(true));
            if !fetched.map_err(io::Error::other)? {
                self.piece.clear();
                self.taken = 0;
            }
        }
        let length = buffer.len().min(self.piece.len() - self.taken);
        buffer[..length].copy_from_slice(&self.piece[self.taken..self.taken + length]);
        self.taken += length;
        Ok(length)
    }
}
