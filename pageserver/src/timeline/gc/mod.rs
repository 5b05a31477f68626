//! Garbage collection: history that nobody may ask for any more gives its space back.
//!
//! In reading order: how much is kept ([`retention`]), what can still be read ([`horizon`]), which versions of an object may go ([`decision`]), what
//! is told ([`counts`]), how fast ([`pace`]), and a pass over a timeline ([`pass`]). Who decides when, over all timelines: `repository/collecting.rs`.
//!
//! - **Never:** what retention, a branch or a lease promises is removed, or shown otherwise than before (model test).
//! - **Never:** a read of an LSN that is being given up is answered from what is left: it is refused (see [`horizon`]).
//! - A pass is cut into ranges of objects, and each becomes part of the store as a whole. A pass that was cut off is begun again from the front:
//!   what it has removed is not met twice.

mod counts;
mod decision;
mod horizon;
mod pace;
mod pass;
mod retention;

pub use counts::{GcCounts, RemovedOfClass};
pub(super) use horizon::Horizon;
pub(super) use pace::Pace;
pub use pass::GcError;
pub(super) use pass::{Pass, PassProgress};
pub use retention::{OwnRetention, Retention, RetentionParseError, RetentionTime, WalSize};
