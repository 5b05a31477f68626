//! A check of everything that a server keeps.
