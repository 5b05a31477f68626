//! The subcommands of `pagectl`, one module each.

pub mod redo;
