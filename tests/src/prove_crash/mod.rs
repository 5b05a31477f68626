//! Proof that a crash loses and spoils nothing: a page server under ingest, reads and operations on timelines, killed at random moments and at
//! failpoints, and held against what the primary held and what was acknowledged each time. `docs/crashes.md`.
//!
//! - Which crash comes when, and what is chosen in between, follows from a seed. How it interleaves with the load does not.
//! - The first wrong page, lost row or operation, half operation, or server that does not come up again ends a course with an error.
//!
//! In reading order: what is done ([`operation`], [`timelines`]), which crash comes when ([`plan`]), what must be there afterwards ([`acknowledged`],
//! `pages`, `server`), the whole ([`Course`]).

pub mod acknowledged;
mod course;
mod load;
pub mod operation;
mod pages;
pub mod plan;
mod server;
mod summary;
pub mod timelines;

pub use course::{Course, run_course};
pub use plan::Plan;
pub use summary::Summary;
