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

/// How often what happens. The sum of the kills is what the proof asks for: at least 20.
const TIMES: &[(Event, usize)] = &[
    (Event::KillPageServer, 12),
    (Event::KillRedoProcess, 12),
    (Event::CutStream, 10),
    (Event::RestartPrimary(Stop::Fast), 1),
    (Event::RestartPrimary(Stop::Immediate), 1),
    (Event::KillPrimary, 1),
    (Event::Promote, 1),
    (Event::Glimpse, 40),
];

/// All events of a leg with `moments` moments, shuffled.
pub fn shuffled(rng: &mut SmallRng, moments: usize) -> Vec<Event> {
    let times = TIMES.iter().copied().chain([(Event::Moment, moments)]);
    let mut events: Vec<Event> = times.flat_map(|(event, count)| std::iter::repeat_n(event, count)).collect();
    events.shuffle(rng);
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn a_seed_says_what_happens() {
        let events = |seed| shuffled(&mut SmallRng::seed_from_u64(seed), 50);
        assert_eq!(events(1), events(1));
        assert_ne!(events(1), events(2));
    }

    #[test]
    fn kills_are_as_many_as_promised() {
        let events = shuffled(&mut SmallRng::seed_from_u64(1), 0);
        let kills = events.iter().filter(|event| matches!(event, Event::KillPageServer | Event::KillRedoProcess));
        assert!(kills.count() >= 20);
    }
}
