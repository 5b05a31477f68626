//! A decoded record becomes versions.
