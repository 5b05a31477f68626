//! Any bytes as a page and a record of heap2. What must hold: `postgres_ffi::redo::case::fuzz`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postgres_ffi::redo::case::fuzz;
use postgres_ffi::wal::rmgr;

fuzz_target!(|data: &[u8]| fuzz(rmgr::HEAP2, data));
