//! The configuration file, flags and environment.
