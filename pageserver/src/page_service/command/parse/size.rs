//! Form of `SIZE`.

use super::Parser;
use crate::page_service::command::Command;
use crate::page_service::error::PgError;
use crate::page_service::size::SizeCommand;

impl Parser<'_> {
    /// Behind `SIZE`. A timeline called `at` or `pins` is written in quotes.
    pub(super) fn size(&mut self) -> Result<Command, PgError> {
        let is_clause = self.at_keyword("at") || self.at_keyword("pins");
        let timeline = if is_clause { None } else { self.optional_name()? };
        let at = self.optional("at", "an LSN")?;
        let pins = self.at_keyword("pins");
        self.next += usize::from(pins);
        self.finish(Command::Size(SizeCommand { timeline, at, pins }))
    }
}
