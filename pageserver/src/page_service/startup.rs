//! The first packets of a connection: SSL and GSS requests, cancel requests, the startup packet.
//!
//! `length i32 (counts itself) | code u32 | ...`, no type byte. PG 18: src/backend/tcop/backend_startup.c, ProcessStartupPacket;
//! src/include/libpq/pqcomm.h for the codes.
//!
//! - Lengths are checked before anything is stored; names and values must be UTF-8.

/// Longest packet taken. PG 18: src/include/libpq/pqcomm.h, MAX_STARTUP_PACKET_LENGTH.
pub const STARTUP_PACKET_BYTES_MAX: usize = 10_000;
/// The newest protocol version that we speak, as 18's libpq may ask for: cancel keys may be longer than 4 bytes.
pub const PROTOCOL_3_2: u32 = 3 << 16 | 2;
/// What everybody speaks.
pub const PROTOCOL_3_0: u32 = 3 << 16;

const CANCEL_REQUEST_CODE: u32 = 1234 << 16 | 5678;
const SSL_REQUEST_CODE: u32 = 1234 << 16 | 5679;
const GSSENC_REQUEST_CODE: u32 = 1234 << 16 | 5680;
/// PG 18: src/include/libpq/pqcomm.h, MAX_CANCEL_KEY_LENGTH is 32; the documentation allows 256.
const CANCEL_KEY_BYTES_MAX: usize = 256;

/// What a first packet asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstPacket {
    /// May we talk TLS?
    SslRequest,
    /// May we talk GSSAPI encryption?
    GssEncRequest,
    /// Cancel what another connection does.
    Cancel {
        /// The other connection.
        connection_id: u32,
        /// What only its client knows.
        secret: Vec<u8>,
    },
    /// Start a session.
    Startup(Startup),
}

/// The startup packet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Startup {
    /// The version that is spoken from now on.
    pub protocol: u32,
    /// True when the client must be told that it is not the version it asked for, or that options are unknown.
    pub negotiate: bool,
    /// Options of the protocol (`_pq_.`) that we do not know.
    pub unknown_options: Vec<String>,
    /// User name, not empty.
    pub user: String,
    /// Database name; the user's when none was given.
    pub database: String,
    /// What the client calls itself.
    pub application_name: String,
}

/// Not a packet that a client starts with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    /// The length cannot be.
    #[error("invalid length of startup packet. length=`{length}`")]
    Length {
        /// The length it claims.
        length: u32,
    },
    /// Another major version.
    #[error("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2")]
    Protocol {
        /// Its high half.
        major: u32,
        /// Its low half.
        minor: u32,
    },
    /// The list of names and values does not end as it must.
    #[error("invalid startup packet layout: expected names and values, each ended by a zero, and a zero at the end")]
    Layout,
    /// A name or value that is not UTF-8.
    #[error("startup packet is not UTF-8")]
    Encoding,
    /// No user.
    #[error("no user name specified in startup packet")]
    NoUser,
}

/// Length of the packet that `bytes` begin with, itself included; `None` if its first 4 bytes are not there yet.
pub fn packet_len(bytes: &[u8]) -> Result<Option<usize>, StartupError> {
    let Some(length) = bytes.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes)) else { return Ok(None) };
    match usize::try_from(length) {
        Ok(len) if (8..=STARTUP_PACKET_BYTES_MAX).contains(&len) => Ok(Some(len)),
        _ => Err(StartupError::Length { length }),
    }
}

/// Parses one packet of exactly the length that [`packet_len`] gave.
pub fn parse(packet: &[u8]) -> Result<FirstPacket, StartupError> {
    let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
    let (Some(&[_, _, _, _, a, b, c, d]), Some(rest)) = (packet.first_chunk::<8>(), packet.get(8..)) else {
        return Err(StartupError::Length { length });
    };
    match u32::from_be_bytes([a, b, c, d]) {
        SSL_REQUEST_CODE if rest.is_empty() => Ok(FirstPacket::SslRequest),
        GSSENC_REQUEST_CODE if rest.is_empty() => Ok(FirstPacket::GssEncRequest),
        CANCEL_REQUEST_CODE => match rest.split_first_chunk::<4>() {
            Some((connection_id, secret)) if secret.len() <= CANCEL_KEY_BYTES_MAX => {
                Ok(FirstPacket::Cancel { connection_id: u32::from_be_bytes(*connection_id), secret: secret.to_vec() })
            }
            _ => Err(StartupError::Length { length }),
        },
        version => parse_startup(version, rest).map(FirstPacket::Startup),
    }
}

