//! Forms of commands that make and change timelines.

use super::Parser;
use crate::page_service::command::{Command, Conninfo};
use crate::page_service::error::PgError;
use crate::page_service::timeline_change::TimelineChange;
use crate::timeline::BranchPoint;

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
            _ => return Err(self.unexpected_here("CREATE")),
        };
        self.finish(Command::TimelineChange(change))
    }

    /// `[AT lsn]`
    fn branch_point(&mut self) -> Result<BranchPoint, PgError> {
        Ok(self.optional("at", "an LSN")?.map_or(BranchPoint::Last, BranchPoint::Lsn))
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
        self.finish(Command::TimelineChange(TimelineChange::Unfollow { timeline }))
    }
}
