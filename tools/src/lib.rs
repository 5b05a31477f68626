//! The subcommands of `pagectl`, one module each.

pub mod bench_getpage;
