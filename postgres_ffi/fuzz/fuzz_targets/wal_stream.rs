//! Any bytes as a WAL stream, and as the description of one. What must hold: `postgres_ffi::wal::checks::check_stream`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postgres_ffi::wal::checks::check_stream;

fuzz_target!(|data: &[u8]| check_stream(data));
