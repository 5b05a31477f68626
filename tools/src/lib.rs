//! The subcommands of `pagectl`, one module each.
