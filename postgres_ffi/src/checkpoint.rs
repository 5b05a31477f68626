//! The CheckPoint struct: next xid, oid, multixact as of an LSN.
