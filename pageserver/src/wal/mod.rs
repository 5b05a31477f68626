//! Segment files of one timeline on disk.
