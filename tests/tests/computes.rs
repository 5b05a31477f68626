//! Goal: a compute shows what its branch had at its LSN, what is committed on it is in its branch whatever crashes, and whoever asks for what cannot
//! be is told why and leaves nothing behind.
//! Method: stock servers, a page server, and `pagectl compute` as a person would use it.

#[path = "computes/bad_input.rs"]
mod bad_input;
#[path = "computes/clones.rs"]
mod clones;
#[path = "computes/crashes.rs"]
mod crashes;
#[path = "computes/life.rs"]
mod life;
#[path = "computes/readme.rs"]
mod readme;
#[path = "computes/standby.rs"]
mod standby;
#[path = "computes/writers.rs"]
mod writers;
