//! The messages that a client sends after startup, parsed. Borrowed from the buffer they came in.
//!
//! PG 15: doc/src/sgml/protocol.sgml, "Message Formats". Every length is checked; text must be UTF-8.

use super::command::rows::Formats;
use super::message::Format;

/// A message of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrontendMessage<'a> {
    /// Simple query.
    Query(&'a str),
    /// Prepare a statement.
    Parse {
        /// Its name; empty is the unnamed one.
        statement: &'a str,
        /// Its text.
        query: &'a str,
    },
    /// Make a portal of a statement.
    Bind {
        /// The portal's name.
        portal: &'a str,
        /// The statement's name.
        statement: &'a str,
        /// Values given.
        parameter_count: usize,
        /// Formats of the result columns.
        result_formats: Formats,
    },
    /// What does a statement or portal give?
    Describe(Target<'a>),
    /// Run a portal.
    Execute {
        /// The portal's name.
        portal: &'a str,
        /// Stop after so many rows; 0: all.
        row_count_max: u32,
    },
    /// Forget a statement or portal.
    Close(Target<'a>),
    /// End of a batch of extended messages.
    Sync,
    /// Send what waits.
    Flush,
    /// Goodbye.
    Terminate,
    /// Data within a copy.
    CopyData(&'a [u8]),
    /// End of a copy.
    CopyDone,
    /// The client gives up a copy.
    CopyFail(&'a str),
    /// Call of a function by OID, which we have none of.
    FunctionCall,
}

/// A statement or a portal, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// A prepared statement.
    Statement(&'a str),
    /// A portal.
    Portal(&'a str),
}

/// The bytes are not the message that their type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrontendError {
    /// No message has this type.
    #[error("invalid frontend message type {tag}")]
    Type {
        /// The type byte.
        tag: u8,
    },
    /// Ends too early, or goes on after its end.
    #[error("invalid message format. type=`{}`", tag.escape_ascii())]
    Layout {
        /// The type byte.
        tag: u8,
    },
    /// Text that is not UTF-8.
    #[error("invalid byte sequence for encoding \"UTF8\". type=`{}`", tag.escape_ascii())]
    Encoding {
        /// The type byte.
        tag: u8,
    },
}

impl<'a> FrontendMessage<'a> {
    /// The message of type `tag` whose payload is `payload`.
    pub fn parse(tag: u8, payload: &'a [u8]) -> Result<Self, FrontendError> {
        let mut body = Body { tag, rest: payload };
        let message = match tag {
            b'Q' => FrontendMessage::Query(body.text()?),
            b'P' => {
                let (statement, query) = (body.text()?, body.text()?);
                let parameter_count = usize::from(body.u16()?);
                body.bytes(parameter_count * 4)?;
                FrontendMessage::Parse { statement, query }
            }
            b'B' => body.bind()?,
            b'D' => FrontendMessage::Describe(body.target()?),
            b'E' => FrontendMessage::Execute { portal: body.text()?, row_count_max: body.u32()? },
            b'C' => FrontendMessage::Close(body.target()?),
            b'S' => FrontendMessage::Sync,
            b'H' => FrontendMessage::Flush,
            b'X' => FrontendMessage::Terminate,
            b'd' => FrontendMessage::CopyData(std::mem::take(&mut body.rest)),
            b'c' => FrontendMessage::CopyDone,
            b'f' => FrontendMessage::CopyFail(body.text()?),
            b'F' => {
                body.rest = &[];
                FrontendMessage::FunctionCall
            }
            tag => return Err(FrontendError::Type { tag }),
        };
        if body.rest.is_empty() { Ok(message) } else { Err(FrontendError::Layout { tag }) }
    }
}

struct Body<'a> {
    tag: u8,
    rest: &'a [u8],
}

impl<'a> Body<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], FrontendError> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or(FrontendError::Layout { tag: self.tag })?;
        self.rest = rest;
        Ok(head)
    }

    fn u8(&mut self) -> Result<u8, FrontendError> {
        Ok(self.bytes(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, FrontendError> {
        let bytes = self.bytes(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, FrontendError> {
        let bytes = self.bytes(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn text(&mut self) -> Result<&'a str, FrontendError> {
        let tag = self.tag;
        let len = self.rest.iter().position(|byte| *byte == 0).ok_or(FrontendError::Layout { tag })?;
        let text = std::str::from_utf8(self.bytes(len)?).map_err(|_| FrontendError::Encoding { tag })?;
        self.bytes(1)?;
        Ok(text)
    }

    fn target(&mut self) -> Result<Target<'a>, FrontendError> {
        match self.u8()? {
            b'S' => Ok(Target::Statement(self.text()?)),
            b'P' => Ok(Target::Portal(self.text()?)),
            _ => Err(FrontendError::Layout { tag: self.tag }),
        }
    }

    fn bind(&mut self) -> Result<FrontendMessage<'a>, FrontendError> {
        let (portal, statement) = (self.text()?, self.text()?);
        self.formats()?;
        let parameter_count = usize::from(self.u16()?);
        for _ in 0..parameter_count {
            // -1 is NULL: no bytes follow.
            if let Ok(len) = usize::try_from(self.u32()?.cast_signed()) {
                self.bytes(len)?;
            }
        }
        let result_formats = self.formats()?;
        Ok(FrontendMessage::Bind { portal, statement, parameter_count, result_formats })
    }

    fn formats(&mut self) -> Result<Formats, FrontendError> {
        let count = usize::from(self.u16()?);
        // Taken before anything is allocated: the message must hold as many as it says.
        let codes = self.bytes(count * 2)?;
        let format = |code: &[u8]| match code {
            [0, 0] => Ok(Format::Text),
            [0, 1] => Ok(Format::Binary),
            _ => Err(FrontendError::Layout { tag: self.tag }),
        };
        codes.chunks_exact(2).map(format).collect::<Result<_, _>>().map(Formats::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tag: u8, payload: &[u8], expect: FrontendMessage<'_>) {
        assert_eq!(FrontendMessage::parse(tag, payload), Ok(expect));
        for length in 0..payload.len() {
            let cut = FrontendMessage::parse(tag, &payload[..length]);
            assert!(cut.is_err() || tag == b'd', "{} cut to {length}", tag.escape_ascii());
        }
        let longer = [payload, b"\0"].concat();
        assert!(FrontendMessage::parse(tag, &longer).is_err() || tag == b'd');
    }

    #[test]
    fn golden_messages() {
        check(b'Q', b"help\0", FrontendMessage::Query("help"));
        check(b'P', b"s\0help\0\0\x01\0\0\0\x19", FrontendMessage::Parse { statement: "s", query: "help" });
        let result_formats = Formats::new(vec![Format::Text, Format::Binary]);
        check(
            b'B',
            b"p\0s\0\0\x01\0\x01\0\x02\0\0\0\x03abc\xff\xff\xff\xff\0\x02\0\0\0\x01",
            FrontendMessage::Bind { portal: "p", statement: "s", parameter_count: 2, result_formats },
        );
        check(b'D', b"Ss\0", FrontendMessage::Describe(Target::Statement("s")));
        check(b'C', b"P\0", FrontendMessage::Close(Target::Portal("")));
        check(b'E', b"p\0\0\0\0\x07", FrontendMessage::Execute { portal: "p", row_count_max: 7 });
        check(b'S', b"", FrontendMessage::Sync);
        check(b'H', b"", FrontendMessage::Flush);
        check(b'X', b"", FrontendMessage::Terminate);
        check(b'd', b"\x00\x01", FrontendMessage::CopyData(&[0, 1]));
        check(b'c', b"", FrontendMessage::CopyDone);
        check(b'f', b"why\0", FrontendMessage::CopyFail("why"));
    }

    #[test]
    fn refusals() {
        let layout = |tag| Err(FrontendError::Layout { tag });
        assert_eq!(FrontendMessage::parse(b'?', b""), Err(FrontendError::Type { tag: b'?' }));
        assert_eq!(FrontendMessage::parse(b'Q', b"\xff\0"), Err(FrontendError::Encoding { tag: b'Q' }));
        assert_eq!(FrontendMessage::parse(b'Q', b"a\0b\0"), layout(b'Q'));
        assert_eq!(FrontendMessage::parse(b'D', b"Xs\0"), layout(b'D'));
        assert_eq!(FrontendMessage::parse(b'B', b"\0\0\0\x01\0\x02\0\0\0\0"), layout(b'B'));
        assert_eq!(FrontendMessage::parse(b'P', b"\0\0\xff\xff"), layout(b'P'));
    }
}
