//! The first packet of a connection.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pageserver::page_service::fuzzing;

fuzz_target!(|bytes: &[u8]| fuzzing::startup_packet(bytes));
