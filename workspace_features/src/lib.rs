//! No code: `Cargo.toml` says why every member depends on this.
