//! One message of a page stream, either direction, both versions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pageserver::page_service::fuzzing;

fuzz_target!(|bytes: &[u8]| fuzzing::page_stream(bytes));
