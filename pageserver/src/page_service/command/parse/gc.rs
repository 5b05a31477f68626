//! Forms of commands about garbage collection.

use super::Parser;
use crate::page_service::command::Command;
use crate::page_service::error::PgError;
use crate::page_service::gc::GcCommand;
use crate::timeline::gc::OwnRetention;

impl Parser<'_> {
    /// Behind `GC`.
    pub(super) fn gc(&mut self) -> Result<Command, PgError> {
        let command = match self.keyword_text().as_deref() {
            Some("status") => GcCommand::Status { timeline: self.optional_name()? },
            Some("run") => GcCommand::Run { timeline: self.optional_name()?, dry_run: false },
            Some("plan") => GcCommand::Run { timeline: self.optional_name()?, dry_run: true },
            Some("pause") => GcCommand::Pause { paused: true },
            Some("resume") => GcCommand::Pause { paused: false },
            _ => return Err(self.unexpected_here("STATUS, RUN, PLAN, PAUSE or RESUME")),
        };
        self.finish(Command::Gc(command))
    }

    /// Behind `TIMELINE RETENTION`.
    pub(super) fn retention(&mut self) -> Result<Command, PgError> {
        let timeline = self.name("a timeline")?;
        let change = if self.at_keyword("default") {
            self.next += 1;
            Some(None)
        } else {
            let time = self.optional("time", "a stretch of time like '7d'")?;
            let wal = self.optional("wal", "a size like '1GiB'")?;
            (time.is_some() || wal.is_some()).then_some(Some(OwnRetention { time, wal }))
        };
        self.finish(Command::Gc(GcCommand::Retention { timeline, change }))
    }
}
