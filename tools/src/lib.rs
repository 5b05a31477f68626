//! The subcommands of `pagectl`, one module each.

pub mod compare;
pub mod datadir;
pub mod page_dump;
pub mod bench_getpage;
