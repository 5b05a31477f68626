//! Records that no recorded WAL has, made by hand from the headers of PostgreSQL; the expected texts from its formats.
