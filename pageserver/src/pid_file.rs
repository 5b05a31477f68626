//! The locked and validated pid file.
