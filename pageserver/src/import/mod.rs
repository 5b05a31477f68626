//! A cluster becomes a timeline.
