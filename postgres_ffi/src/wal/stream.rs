//! WAL bytes in, whole records out.
