//! One connection: startup, then messages until the end. Runs on a thread of its own.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::command::rows::{Formats, Rows};
use super::command::{Command, parse, run};
use super::error::{End, Failure, PgError, sqlstate};
use super::extended::Extended;
use super::frame::Frame;
use super::frontend::{FrontendError, FrontendMessage};
use super::message::{self, Severity};
use super::pagestream;
use super::server::{Control, Shared};
use super::startup::{self, FirstPacket, PROTOCOL_3_2, Startup};
use super::transport::Wire;
use super::{basebackup, wal_file};

/// What we say we are. Clients derive features from the number in front.
pub const SERVER_VERSION: &str = concat!("15.0 (pageserver ", env!("CARGO_PKG_VERSION"), ")");

/// Parameters that clients ask for. The first ones are told at startup.
pub const PARAMETERS: &[(&str, &str)] = &[
    ("server_version", SERVER_VERSION),
    ("server_encoding", "UTF8"),
    ("client_encoding", "UTF8"),
    ("integer_datetimes", "on"),
    ("standard_conforming_strings", "on"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("is_superuser", "off"),
    ("in_hot_standby", "off"),
    ("default_transaction_read_only", "off"),
    ("transaction_read_only", "off"),
    ("transaction_isolation", "read committed"),
    ("search_path", "public"),
    ("max_identifier_length", "63"),
];
const PARAMETERS_TOLD: usize = 11;
const _: () = assert!(PARAMETERS_TOLD < PARAMETERS.len());

/// Packets before the startup packet: one question for TLS, one for GSSAPI.
const QUESTIONS_MAX: usize = 2;

/// Serves one client until it goes. `has_room` false: refuse it with 53300.
pub(super) fn run(
    stream: Arc<TcpStream>,
    peer: SocketAddr,
    control: Arc<Control>,
    shared: &Arc<Shared>,
    has_room: bool,
) {
    let span = tracing::info_span!("connection", %peer, connection_id = control.connection_id);
    let _entered = span.enter();
    let wire = Wire::new(stream, control.clone(), shared.shutting_down.clone());
    let mut connection = Connection { wire, control, shared: shared.clone(), extended: Extended::default() };
    let end = match connection.start(has_room) {
        Ok(Some(startup)) => {
            tracing::debug!(user = startup.user, application_name = startup.application_name, "client connected");
            connection.serve().err().unwrap_or(End::Client)
        }
        Ok(None) => End::Client, // A cancel request: closed without an answer.
        Err(end) => end,
    };
    connection.end(end);
}

struct Connection {
    wire: Wire,
    control: Arc<Control>,
    shared: Arc<Shared>,
    extended: Extended,
}

impl Connection {
    /// Everything up to the first ReadyForQuery. `None`: it was a cancel request.
    fn start(&mut self, has_room: bool) -> Result<Option<Startup>, End> {
        let deadline = Instant::now() + self.shared.config.startup_timeout;
        for _ in 0..=QUESTIONS_MAX {
            match self.first_packet(deadline)? {
                FirstPacket::SslRequest | FirstPacket::GssEncRequest => {
                    self.wire.out.bytes().push(b'N');
                    self.wire.flush()?;
                }
                FirstPacket::Cancel { connection_id, secret } => {
                    self.shared.cancel(connection_id, &secret);
                    return Ok(None);
                }
                FirstPacket::Startup(startup) => {
                    if !has_room {
                        return Err(self.refuse_for_room());
                    }
                    self.greet(&startup);
                    self.wire.set_idle_timeout(self.shared.config.idle_timeout)?;
                    return Ok(Some(startup));
                }
            }
        }
        Err(End::protocol("too many negotiation requests before the startup packet"))
    }

    fn first_packet(&mut self, deadline: Instant) -> Result<FirstPacket, End> {
        let refused = |error: startup::StartupError| {
            let sqlstate = match error {
                startup::StartupError::NoUser => sqlstate::INVALID_AUTHORIZATION,
                startup::StartupError::Protocol { .. } => sqlstate::FEATURE_NOT_SUPPORTED,
                _ => sqlstate::PROTOCOL_VIOLATION,
            };
            End::Fatal(PgError::new(sqlstate, error.to_string()))
        };
        let head = self.wire.first_bytes(4, deadline)?;
        let len = startup::packet_len(head).map_err(refused)?.unwrap_or(0);
        let packet = startup::parse(self.wire.first_bytes(len, deadline)?).map_err(refused)?;
        self.wire.consume(len);
        Ok(packet)
    }

    fn refuse_for_room(&self) -> End {
        self.shared.counters.refused_total.fetch_add(1, Ordering::Relaxed);
        let error = PgError::new(sqlstate::TOO_MANY_CONNECTIONS, "sorry, too many clients already");
        let connections_max = self.shared.config.connections_max;
        End::Fatal(
            error.with_hint(format!("The page server allows {connections_max} connections; close some or allow more.")),
        )
    }

    fn greet(&mut self, startup: &Startup) {
        let out = self.wire.out.bytes();
        if startup.negotiate {
            message::negotiate_protocol_version(out, startup.protocol, &startup.unknown_options);
        }
        message::authentication_ok(out);
        for (name, value) in &PARAMETERS[..PARAMETERS_TOLD] {
            message::parameter_status(out, name, value);
        }
        message::parameter_status(out, "session_authorization", &startup.user);
        message::parameter_status(out, "application_name", &startup.application_name);
        // Before 3.2 the secret is 4 bytes.
        let secret = &self.control.secret;
        let secret = if startup.protocol >= PROTOCOL_3_2 { &secret[..] } else { &secret[..4] };
        self.control.told_bytes.store(secret.len(), Ordering::Relaxed);
        message::backend_key_data(out, self.control.connection_id, secret);
        message::ready_for_query(out, false);
    }

    /// Messages until the end.
    fn serve(&mut self) -> Result<(), End> {
        loop {
            let frame = self.wire.frame()?;
            match self.handle(&frame) {
                Ok(()) => {}
                Err(Failure::Error(error)) => self.fail(frame.tag, &error),
                Err(Failure::End(end)) => return Err(end),
            }
        }
    }

    fn handle(&mut self, frame: &Frame) -> Result<(), Failure> {
        // After an error in the extended protocol everything up to Sync was meant for a state that is not there.
        if self.extended.skips_until_sync && !matches!(frame.tag, b'S' | b'X') {
            return Ok(());
        }
        match FrontendMessage::parse(frame.tag, self.wire.payload(frame)).map_err(malformed)? {
            FrontendMessage::Query(text) => {
                let text = text.to_owned(); // The buffer is needed for what comes while the query runs.
                self.simple_query(&text)
            }
            FrontendMessage::Sync => {
                self.extended.sync();
                message::ready_for_query(self.wire.out.bytes(), self.extended.in_transaction);
                Ok(())
            }
            FrontendMessage::Flush => Ok(self.wire.flush()?),
            FrontendMessage::Terminate => Err(End::Client.into()),
            // Left over from a copy that has failed on our side. PG 15: src/backend/tcop/postgres.c, PostgresMain.
            FrontendMessage::CopyData(_) | FrontendMessage::CopyDone | FrontendMessage::CopyFail(_) => Ok(()),
            FrontendMessage::FunctionCall => {
                Err(PgError::new(sqlstate::FEATURE_NOT_SUPPORTED, "function calls are not supported").into())
            }
            FrontendMessage::Parse { statement, query } => {
                self.extended.parse(statement, query)?;
                message::bare(self.wire.out.bytes(), b'1');
                Ok(())
            }
            FrontendMessage::Bind { portal, statement, parameter_count, result_formats } => {
                self.extended.bind(portal, statement, parameter_count, result_formats)?;
                message::bare(self.wire.out.bytes(), b'2');
                Ok(())
            }
            FrontendMessage::Describe(target) => {
                let description = self.extended.describe(target)?;
                description.append_to(self.wire.out.bytes());
                Ok(())
            }
            FrontendMessage::Close(target) => {
                self.extended.close(target);
                message::bare(self.wire.out.bytes(), b'3');
                Ok(())
            }
            FrontendMessage::Execute { portal, row_count_max } => {
                let portal = portal.to_owned();
                self.execute_portal(&portal, row_count_max)
            }
        }
    }

    /// An ERROR: told, then on with the next query or Sync.
    fn fail(&mut self, tag: u8, error: &PgError) {
        let out = self.wire.out.bytes();
        message::error_response(out, Severity::Error, error);
        match tag {
            b'Q' | b'F' => message::ready_for_query(out, self.extended.in_transaction),
            _ => self.extended.skips_until_sync = true,
        }
    }

    fn simple_query(&mut self, text: &str) -> Result<(), Failure> {
        self.extended.forget_unnamed();
        let commands = parse::parse(text)?;
        if commands.is_empty() {
            message::bare(self.wire.out.bytes(), b'I');
        }
        for command in &commands {
            let tag = self.execute(command, &Formats::default(), true)?;
            message::command_complete(self.wire.out.bytes(), &tag);
        }
        message::ready_for_query(self.wire.out.bytes(), self.extended.in_transaction);
        Ok(())
    }

    /// Runs `command` and sends its rows, described first if it came by the simple protocol. Returns the tag for CommandComplete.
    fn execute(&mut self, command: &Command, formats: &Formats, is_simple: bool) -> Result<String, Failure> {
        self.wire.begin_cancellable();
        match command {
            Command::Pagestream { version, tenant, timeline } => {
                let timeline = self.shared.repository.timeline(tenant.as_deref(), timeline)?;
                pagestream::serve(&mut self.wire, &self.shared, *version, &*timeline, is_simple)?;
                Ok("COPY 0".to_owned())
            }
            Command::BaseBackup(request) => {
                basebackup::serve(&mut self.wire, &self.shared, request)?;
                Ok("BASEBACKUP".to_owned())
            }
            Command::WalGet { timeline, file } => {
                wal_file::serve(&mut self.wire, &self.shared, timeline, file)?;
                Ok("WAL GET".to_owned())
            }
            Command::Ignored { tag } => Ok((*tag).to_owned()),
            Command::Transaction { tag, begins } => {
                self.extended.set_in_transaction(*begins);
                Ok((*tag).to_owned())
            }
            Command::Deallocate { name } => {
                self.extended.deallocate(name.as_deref())?;
                Ok(if name.is_some() { "DEALLOCATE" } else { "DEALLOCATE ALL" }.to_owned())
            }
            _ => {
                let mut rows = Rows::new(&mut self.wire, command.columns(), formats, is_simple);
                run::run(command, &self.shared, &mut rows)?;
                Ok(format!("SELECT {}", rows.finish()))
            }
        }
    }

    fn execute_portal(&mut self, name: &str, row_count_max: u32) -> Result<(), Failure> {
        let mut portal = self.extended.take_portal(name)?;
        let result = self.run_portal(&mut portal, row_count_max);
        self.extended.put_portal(name, portal);
        result
    }

    fn run_portal(&mut self, portal: &mut super::extended::Portal, row_count_max: u32) -> Result<(), Failure> {
        let Some(command) = portal.command.clone() else {
            message::bare(self.wire.out.bytes(), b'I');
            return Ok(());
        };
        if portal.held.is_none() && row_count_max == 0 {
            let tag = self.execute(&command, &portal.formats, false)?;
            portal.held = Some(Default::default()); // Run again, it is at its end.
            message::command_complete(self.wire.out.bytes(), &tag);
            return Ok(());
        }
        if portal.held.is_none() {
            portal.held = Some(self.held_rows(&command, &portal.formats)?);
        }
        if portal.give(row_count_max, self.wire.out.bytes()) {
            message::bare(self.wire.out.bytes(), b's');
        } else {
            message::command_complete(self.wire.out.bytes(), &format!("SELECT {}", portal.given));
        }
        Ok(self.wire.flush_if_much()?)
    }

    /// All rows of a command whose client takes them in portions.
    fn held_rows(&mut self, command: &Command, formats: &Formats) -> Result<super::extended::HeldRows, Failure> {
        if command.columns().is_empty() {
            self.execute(command, formats, false)?;
            return Ok(Default::default());
        }
        self.wire.begin_cancellable();
        let mut rows = Rows::holding(&mut self.wire, command.columns(), formats, self.extended.bytes_left());
        run::run(command, &self.shared, &mut rows)?;
        Ok(rows.into_held())
    }

    /// Last words, if anybody is there to hear them.
    fn end(mut self, end: End) {
        match end {
            End::Client => tracing::debug!("client disconnected"),
            End::Broken(error) => {
                tracing::debug!(%error, "connection lost");
                self.wire.out.clear();
            }
            End::Fatal(error) => {
                tracing::info!(sqlstate = error.sqlstate, message = error.message, "connection ended");
                message::error_response(self.wire.out.bytes(), Severity::Fatal, &error);
                self.wire.close();
            }
        }
    }
}

fn malformed(error: FrontendError) -> Failure {
    match error {
        FrontendError::Encoding { .. } => PgError::new(sqlstate::CHARACTER_NOT_IN_REPERTOIRE, error.to_string()).into(),
        // The stream can no longer be trusted to be cut where we think.
        _ => End::protocol(error.to_string()).into(),
    }
}
