//! The client side of PostgreSQL's replication protocol.
