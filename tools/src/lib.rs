//! `pagectl`, the page server's tool for people: one module per subcommand.
//!
//! In stack order: the answer's way out ([`output`]), and to files ([`part_file`]), talking to a page server ([`connect`]), files of a cluster ([`datadir`]), pages
//! ([`page_dump`], [`page`]), WAL ([`wal_segments`], [`wal_dump`], [`wal_get`]), comparison ([`compare`]), base backups ([`basebackup`]), load ([`bench_getpage`]), times and LSNs ([`time`]), branches and leases ([`branch`]), retention and garbage ([`gc`]), what timelines cost ([`size`]), damage ([`verify`]),
//! redo tried again and checked ([`redo`]), servers on branches ([`compute`]), the command line ([`cli`]).

pub mod basebackup;
pub mod bench_getpage;
pub mod branch;
pub mod cli;
pub mod compare;
pub mod compute;
pub mod connect;
pub mod datadir;
pub mod gc;
pub mod import;
pub mod output;
pub mod page;
pub mod page_dump;
pub mod part_file;
pub mod redo;
pub mod size;
pub mod time;
pub mod verify;
pub mod wal_dump;
pub mod wal_get;
pub mod wal_segments;
