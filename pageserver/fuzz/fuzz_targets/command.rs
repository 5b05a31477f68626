//! The text of a command.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pageserver::page_service::fuzzing;

fuzz_target!(|text: &str| fuzzing::command(text));
