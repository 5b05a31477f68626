//! Waits until a number that only grows has reached a value.
