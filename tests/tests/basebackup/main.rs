//! Goal: a stock server of each version starts from a base backup as of any LSN, has what was committed by then and nothing else, and can be written to.
//! Method: real primaries with all that a cluster can consist of, a real page server, backups at chosen LSNs; the servers that start from them are asked,
//! written to, checked with PostgreSQL's own tools, and killed.
//!
//! Versions: 15 and 17; all five with `PAGESERVER_TEST_ALL_VERSIONS=1`.

#![allow(clippy::unwrap_used, reason = "a test; helpers of tests as well")]

mod clone;
mod primary;

mod archive;
mod positions;
mod refusals;
mod standby;
mod starts;
