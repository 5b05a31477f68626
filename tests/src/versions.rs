//! Which PostgreSQL versions a test of all of them runs on.

use postgres_ffi::PgVersion;

/// 15 and 17; all five with `PAGESERVER_TEST_ALL_VERSIONS=1`.
pub fn versions() -> Vec<PgVersion> {
    match std::env::var_os("PAGESERVER_TEST_ALL_VERSIONS") {
        Some(_) => PgVersion::ALL.to_vec(),
        None => vec![PgVersion::V15, PgVersion::V17],
    }
}
