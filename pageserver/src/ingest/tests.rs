//! Goal: each record puts exactly the versions it should, and nothing depends on when a batch is committed.
//! Method: records made by hand, byte by byte, through the real decoder; a timeline in memory that follows the contract of
//! [`TimelineReader`] to the letter; random runs compared between commit habits; mutated bodies.

mod rig;

mod commit_time;
mod counters;
mod databases;
mod heap;
mod kept_sizes;
mod random;
mod refusals;
mod relations;
mod slru;
mod transactions;
