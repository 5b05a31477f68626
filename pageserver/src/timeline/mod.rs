//! Reads as of an LSN, through ancestors; the repository of all timelines.
