//! Finds PostgreSQL's programs of the major version that a branch is of.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use pageserver::config::Config;
use postgres_ffi::PgVersion;

/// The directory of `postgres` and `pg_ctl` of `version`: `pg_bin` if it is given, else the first of the known places and of PATH that has them.
///
/// Errors: `pg_bin` has none or another version, or no place has the right one.
pub fn find(version: PgVersion, pg_bin: Option<&Path>) -> Result<PathBuf> {
    if let Some(dir) = pg_bin {
        let found = version_of(dir)?;
        ensure!(
            found == version.major(),
            "the branch is of PostgreSQL {version}, and --pg-bin has PostgreSQL {found}. pg_bin=`{}`",
            dir.display()
        );
        return std::path::absolute(dir).with_context(|| format!("make {} absolute", dir.display()));
    }
    let mut places = Config::default().postgres_bin_dirs(version);
    places.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    let is_right = |dir: &&PathBuf| version_of(dir).is_ok_and(|found| found == version.major());
    match places.iter().find(is_right) {
        Some(dir) => Ok(dir.clone()),
        None => {
            let places: Vec<String> = places.iter().map(|dir| dir.display().to_string()).collect();
            bail!(
                "no PostgreSQL {version} here, which the branch is of; install it, or name its directory with --pg-bin. looked_in=`{}`",
                places.join(":")
            )
        }
    }
}

/// `psql`: beside the server's programs, or somewhere in PATH.
pub fn psql(pg_bin: &Path) -> PathBuf {
    let beside = pg_bin.join("psql");
    if beside.is_file() { beside } else { "psql".into() }
}

/// Major version of the `postgres` in `dir`. Errors: there is none, or no `pg_ctl`, or it does not say.
fn version_of(dir: &Path) -> Result<u32> {
    for program in ["postgres", "pg_ctl"] {
        let path = dir.join(program);
        ensure!(path.is_file(), "there is no {program}. path=`{}`", path.display());
    }
    let postgres = dir.join("postgres");
    let output = Command::new(&postgres).arg("--version").env_clear().env("LC_ALL", "C").output();
    let output = output.with_context(|| format!("run {}", postgres.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    major_version(&text).with_context(|| format!("{} does not tell its version: {}", postgres.display(), text.trim()))
}

/// `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)` is 15.
fn major_version(text: &str) -> Option<u32> {
    let number = text.split_once("(PostgreSQL) ")?.1;
    let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_what_the_program_says() {
        assert_eq!(major_version("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"), Some(15));
        assert_eq!(major_version("postgres (PostgreSQL) 18beta1\n"), Some(18));
        for bad in ["", "postgres", "postgres (PostgreSQL) ", "postgres (PostgreSQL) x"] {
            assert_eq!(major_version(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_place_without_programs_is_refused() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let error = find(PgVersion::V15, Some(dir.path())).expect_err("nothing there");
        assert!(error.to_string().contains("there is no postgres"), "{error}");
    }
}
