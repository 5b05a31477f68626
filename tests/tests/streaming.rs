//! Goal: what a primary has written is in our files, byte for byte, whatever happens to it, to us and to the connection in between;
//! and what we report to it is true.
//! Method: real servers under load; the receiver with a sink that decodes every record; comparison with the server's own `pg_wal`.

#[path = "streaming/follower.rs"]
mod follower;
#[path = "streaming/promotion.rs"]
mod promotion;
#[path = "streaming/restarts.rs"]
mod restarts;
#[path = "streaming/synchronous.rs"]
mod synchronous;
