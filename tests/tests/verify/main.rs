//! Goal: what is damaged on disk is found and named, mended where that is possible, and never served; a disk that fails stops what it concerns in a state
//! that says so. Method: the real binary over real files: bits flipped in every kind of file, and a file system that fails on demand.

#![allow(clippy::unwrap_used, reason = "a test; helpers of tests as well")]

#[path = "../bad_input/rig.rs"]
#[allow(dead_code, reason = "shared with another test")]
mod rig;

mod files;

mod clean;
mod flips;
mod mend;
mod paused;
mod repair;
mod unopened;

mod disk;
