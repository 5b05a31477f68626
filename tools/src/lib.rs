//! `pagectl`, the page server's tool for people: one module per subcommand.
//!
//! In stack order: the answer's way out ([`output`]), talking to a page server ([`connect`]), files of a cluster ([`datadir`]), pages
//! ([`page_dump`], [`page`]), WAL ([`wal_dump`]), comparison ([`compare`]), load ([`bench_getpage`]), failed redo ([`redo`]), the command line ([`cli`]).

pub mod output;
pub mod connect;
pub mod datadir;
pub mod page_dump;
pub mod page;
pub mod wal_dump;
pub mod compare;
pub mod bench_getpage;
pub mod redo;
pub mod cli;
