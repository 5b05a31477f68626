//! Goal: a branch shows exactly what its ancestor showed at its LSN, through any number of ancestors, while the primary writes, after kill -9, after a
//! detach; who asks for what cannot be is told why, with the LSNs; slots come and go with who follows whom.
//! Method: stock primaries under load, a page server, every page and object of a timeline at an LSN over the page stream and the commands, by hash.

#[path = "branches/following.rs"]
mod following;
#[path = "branches/refusals.rs"]
mod refusals;
#[path = "branches/rig.rs"]
mod rig;
#[path = "branches/trees.rs"]
mod trees;
