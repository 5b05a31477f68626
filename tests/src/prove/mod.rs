//! Proof that no page is wrong: a primary under load, with crashes, cuts and a promotion; in the end every page that the page
//! server gives is held against the primary's own files, and pages of the past against what the primary held then.
//!
//! - What happens, and in which order, follows from a seed, which is printed. How it interleaves with the load does not.
//! - A leg is one version with one set of settings; see [`Leg`]. It ends with an error at the first wrong page.

pub mod load;

pub mod history;

mod unwritten;

mod lost_bits;

mod lost_wal;

mod orphans;

mod database_dirs;

mod dropped_before;

mod hint_images;

mod comparison;

mod events;

mod leg;

pub(crate) use comparison::compare_uncrashed;
pub use events::Times;
pub use leg::{Leg, Plan, Summary, run_leg};
pub(crate) use load::Load;

use std::time::Instant;

/// Tells what happens, with the seconds since the start.
#[derive(Clone, Copy, Debug)]
pub struct Narrator {
    started: Instant,
}

impl Narrator {
    /// Starts the clock.
    pub fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// Prints one line.
    pub fn say(&self, what: impl std::fmt::Display) {
        println!("{:7.1} s  {what}", self.started.elapsed().as_secs_f64());
    }
}
