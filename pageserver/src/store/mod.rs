//! RocksDB and the layers in memory in front of it.