fn parse_startup(version: u32, options: &[u8]) -> Result<Startup, StartupError> {
    let (major, minor) = (version >> 16, version & 0xFFFF);
    if major != 3 {
        return Err(StartupError::Protocol { major, minor });
    }
    // 3.1 was never anything (PG 18: libpq refuses it by name); whoever asks for more than 3.2 gets 3.2.
    let protocol = if version >= PROTOCOL_3_2 { PROTOCOL_3_2 } else { PROTOCOL_3_0 };
    let mut startup = Startup { protocol, negotiate: protocol != version, ..Startup::default() };
    let text = std::str::from_utf8(options).map_err(|_| StartupError::Encoding)?;
    // name NUL value NUL ... NUL: cut at NULs, the list ends with an empty name and then nothing.
    let body = text.strip_suffix('\0').ok_or(StartupError::Layout)?;
    if !body.is_empty() {
        let body = body.strip_suffix('\0').ok_or(StartupError::Layout)?;
        let mut parts = body.split('\0');
        while let Some(name) = parts.next() {
            let value = parts.next().ok_or(StartupError::Layout)?;
            startup.set(name, value)?;
        }
    }
    if startup.user.is_empty() {
        return Err(StartupError::NoUser);
    }
    if startup.database.is_empty() {
        startup.database.clone_from(&startup.user);
    }
    Ok(startup)
}

impl Startup {
    fn set(&mut self, name: &str, value: &str) -> Result<(), StartupError> {
        match name {
            "" => return Err(StartupError::Layout),
            "user" => self.user = value.to_owned(),
            "database" => self.database = value.to_owned(),
            "application_name" => self.application_name = value.to_owned(),
            option if option.starts_with("_pq_.") => {
                self.negotiate = true;
                self.unknown_options.push(option.to_owned());
            }
            _ => {} // `options`, `client_encoding`, any GUC: nothing here depends on one.
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(code: u32, rest: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(8 + rest.len()).expect("small").to_be_bytes().to_vec();
        bytes.extend_from_slice(&code.to_be_bytes());
        bytes.extend_from_slice(rest);
        bytes
    }

    fn check(code: u32, rest: &[u8], expect: Result<FirstPacket, StartupError>) {
        let bytes = packet(code, rest);
        assert_eq!(packet_len(&bytes), Ok(Some(bytes.len())));
        assert_eq!(parse(&bytes), expect, "{code:#x} {}", rest.escape_ascii());
    }

    fn startup(protocol: u32, negotiate: bool, user: &str, database: &str) -> Result<FirstPacket, StartupError> {
        let (user, database) = (user.to_owned(), database.to_owned());
        Ok(FirstPacket::Startup(Startup { protocol, negotiate, user, database, ..Startup::default() }))
    }

    #[test]
    fn first_packets() {
        check(SSL_REQUEST_CODE, b"", Ok(FirstPacket::SslRequest));
        check(GSSENC_REQUEST_CODE, b"", Ok(FirstPacket::GssEncRequest));
        let cancel = FirstPacket::Cancel { connection_id: 5, secret: b"abcd".to_vec() };
        check(CANCEL_REQUEST_CODE, b"\0\0\0\x05abcd", Ok(cancel));
        check(PROTOCOL_3_0, b"user\0joe\0\0", startup(PROTOCOL_3_0, false, "joe", "joe"));
        check(PROTOCOL_3_0, b"user\0joe\0database\0d\0x\0y\0\0", startup(PROTOCOL_3_0, false, "joe", "d"));
        check(PROTOCOL_3_0 + 1, b"user\0joe\0\0", startup(PROTOCOL_3_0, true, "joe", "joe"));
        check(PROTOCOL_3_2, b"user\0joe\0\0", startup(PROTOCOL_3_2, false, "joe", "joe"));
        check(PROTOCOL_3_0 + 9999, b"user\0joe\0\0", startup(PROTOCOL_3_2, true, "joe", "joe"));
    }

    #[test]
    fn unknown_protocol_options_are_named() {
        let Ok(FirstPacket::Startup(found)) = parse(&packet(PROTOCOL_3_0, b"user\0j\0_pq_.grease\0\0\0")) else {
            panic!("refused");
        };
        assert!(found.negotiate);
        assert_eq!(found.unknown_options, ["_pq_.grease"]);
    }

    #[test]
    fn refuses_what_cannot_be() {
        check(2 << 16, b"user\0joe\0\0", Err(StartupError::Protocol { major: 2, minor: 0 }));
        check(PROTOCOL_3_0, b"", Err(StartupError::Layout));
        check(PROTOCOL_3_0, b"\0", Err(StartupError::NoUser));
        check(PROTOCOL_3_0, b"user\0joe\0", Err(StartupError::Layout));
        check(PROTOCOL_3_0, b"user\0joe", Err(StartupError::Layout));
        check(PROTOCOL_3_0, b"user\0\0", Err(StartupError::Layout));
        check(PROTOCOL_3_0, b"user\0joe\0\0\0\0", Err(StartupError::Layout));
        check(PROTOCOL_3_0, b"user\0j\xff\0\0", Err(StartupError::Encoding));
        check(CANCEL_REQUEST_CODE, b"\0\0\0", Err(StartupError::Length { length: 11 }));
        for length in [0_u32, 7, 10_001, u32::MAX, u32::from_be_bytes(*b"GET ")] {
            assert_eq!(packet_len(&length.to_be_bytes()), Err(StartupError::Length { length }));
        }
        assert_eq!(packet_len(b"\0\0\0"), Ok(None));
    }
}
