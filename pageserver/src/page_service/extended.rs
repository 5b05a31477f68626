//! The state of the extended query protocol: prepared statements, portals, and whether messages are skipped until Sync.
//!
//! - Statements take no parameters. A transaction changes nothing but how long portals live: to its end instead of to the next Sync.
//! - Statements, portals and the rows that they hold are bounded in number and in bytes, for the whole connection.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::command::rows::Formats;
use super::command::{Command, parse};
use super::error::{PgError, sqlstate};
use super::frontend::Target;
use super::message::{self, Column};

/// Statements and portals of one connection. A driver's cache holds a few hundred.
const NAMED_MAX: usize = 2_000;

/// What all of them, and the rows that are held, take together.
const BYTES_MAX: usize = 64 << 20;
/// What one takes besides its texts.
const ENTRY_BYTES: usize = 256;
/// What a row that is held takes besides its values.
pub const ROW_BYTES: usize = 64;

/// A statement that was prepared. `None`: the empty query.
#[derive(Debug)]
struct Statement {
    command: Option<Arc<Command>>,
    /// Of the query's text, which the command cannot be much larger than.
    bytes: usize,
}

/// Rows that wait for the client to ask for them, encoded.
pub type HeldRows = VecDeque<Vec<u8>>;

/// A statement bound to formats, and how far it has run.
#[derive(Debug, Default)]
pub struct Portal {
    /// `None`: the empty query.
    pub command: Option<Arc<Command>>,
    /// Bytes of the query's text: the statement may be gone by now.
    command_bytes: usize,
    /// Formats of its columns.
    pub formats: Formats,
    /// Rows not given yet, once it has run.
    pub held: Option<HeldRows>,
    /// Rows given by the last call of `give`.
    pub given: usize,
}

impl Portal {
    /// Appends up to `row_count_max` held rows (0: all) to `out`. True when rows are left.
    pub fn give(&mut self, row_count_max: u32, out: &mut Vec<u8>) -> bool {
        let Some(held) = &mut self.held else { return false };
        let limit = if row_count_max == 0 { usize::MAX } else { row_count_max as usize };
        self.given = held.len().min(limit);
        held.drain(..self.given).for_each(|row| out.extend_from_slice(&row));
        !held.is_empty()
    }

    fn bytes(&self) -> usize {
        self.command_bytes + self.held.iter().flatten().map(|row| ROW_BYTES + row.len()).sum::<usize>()
    }
}

/// Prepared statements and portals.
#[derive(Debug, Default)]
pub struct Extended {
    statements: HashMap<String, Statement>,
    portals: HashMap<String, Portal>,
    /// Set by an error, cleared by Sync.
    pub skips_until_sync: bool,
    /// Between BEGIN and COMMIT or ROLLBACK.
    pub in_transaction: bool,
}

/// The answer to Describe.
#[derive(Debug)]
pub struct Description {
    columns: &'static [Column],
    formats: Formats,
    of_statement: bool,
}

impl Description {
    /// Appends ParameterDescription (of a statement) and RowDescription or NoData.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        if self.of_statement {
            message::no_parameters(out);
        }
        if self.columns.is_empty() {
            message::bare(out, b'n');
        } else {
            message::row_description(out, self.columns, |i| self.formats.of(i));
        }
    }
}

impl Extended {
    /// Parse: prepares `query` as `statement`.
    pub fn parse(&mut self, statement: &str, query: &str) -> Result<(), PgError> {
        if !statement.is_empty() && self.statements.contains_key(statement) {
            let message = format!("prepared statement \"{statement}\" already exists");
            return Err(PgError::new(sqlstate::DUPLICATE_PREPARED_STATEMENT, message));
        }
        let mut commands = parse::parse(query)?;
        if commands.len() > 1 {
            let message = "cannot insert multiple commands into a prepared statement";
            return Err(PgError::new(sqlstate::SYNTAX_ERROR, message));
        }
        let bytes = query.len();
        self.check_room(self.statements.len(), statement.len() + bytes)?;
        let command = commands.pop().map(Arc::new);
        self.statements.insert(statement.to_owned(), Statement { command, bytes });
        Ok(())
    }

