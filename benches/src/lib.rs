//! What the benchmarks share: stores and WAL of a known shape.

pub mod constant_pages;
