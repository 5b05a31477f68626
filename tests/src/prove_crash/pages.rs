//! Pages that the primary held once, and what the page server says of them, on every timeline that reaches there.
//!
//! All timelines of a course show one history, the primary's: a page that is remembered must be the same on each of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use postgres::Client;
use postgres_ffi::Lsn;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::operation::MAIN;
use super::timelines::Reach;
use crate::Background;
use crate::prove::history::{self, Sample};
use crate::workload::Target;

/// Pages kept; of more, old ones make room at random.
const SAMPLES_MAX: usize = 20_000;
/// A reader that got no answer asks again after this.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two questions of the reader: it is there, and leaves the processors to the rest.
const READER_PAUSE: Duration = Duration::from_millis(2);

/// The remembered pages. Clones share them.
#[derive(Clone, Default)]
pub struct Pages {
    samples: Arc<Mutex<Vec<Arc<Sample>>>>,
    moments: Arc<Mutex<Vec<Lsn>>>,
}

impl Pages {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Sample>>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// LSNs of quiet moments.
    pub fn moments(&self) -> Vec<Lsn> {
        self.moments.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many pages are remembered.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Holds the load and remembers pages as of that moment. Requires: the page server runs, or commits that wait for it hold the load up.
    pub fn take_moment(&self, target: &Target, rng: &mut SmallRng) -> Result<Lsn> {
        let (lsn, samples) = history::take_moment(target, rng)?;
        self.moments.lock().unwrap_or_else(PoisonError::into_inner).push(lsn);
        self.remember(samples, rng);
        Ok(lsn)
    }

    /// Remembers pages while the load goes on; none if the primary does not answer, as it may under load.
    pub fn take_glimpse(&self, target: &Target, first_lsn: Lsn, rng: &mut SmallRng) {
        if let Ok(samples) = history::take_glimpse(target, first_lsn, rng) {
            self.remember(samples, rng);
        }
    }

    fn remember(&self, new: Vec<Sample>, rng: &mut SmallRng) {
        let mut samples = self.lock();
        for sample in new {
            let sample = Arc::new(sample);
            if samples.len() < SAMPLES_MAX {
                samples.push(sample);
            } else {
                let at = rng.random_range(0..SAMPLES_MAX);
                samples[at] = sample;
            }
        }
    }

    /// At most `count` pages, chosen at random, that can be asked for on `reach`.
    fn choose(&self, reach: &Reach, count: usize, rng: &mut SmallRng) -> Vec<Arc<Sample>> {
        let Some(first_lsn) = reach.first_readable_lsn else { return Vec::new() };
        let lsns = first_lsn..=reach.last_record_lsn;
        let samples = self.lock();
        let readable: Vec<&Arc<Sample>> =
            samples.iter().filter(|sample| lsns.contains(&sample.request_lsn())).collect();
        readable.choose_multiple(rng, count).map(|sample| Arc::clone(sample)).collect()
    }

    /// Asks `reach` for at most `count` pages. How many were right. Errors: a wrong page; no answer, though it is not `given_up` by now.
    pub fn check(
        &self,
        server: &str,
        reach: &Reach,
        count: usize,
        given_up: &mut dyn FnMut(Lsn) -> Result<bool>,
        rng: &mut SmallRng,
    ) -> Result<u64> {
        let mut session = None;
        let mut right = 0;
        for sample in self.choose(reach, count, rng) {
            match history::check_one(&mut session, server, &reach.name, &sample, &[])? {
                Some(()) => right += 1,
                None => {
                    let lsn = sample.request_lsn();
                    ensure!(given_up(lsn)?, "no answer for a page as of {lsn} on {reach:?}");
                }
            }
        }
        Ok(right)
    }
}

/// Begins to ask for random pages of `main` all the time, whatever happens to the server. Ended, it says how many pages it compared; a wrong one is its error.
pub fn start_reader(server: String, pages: &Pages, seed: u64) -> Background<u64> {
    let pages = pages.clone();
    Background::start("the reader", move |stop| read_until(stop, &pages, &server, SmallRng::seed_from_u64(seed)))
}

fn read_until(stop: &AtomicBool, pages: &Pages, server: &str, mut rng: SmallRng) -> Result<u64> {
    let mut checked = 0;
    let mut session: Option<Client> = None;
    while !stop.load(Ordering::SeqCst) {
        let sample = pages.lock().choose(&mut rng).cloned();
        let answered = match sample {
            Some(sample) => history::check_one(&mut session, server, MAIN, &sample, &[])?,
            None => None,
        };
        match answered {
            Some(()) => {
                checked += 1;
                thread::sleep(READER_PAUSE);
            }
            None => thread::sleep(PAUSE), // Nothing to ask yet, or the server is down.
        }
    }
    Ok(checked)
}
