//! Goal: what the real binary does with what should not be: wrong flags, wrong primaries, wrong requests, a full disk, damaged files. Each
//! time an error that says what is wrong, no wrong page, and what is intact goes on.
//! Method: the binary and real servers; afterwards everything is put right again and all pages are compared.

#![allow(clippy::unwrap_used, reason = "a test; helpers of tests as well")]

#[path = "bad_input/rig.rs"]
mod rig;

#[path = "bad_input/command_line.rs"]
mod command_line;

#[path = "bad_input/imports.rs"]
mod imports;

#[path = "bad_input/primaries.rs"]
mod primaries;

#[path = "bad_input/requests.rs"]
mod requests;

#[path = "bad_input/full_disk.rs"]
mod full_disk;

#[path = "bad_input/damage.rs"]
mod damage;
