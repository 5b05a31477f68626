//! Any bytes as one WAL record. What must hold: `postgres_ffi::wal::checks::check_record`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postgres_ffi::wal::checks::check_record;

fuzz_target!(|data: &[u8]| check_record(data));
