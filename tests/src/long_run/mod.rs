//! The long run: a database whose size does not change is updated for many minutes, and what the page server takes and how it answers is
//! sampled all the time. `make long-run`.
//!
//! - The load is constant: rows are updated in place of each other at a steady pace, pages are read at a steady pace.
//! - It measures and judges nothing by itself: the CSV and the graph show the course, the ratios compare its last third with its first.
//!
//! In reading order: what is measured ([`Sample`]), where it comes from (`probe`, `reader`), the run ([`LongRun`]), what is made of it ([`report`]).

mod course;
mod graph;
mod probe;
mod reader;
pub mod report;
mod sample;

pub use course::{LongRun, run};
pub use sample::Sample;
