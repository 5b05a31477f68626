//! What a course did and found.

use std::collections::BTreeMap;
use std::fmt;

use pageserver::failpoint::Failpoint;

/// What courses did, all of it without one wrong page.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// What happened how often.
    pub counts: BTreeMap<&'static str, u64>,
    /// How often the server has crashed at each failpoint.
    pub reached: BTreeMap<Failpoint, u64>,
}

impl Summary {
    /// Counts what happened.
    pub fn count(&mut self, what: &'static str, times: u64) {
        *self.counts.entry(what).or_default() += times;
    }

    /// Counts a crash at a failpoint.
    pub fn reach(&mut self, failpoint: Failpoint) {
        *self.reached.entry(failpoint).or_default() += 1;
    }

    /// How often it happened.
    pub fn times(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or(0)
    }

    /// Adds what another course did.
    pub fn add(&mut self, other: &Summary) {
        other.counts.iter().for_each(|(what, times)| self.count(what, *times));
        other.reached.iter().for_each(|(failpoint, times)| *self.reached.entry(*failpoint).or_default() += times);
    }

    /// Failpoints at which the server has not crashed.
    pub fn not_reached(&self) -> Vec<&'static str> {
        let missing = Failpoint::ALL.iter().filter(|failpoint| !self.reached.contains_key(failpoint));
        missing.map(|failpoint| failpoint.name()).collect()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, times) in &self.counts {
            writeln!(f, "{times:9}  {what}")?;
        }
        let crashes: u64 = self.reached.values().sum();
        writeln!(f, "{crashes:9}  crashes at {} of {} failpoints:", self.reached.len(), Failpoint::ALL.len())?;
        for (failpoint, times) in &self.reached {
            writeln!(f, "{times:9}      {}", failpoint.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_reached_is_named() {
        let mut summary = Summary::default();
        Failpoint::ALL.iter().for_each(|failpoint| summary.reach(*failpoint));
        assert!(summary.not_reached().is_empty());
        summary.reached.remove(&Failpoint::WalSynced);
        assert_eq!(summary.not_reached(), ["wal-synced"]);
    }
}
