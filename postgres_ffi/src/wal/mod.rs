//! The write-ahead log: pages, records, blocks, images.
