//! What happens to a leg's servers, in an order that follows from the seed.

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use crate::Stop;

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The page server and its redo processes are killed, the page server is started again.
    KillPageServer,
    /// One redo process is killed.
    KillRedoProcess,
    /// The WAL stream is cut, as a rule within a record.
    CutStream,
    /// The primary is stopped and started.
    RestartPrimary(Stop),
    /// The primary is killed and started.
    KillPrimary,
    /// A standby is made, takes over, and is the primary from then on.
    Promote,
    /// The load is held and pages are taken for later.
    Moment,
    /// Pages are taken while the load goes on.
    Glimpse,
}

/// How often what happens in a leg.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The page server is killed.
    pub page_server_kills: usize,
    /// A redo process is killed.
    pub redo_kills: usize,
    /// The stream is cut.
    pub cuts: usize,
    /// Quiet moments whose pages are compared in the end.
    pub moments: usize,
    /// Pages are taken under load.
    pub glimpses: usize,
    /// A standby takes over: once, or not at all.
    pub promote: bool,
}

impl Times {
    /// What the proof promises: the page server and redo processes are killed at least 20 times.
    pub const PROOF: Times =
        Times { page_server_kills: 12, redo_kills: 12, cuts: 10, moments: 50, glimpses: 40, promote: true };
    /// A shorter course for the test suite.
    pub const SHORT: Times =
        Times { page_server_kills: 3, redo_kills: 3, cuts: 3, moments: 10, glimpses: 10, promote: true };
}

/// All events of a leg, shuffled. The primary is restarted in each way once.
pub fn shuffled(rng: &mut SmallRng, times: Times) -> Vec<Event> {
    let times = [
        (Event::KillPageServer, times.page_server_kills),
        (Event::KillRedoProcess, times.redo_kills),
        (Event::CutStream, times.cuts),
        (Event::RestartPrimary(Stop::Fast), 1),
        (Event::RestartPrimary(Stop::Immediate), 1),
        (Event::KillPrimary, 1),
        (Event::Promote, usize::from(times.promote)),
        (Event::Moment, times.moments),
        (Event::Glimpse, times.glimpses),
    ];
    let mut events: Vec<Event> =
        times.into_iter().flat_map(|(event, count)| std::iter::repeat_n(event, count)).collect();
    events.shuffle(rng);
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn a_seed_says_what_happens() {
        let events = |seed| shuffled(&mut SmallRng::seed_from_u64(seed), Times::PROOF);
        assert_eq!(events(1), events(1));
        assert_ne!(events(1), events(2));
    }

    #[test]
    fn kills_are_as_many_as_promised() {
        let events = shuffled(&mut SmallRng::seed_from_u64(1), Times::PROOF);
        let kills = events.iter().filter(|event| matches!(event, Event::KillPageServer | Event::KillRedoProcess));
        assert!(kills.count() >= 20);
    }
}
