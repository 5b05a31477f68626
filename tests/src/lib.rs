//! Harness of the tests: real PostgreSQL servers and a real page server, started and ended by the test.
//!
//! - Everything listens on 127.0.0.1 alone and lives in a directory of its own ([`TestDir`]).
//! - Whatever was started is ended when its owner is dropped, by its pid; and by a watcher if the test itself is killed.
//! - Started as root, servers run as user `postgres`: PostgreSQL refuses root.
//! - Nothing here sleeps and hopes: [`wait_until`] waits for a condition, with a limit.
//!
//! In reading order: [`wait_until`], [`Background`], [`mod@versions`], [`TestDir`], [`process`], [`Postgres`], [`standby`], [`faulty_fs`], [`CutProxy`], [`PageServer`],
//! [`computes`], [`backup_server`], [`workload`], [`prove`], [`prove_redo`], [`prove_clones`],
//! [`prove_crash`], [`long_run`].

mod wait;
pub use wait::{wait_until, wait_until_some};

mod background;
pub use background::Background;

mod versions;
pub use versions::versions;

mod test_dir;
pub use test_dir::TestDir;

pub mod process;

mod ports;
pub use ports::free_port;

mod postgres_server;
pub(crate) use postgres_server::query_text;
pub use postgres_server::{Auth, Postgres, PostgresBuilder, Stop, build_extension};

pub mod standby;

pub mod faulty_fs;

mod cut_proxy;
pub use cut_proxy::CutProxy;

mod pageserver_process;
pub use pageserver_process::{Killed, Outcome, PageServer, PageServerBuilder, Pagectl, built_program};

pub mod computes;
pub use computes::{Compute, Computes};

pub mod backup_server;

pub mod workload;

pub mod prove;

pub mod prove_redo;

pub mod prove_clones;

pub mod prove_crash;

pub mod long_run;
