//! `pg_filenode.map`.
