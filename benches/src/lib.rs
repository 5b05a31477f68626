//! What the benchmarks share: stores and WAL of a known shape.

/// True under `cargo bench`. Under `cargo test` the benchmarks run once, small, so that they do not rot.
pub fn is_full_size() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}
pub mod constant_pages;
