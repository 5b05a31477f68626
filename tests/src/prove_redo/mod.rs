//! The proof of redo: a primary that logs every page as it must become, kept busy with all that the project has and with PostgreSQL's own
//! regression suite, and its WAL checked as it flows.
//!
//! - [`run_leg`] is one version and one set of settings; the bin `prove-redo` runs them one after the other and writes the table of operations ([`table`]).
//! - WAL is streamed from the first record on and checked in memory ([`follower`]), so that it need not fit on the disk.

mod follower;
mod leg;
mod regression;
pub mod table;

pub use leg::{Leg, Plan, Proof, run_leg};
