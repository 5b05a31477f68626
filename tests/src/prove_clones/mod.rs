//! Proof that a stock PostgreSQL started from a base backup of the page server, at any LSN, is what the primary was there: complete, sound, and
//! equal to what PostgreSQL's own point-in-time recovery makes of the same moment.
//!
//! - A leg is one version ([`Leg`]): a busy primary ([`primary`]), a page server that follows it, transactions that tell where they committed
//!   ([`markers`]), then LSNs chosen by looking at the WAL ([`wal_history`], [`moments`]), and at each a clone with everything that is asked of it
//!   ([`clone`]), held against a recovery of PostgreSQL's own to the same LSN ([`recovery`], [`contents`]).
//! - What is known of an LSN comes from the primary's WAL and from the primary's answers, never from the page server.
//! - A tree of branches with computes that write while page server and computes are killed ends each leg ([`tree`]).
//! - A clone that fails a check is reported and counted; the others are checked all the same.
//! - What is random follows from a seed, which is printed. How it interleaves with the load does not.

mod wal_history;

mod moments;

mod primary;

mod markers;

mod contents;

mod recovery;

mod clone;

mod tree;

mod leg;

pub use leg::{Leg, Plan, Summary, run_leg};
pub use moments::Kind;
