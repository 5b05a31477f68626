//! Forms of commands that make and change timelines.

use super::Parser;
use crate::page_service::command::{Command, Conninfo};
use crate::page_service::error::PgError;
use crate::page_service::lease::LeaseCommand;
use crate::page_service::timeline_change::TimelineChange;
use crate::timeline::{BranchPoint, SlotThen};

impl Parser<'_> {
    /// Behind `BRANCH`.
    pub(super) fn branch(&mut self) -> Result<Command, PgError> {
        let change = match self.keyword_text().as_deref() {
            Some("create") => {
                let name = self.name("a name for the branch")?;
                self.then("from")?;
                let timeline = self.name("a timeline")?;
                TimelineChange::CreateBranch { name, timeline, point: self.branch_point()? }
            }
            Some("delete") => TimelineChange::Delete { timeline: self.name("a branch")? },
            Some("rename") => {
                let timeline = self.name("a branch")?;
                self.then("to")?;
                TimelineChange::Rename { timeline, new_name: self.name("a new name")? }
            }
            Some("reset") => {
                let timeline = self.name("a branch")?;
                TimelineChange::Reset { timeline, point: self.branch_point()? }
            }
            Some("detach") => TimelineChange::Detach { timeline: self.name("a branch")? },
            _ => return Err(self.unexpected_here("CREATE, DELETE, RENAME, RESET or DETACH")),
        };
        self.finish(Command::TimelineChange(change))
    }

    /// `[AT lsn | AT TIME 'time']`
    fn branch_point(&mut self) -> Result<BranchPoint, PgError> {
        if !self.at_keyword("at") {
            return Ok(BranchPoint::Last);
        }
        self.next += 1;
        if self.at_keyword("time") {
            return self.at_time().map(BranchPoint::Time);
        }
        self.value("an LSN, or TIME and a time").map(BranchPoint::Lsn)
    }

    /// Behind `TIMELINE FOLLOW`.
    pub(super) fn follow(&mut self) -> Result<Command, PgError> {
        let timeline = self.name("a timeline")?;
        self.then("from")?;
        let conninfo = Conninfo(self.name("a connection string in single quotes")?);
        self.finish(Command::TimelineChange(TimelineChange::Follow { timeline, conninfo }))
    }

    /// Behind `TIMELINE UNFOLLOW`.
    pub(super) fn unfollow(&mut self) -> Result<Command, PgError> {
        let timeline = self.name("a timeline")?;
        let mut slot = SlotThen::Dropped;
        if self.at_keyword("keep") {
            self.next += 1;
            self.then("slot")?;
            slot = SlotThen::Kept;
        }
        self.finish(Command::TimelineChange(TimelineChange::Unfollow { timeline, slot }))
    }

    /// Behind `TIMELINE DELETE`.
    pub(super) fn timeline_delete(&mut self) -> Result<Command, PgError> {
        let timeline = self.name("a timeline")?;
        self.finish(Command::TimelineChange(TimelineChange::Delete { timeline }))
    }

    /// Behind `LEASE`. A timeline called `list` or `end` is written in quotes.
    pub(super) fn lease(&mut self) -> Result<Command, PgError> {
        let command = if self.at_keyword("list") {
            self.next += 1;
            LeaseCommand::List { timeline: self.optional_name()? }
        } else if self.at_keyword("end") {
            self.next += 1;
            LeaseCommand::End { lease_id: self.value("the number of a lease")? }
        } else {
            let timeline = self.name("a timeline, LIST or END")?;
            self.then("at")?;
            let lsn = self.value("an LSN")?;
            let seconds = self.optional("for", "a number of seconds")?;
            LeaseCommand::Give { timeline, lsn, seconds }
        };
        self.finish(Command::Lease(command))
    }
}
