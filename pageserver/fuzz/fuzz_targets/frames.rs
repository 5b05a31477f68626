//! A stream of libpq messages after startup, with page stream messages inside.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pageserver::page_service::fuzzing;

fuzz_target!(|bytes: &[u8]| fuzzing::frames(bytes));
