//! Proves to the server who we are, in the way it asks for: nothing, cleartext, md5 or SCRAM-SHA-256 with or without channel binding.

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::frontend;

use super::conninfo::{ChannelBindingMode, Password};
use super::error::{ReplicationError, ServerError, protocol};
use super::frames::{Body, Frame, Frames};

/// What the login knows about us.
pub(super) struct Credentials<'a> {
    pub(super) user: &'a str,
    pub(super) password: Option<Password>,
    pub(super) channel_binding: ChannelBindingMode,
    /// Binding data of the TLS connection, if there is one and its certificate has them.
    pub(super) tls_server_end_point: Option<Vec<u8>>,
}

// Kinds of Authentication messages. PG: src/include/libpq/protocol.h (17), AUTH_REQ_*.
const AUTH_OK: i32 = 0;
const AUTH_KERBEROS_V5: i32 = 2;
const AUTH_CLEARTEXT: i32 = 3;
const AUTH_MD5: i32 = 5;
const AUTH_GSS: i32 = 7;
const AUTH_SSPI: i32 = 9;
const AUTH_SASL: i32 = 10;
const AUTH_SASL_CONTINUE: i32 = 11;
const AUTH_SASL_FINAL: i32 = 12;

/// Answers the server's requests until it says that all is well.
pub(super) fn authenticate(frames: &mut Frames, credentials: &Credentials<'_>) -> Result<(), ReplicationError> {
    let mut bound = false;
    loop {
        let frame = next_frame(frames)?;
        let mut body = Body(&frame.body);
        let request = body.i32()?;
        if credentials.channel_binding == ChannelBindingMode::Require && request != AUTH_SASL && !bound {
            return Err(ReplicationError::Scram { reason: "the server did not use channel binding".into() });
        }
        let mut answer = BytesMut::new();
        match request {
            AUTH_OK => return Ok(()),
            AUTH_CLEARTEXT => frontend::password_message(password(credentials)?.as_bytes(), &mut answer)?,
            AUTH_MD5 => {
                let salt = body.bytes(4)?.try_into().map_err(|_| protocol("bad md5 salt"))?;
                let hash = md5_hash(credentials.user.as_bytes(), password(credentials)?.as_bytes(), salt);
                frontend::password_message(hash.as_bytes(), &mut answer)?;
            }
            AUTH_SASL => {
                bound = scram(frames, credentials, body)?;
                continue;
            }
            other => {
                let method = match other {
                    AUTH_KERBEROS_V5 => "Kerberos V5".to_owned(),
                    AUTH_GSS => "GSSAPI".to_owned(),
                    AUTH_SSPI => "SSPI".to_owned(),
                    other => format!("number {other}"),
                };
                return Err(ReplicationError::AuthenticationMethod { method });
            }
        }
        frames.send(&answer)?;
    }
}

fn password<'a>(credentials: &'a Credentials<'_>) -> Result<&'a Password, ReplicationError> {
    let missing = || ReplicationError::PasswordMissing { user: credentials.user.to_owned() };
    credentials.password.as_ref().ok_or_else(missing)
}

/// The next Authentication message; an error of the server is ours.
fn next_frame(frames: &mut Frames) -> Result<Frame, ReplicationError> {
    loop {
        let frame = frames.next()?;
        match frame.tag {
            b'R' => return Ok(frame),
            b'E' => return Err(ReplicationError::Server(Box::new(ServerError::parse(&frame.body)))),
            // NoticeResponse, NegotiateProtocolVersion
            b'N' | b'v' => {}
            tag => return Err(protocol(format!("message {:?} during the login", char::from(tag)))),
        }
    }
}

/// One SCRAM exchange. True when it was bound to the TLS connection.
fn scram(frames: &mut Frames, credentials: &Credentials<'_>, mut body: Body<'_>) -> Result<bool, ReplicationError> {
    let failed = |error: std::io::Error| ReplicationError::Scram { reason: error.to_string() };
    let (mut plain, mut plus) = (false, false);
    loop {
        match body.text()? {
            "" => break,
            SCRAM_SHA_256 => plain = true,
            SCRAM_SHA_256_PLUS => plus = true,
            _ => {}
        }
    }
    let binding_data = match credentials.channel_binding {
        ChannelBindingMode::Disable => None,
        ChannelBindingMode::Prefer | ChannelBindingMode::Require => credentials.tls_server_end_point.clone(),
    };
    let (mechanism, binding, bound) = match binding_data {
        Some(data) if plus => (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(data), true),
        // "We could, but you seem not to": a server that does offer it takes this as the sign of somebody in between.
        Some(_) if plain => (SCRAM_SHA_256, ChannelBinding::unrequested(), false),
        None if plain => (SCRAM_SHA_256, ChannelBinding::unsupported(), false),
        _ => return Err(ReplicationError::AuthenticationMethod { method: "SASL without SCRAM-SHA-256".into() }),
    };
    if credentials.channel_binding == ChannelBindingMode::Require && !bound {
        return Err(ReplicationError::Scram { reason: "channel binding is not possible on this connection".into() });
    }
    let mut scram = ScramSha256::new(password(credentials)?.as_bytes(), binding);
    let mut message = BytesMut::new();
    frontend::sasl_initial_response(mechanism, scram.message(), &mut message)?;
    frames.send(&message)?;
    scram.update(sasl_data(&next_frame(frames)?, AUTH_SASL_CONTINUE)?).map_err(failed)?;
    message.clear();
    frontend::sasl_response(scram.message(), &mut message)?;
    frames.send(&message)?;
    scram.finish(sasl_data(&next_frame(frames)?, AUTH_SASL_FINAL)?).map_err(failed)?;
    Ok(bound)
}

fn sasl_data(frame: &Frame, expected: i32) -> Result<&[u8], ReplicationError> {
    let mut body = Body(&frame.body);
    if body.i32()? != expected {
        return Err(protocol("SCRAM messages out of order"));
    }
    Ok(body.0)
}
