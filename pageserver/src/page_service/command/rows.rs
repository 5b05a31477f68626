//! Rows of one command on their way to the client.

use crate::page_service::error::{Failure, PgError, sqlstate};
use crate::page_service::extended::{HeldRows, ROW_BYTES};
use crate::page_service::message::{self, Column, Format, Value};
use crate::page_service::transport::Wire;

/// Formats of the result columns, as Bind gives them: none means text, one means all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Formats(Vec<Format>);

impl Formats {
    /// The formats that Bind lists.
    pub fn new(formats: Vec<Format>) -> Self {
        Formats(formats)
    }

    /// The format of column `i`.
    pub fn of(&self, i: usize) -> Format {
        match self.0[..] {
            [] => Format::Text,
            [all] => all,
            _ => self.0.get(i).copied().unwrap_or(Format::Text),
        }
    }

    /// How many were listed.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when none was listed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Takes the rows of a command. Rows are sent as they come; nobody holds a whole result.
pub struct Rows<'a> {
    wire: &'a mut Wire,
    columns: &'static [Column],
    formats: &'a Formats,
    /// The simple protocol describes the rows before the first; the extended one has done it on demand.
    describe: bool,
    /// Where rows go instead of the wire, when the client takes them in portions.
    held: Option<HeldRows>,
    held_bytes: usize,
    /// Most that is held for a client that takes rows in portions.
    held_bytes_max: usize,
    count: u64,
}

impl<'a> Rows<'a> {
    /// Rows of `columns`, sent over `wire`.
    pub fn new(wire: &'a mut Wire, columns: &'static [Column], formats: &'a Formats, describe: bool) -> Self {
        Rows { wire, columns, formats, describe, held: None, held_bytes: 0, held_bytes_max: 0, count: 0 }
    }

    /// Rows of `columns`, held for [`Rows::into_held`], no more than `held_bytes_max` of them.
    pub fn holding(
        wire: &'a mut Wire,
        columns: &'static [Column],
        formats: &'a Formats,
        held_bytes_max: usize,
    ) -> Self {
        let held = Some(HeldRows::new());
        Rows { held, held_bytes_max, ..Rows::new(wire, columns, formats, false) }
    }

    /// The rows that were held.
    pub fn into_held(self) -> HeldRows {
        self.held.unwrap_or_default()
    }

    /// Sends one row, one value per column.
    pub fn row(&mut self, values: &[Value]) -> Result<(), Failure> {
        assert!(values.len() == self.columns.len());
        self.describe_once();
        self.count += 1;
        let formats = self.formats;
        match &mut self.held {
            Some(held) => {
                let mut row = Vec::new();
                message::data_row(&mut row, values, |i| formats.of(i));
                self.held_bytes += ROW_BYTES + row.len();
                held.push_back(row);
                check_held(self.held_bytes, self.held_bytes_max)?;
            }
            None => {
                message::data_row(self.wire.out.bytes(), values, |i| formats.of(i));
                self.wire.flush_if_much()?;
            }
        }
        if self.count.is_multiple_of(64) { self.wire.check_interrupts() } else { Ok(()) }
    }

    /// Sends a notice at once.
    pub fn notice(&mut self, text: &str) -> Result<(), Failure> {
        message::notice(self.wire.out.bytes(), text);
        self.wire.flush()?;
        Ok(())
    }

    /// Errors when the work should stop: cancelled, client gone, server going down.
    pub fn check_interrupts(&self) -> Result<(), Failure> {
        self.wire.check_interrupts_and_client()
    }

    /// To be called after the last row. Returns the number of rows.
    pub fn finish(mut self) -> u64 {
        self.describe_once();
        self.count
    }

    fn describe_once(&mut self) {
        if std::mem::take(&mut self.describe) {
            let formats = self.formats;
            message::row_description(self.wire.out.bytes(), self.columns, |i| formats.of(i));
        }
    }
}

fn check_held(held_bytes: usize, held_bytes_max: usize) -> Result<(), PgError> {
    if held_bytes <= held_bytes_max {
        return Ok(());
    }
    let message = format!("result is too large to be taken in portions. held_bytes_max=`{held_bytes_max}`");
    Err(PgError::new(sqlstate::CONFIGURATION_LIMIT_EXCEEDED, message)
        .with_hint("Ask for all rows at once (fetch size 0)."))
}
