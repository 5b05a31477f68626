//! Streams WAL from a primary, for ever.
