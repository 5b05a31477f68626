//! Forms of `VERIFY` and `REPAIR`.

use super::Parser;
use crate::page_service::command::Command;
use crate::page_service::command::verify::RepairRequest;
use crate::page_service::error::{PgError, sqlstate};
use crate::verify::VerifyOptions;

impl Parser<'_> {
    /// Behind `VERIFY`. A timeline called `rate` is written in quotes.
    pub(super) fn verify(&mut self) -> Result<Command, PgError> {
        let timeline = if self.at_keyword("rate") { None } else { self.optional_name()? };
        let rate: Option<u64> = self.optional("rate", "a number of MiB a second")?;
        let bytes_per_second = rate.map(bytes_of_mib).transpose()?;
        self.finish(Command::Verify(VerifyOptions { timeline, bytes_per_second }))
    }

    /// Behind `REPAIR`. A timeline called `dry` is written in quotes.
    pub(super) fn repair(&mut self) -> Result<Command, PgError> {
        let timeline = if self.at_keyword("dry") { None } else { self.optional_name()? };
        let dry_run = self.at_keyword("dry");
        if dry_run {
            self.next += 1;
            self.then("run")?;
        }
        self.finish(Command::Repair(RepairRequest { timeline, dry_run }))
    }
}

fn bytes_of_mib(mib: u64) -> Result<u64, PgError> {
    let wrong = || PgError::new(sqlstate::INVALID_PARAMETER_VALUE, format!("no rate to read at. mib=`{mib}`"));
    mib.checked_mul(1 << 20).filter(|bytes| *bytes > 0).ok_or_else(wrong)
}
