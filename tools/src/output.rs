//! Where answers go: standard output, as text for people or as JSON for programs.
//!
//! - Data to standard output, everything else to standard error.
//! - With `--json`: one JSON value, or one per line where there may be many.
//! - A reader that went away (`pagectl ... | head`) ends the program quietly.

use std::fmt::Display;
use std::io::{self, Write};

use anyhow::Result;
use serde::Serialize;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done; nothing to complain about.
    Good,
    /// Done, and the answer is that something is wrong: pages differ, a record does not replay.
    Bad,
}

impl Outcome {
    /// Exit code of the process. 2 is for commands that could not be carried out.
    pub fn exit_code(self) -> u8 {
        match self {
            Outcome::Good => 0,
            Outcome::Bad => 1,
        }
    }
}

/// The answer's way out.
pub struct Output {
    json: bool,
    out: io::BufWriter<io::StdoutLock<'static>>,
}

impl Output {
    /// Writes to standard output.
    pub fn new(json: bool) -> Self {
        Output { json, out: io::BufWriter::new(io::stdout().lock()) }
    }

    /// True when the answer is to be JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// One value on a line of its own.
    pub fn value(&mut self, value: &(impl Serialize + Display)) -> Result<()> {
        if self.json {
            return self.json_line(value);
        }
        writeln!(self.out, "{value}").map_err(written)
    }

    /// One JSON value on a line of its own.
    pub fn json_line(&mut self, value: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.out, value).map_err(|error| written(error.into()))?;
        writeln!(self.out).map_err(written)
    }

    /// Text as it is.
    pub fn text(&mut self, text: &str) -> Result<()> {
        self.bytes(text.as_bytes())
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(written)
    }

    /// Sends what was written.
    pub fn finish(mut self) -> Result<()> {
        self.out.flush().map_err(written)
    }
}

/// Nobody reads our output any more. A connection to a server that breaks is another matter.
#[derive(Debug)]
pub struct ReaderGone;

impl Display for ReaderGone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("nobody reads the output any more")
    }
}

impl std::error::Error for ReaderGone {}

fn written(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => ReaderGone.into(),
        _ => anyhow::Error::new(error).context("write to standard output"),
    }
}

/// True when `error` says that nobody reads our output any more.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    // An `io::Error` that holds another error is no link of the chain to it.
    let held_by = |cause: &(dyn std::error::Error + 'static)| {
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        inner.is_some_and(|inner| inner.is::<ReaderGone>())
    };
    error.chain().any(|cause| cause.is::<ReaderGone>() || held_by(cause))
}

#[cfg(test)]
mod tests {
    //! Goal: a reader that went away is known however deep the error lies, and nothing else passes for it. Method: errors as commands make them.

    use anyhow::Context;

    use super::*;

    #[test]
    fn a_reader_that_went_away_is_known_through_every_layer() {
        let gone = written(io::ErrorKind::BrokenPipe.into());
        assert!(is_broken_pipe(&gone));
        let copied: io::Result<()> = Err(io::Error::other(ReaderGone));
        assert!(is_broken_pipe(&copied.context("write the archive").unwrap_err()));
        let server: io::Result<()> = Err(io::ErrorKind::BrokenPipe.into());
        assert!(!is_broken_pipe(&server.context("ask the page server").unwrap_err()));
        assert!(!is_broken_pipe(&written(io::ErrorKind::StorageFull.into())));
    }
}
