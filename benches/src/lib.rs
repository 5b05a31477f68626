//! What the benchmarks share: stores and WAL of a known shape.
