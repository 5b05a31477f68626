//! `pagectl`: see `tools::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tools::cli::main()
}