    /// Bind: makes `portal` of `statement`.
    pub fn bind(
        &mut self,
        portal: &str,
        statement: &str,
        parameter_count: usize,
        formats: Formats,
    ) -> Result<(), PgError> {
        let Statement { command, bytes: command_bytes } = self.statement(statement)?;
        let (command, command_bytes) = (command.clone(), *command_bytes);
        if parameter_count > 0 {
            let message = format!(
                "bind message supplies {parameter_count} parameters, but prepared statement \"{statement}\" requires 0"
            );
            return Err(PgError::new(sqlstate::PROTOCOL_VIOLATION, message));
        }
        let column_count = command.as_ref().map_or(0, |command| command.columns().len());
        if formats.len() > 1 && formats.len() != column_count {
            let message =
                format!("bind message has {} result formats but query has {column_count} columns", formats.len());
            return Err(PgError::new(sqlstate::PROTOCOL_VIOLATION, message));
        }
        self.check_room(self.portals.len(), portal.len() + command_bytes)?;
        self.portals.insert(portal.to_owned(), Portal { command, command_bytes, formats, ..Portal::default() });
        Ok(())
    }

    /// Describe.
    pub fn describe(&self, target: Target<'_>) -> Result<Description, PgError> {
        let columns = |command: &Option<Arc<Command>>| command.as_ref().map_or(&[][..], |command| command.columns());
        match target {
            Target::Statement(name) => {
                let columns = columns(&self.statement(name)?.command);
                Ok(Description { columns, formats: Formats::default(), of_statement: true })
            }
            Target::Portal(name) => {
                let portal = self.portals.get(name).ok_or_else(|| no_portal(name))?;
                let columns = columns(&portal.command);
                Ok(Description { columns, formats: portal.formats.clone(), of_statement: false })
            }
        }
    }

    /// Takes a portal out, to run it; [`Extended::put_portal`] puts it back.
    pub fn take_portal(&mut self, name: &str) -> Result<Portal, PgError> {
        self.portals.remove(name).ok_or_else(|| no_portal(name))
    }

    /// Puts a portal back that was taken.
    pub fn put_portal(&mut self, name: &str, portal: Portal) {
        self.portals.insert(name.to_owned(), portal);
    }

    /// Close. What does not exist is closed already.
    pub fn close(&mut self, target: Target<'_>) {
        match target {
            Target::Statement(name) => drop(self.statements.remove(name)),
            Target::Portal(name) => drop(self.portals.remove(name)),
        }
    }

    /// `DEALLOCATE name`, `DEALLOCATE ALL`.
    pub fn deallocate(&mut self, name: Option<&str>) -> Result<(), PgError> {
        match name {
            Some(name) => self.statements.remove(name).map(drop).ok_or_else(|| no_statement(name)),
            None => {
                self.statements.clear();
                Ok(())
            }
        }
    }

    /// Sync.
    pub fn sync(&mut self) {
        self.skips_until_sync = false;
        if !self.in_transaction {
            self.portals.clear();
        }
    }

    /// BEGIN (`true`), COMMIT or ROLLBACK.
    pub fn set_in_transaction(&mut self, in_transaction: bool) {
        self.in_transaction = in_transaction;
        if !in_transaction {
            self.portals.clear();
        }
    }

    /// A simple query uses up the unnamed ones.
    pub fn forget_unnamed(&mut self) {
        self.statements.remove("");
        self.portals.remove("");
    }

    fn statement(&self, name: &str) -> Result<&Statement, PgError> {
        self.statements.get(name).ok_or_else(|| no_statement(name))
    }

    /// How many more bytes there may be on this connection.
    pub fn bytes_left(&self) -> usize {
        let statements = self.statements.iter().map(|(name, statement)| ENTRY_BYTES + name.len() + statement.bytes);
        let portals = self.portals.iter().map(|(name, portal)| ENTRY_BYTES + name.len() + portal.bytes());
        BYTES_MAX.saturating_sub(statements.chain(portals).sum())
    }

    /// For one more that is like `count` others.
    fn check_room(&self, count: usize, bytes: usize) -> Result<(), PgError> {
        if count < NAMED_MAX && ENTRY_BYTES + bytes <= self.bytes_left() {
            return Ok(());
        }
        let message = format!(
            "too many prepared statements or portals on this connection. count_max=`{NAMED_MAX}`, bytes_max=`{BYTES_MAX}`"
        );
        Err(PgError::new(sqlstate::CONFIGURATION_LIMIT_EXCEEDED, message).with_hint("Close those that are not needed."))
    }
}

fn no_statement(name: &str) -> PgError {
    PgError::new(sqlstate::INVALID_SQL_STATEMENT_NAME, format!("prepared statement \"{name}\" does not exist"))
}

fn no_portal(name: &str) -> PgError {
    PgError::new(sqlstate::INVALID_CURSOR_NAME, format!("portal \"{name}\" does not exist"))
}
