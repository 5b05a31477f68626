//! Any bytes as a page and a record of gin. What must hold: `postgres_ffi::redo::case::fuzz`.
#![no_main]

postgres_ffi_fuzz::redo_target!(postgres_ffi::wal::rmgr::GIN);
