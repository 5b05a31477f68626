//! Where computes live, and what one is called.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::geteuid;
use pageserver::timeline::metadata::check_name;
use serde::{Deserialize, Serialize};

/// Longest path of a Unix socket, its NUL left out. Linux: sockaddr_un, sun_path.
const SOCKET_PATH_LEN_MAX: usize = 107;

/// Which directory computes are in
#[derive(Debug, Clone, clap::Args)]
pub struct ComputesArgs {
    /// Directory of all computes; default: /var/lib/pageserver/computes for root, else pageserver/computes in $XDG_DATA_HOME or ~/.local/share
    #[arg(long, env = "PAGECTL_COMPUTES", value_name = "DIR")]
    pub computes: Option<PathBuf>,
}

impl ComputesArgs {
    /// The directory, absolute. It need not be there.
    pub fn directory(&self) -> Result<PathBuf> {
        let path = match &self.computes {
            Some(path) => path.clone(),
            None => default_directory()?,
        };
        std::path::absolute(&path).with_context(|| format!("make {} absolute", path.display()))
    }

    /// The compute `name`, whether it is there or not.
    pub fn place(&self, name: &ComputeName) -> Result<Place> {
        Ok(Place::new(&self.directory()?, name))
    }
}

fn default_directory() -> Result<PathBuf> {
    if geteuid().is_root() {
        return Ok("/var/lib/pageserver/computes".into());
    }
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data_home = variable("XDG_DATA_HOME").or_else(|| Some(variable("HOME")?.join(".local/share")));
    Ok(data_home
        .context("neither XDG_DATA_HOME nor HOME is set: name a directory with --computes")?
        .join("pageserver/computes"))
}

/// What a compute is called: a branch may be called so, too, and a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ComputeName(String);

impl ComputeName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ComputeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match check_name(text) {
            Ok(()) if !text.contains('/') => Ok(ComputeName(text.to_owned())),
            _ => Err("expected 1 to 63 letters, digits, `_`, `-` or `.`, the first a letter or digit, and not 32 hexadecimal digits"
                .to_owned()),
        }
    }
}

impl TryFrom<String> for ComputeName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ComputeName> for String {
    fn from(name: ComputeName) -> Self {
        name.0
    }
}

impl std::fmt::Display for ComputeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The directory of one compute and what is in it.
#[derive(Debug, Clone)]
pub struct Place {
    root: PathBuf,
}

impl Place {
    /// The place of `name` below `computes`, an absolute path.
    pub fn new(computes: &Path, name: &ComputeName) -> Self {
        Place { root: computes.join(name.as_str()) }
    }

    /// The compute's directory. The socket is here, so that only the server's user and root come to it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `data/`: PostgreSQL's data directory.
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// `tablespaces/`: what `pg_tblspc` links to.
    pub fn tablespaces(&self) -> PathBuf {
        self.root.join("tablespaces")
    }

    /// `log`: what the server writes.
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// Refuses a directory with something in it, and one whose socket's path would be too long. Whether there is a compute in it already is
    /// the caller's to say first.
    pub fn check_free(&self, port: u16) -> Result<()> {
        let socket = self.root.join(format!(".s.PGSQL.{port}"));
        let len = socket.as_os_str().len();
        ensure!(
            len <= SOCKET_PATH_LEN_MAX,
            "the path of the socket would be too long; choose a shorter --computes. path=`{}`, bytes=`{len}`, bytes_max=`{SOCKET_PATH_LEN_MAX}`",
            socket.display()
        );
        let is_link = fs::symlink_metadata(&self.root).is_ok_and(|metadata| metadata.is_symlink());
        ensure!(!is_link, "the directory is a link. path=`{}`", self.root.display());
        match fs::read_dir(&self.root) {
            Ok(mut entries) => {
                ensure!(
                    entries.next().is_none(),
                    "the directory is not empty, and no compute. path=`{}`",
                    self.root.display()
                );
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => bail!("cannot use {}: {error}", self.root.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_good_for_a_branch_and_for_a_directory() {
        for good in ["dev", "pr-17", "a.b_c", "7"] {
            assert!(good.parse::<ComputeName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "/a", "-x", "a b", "a'b", "ü", &"x".repeat(64), &"0".repeat(32)] {
            assert!(bad.parse::<ComputeName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_directory_with_something_in_it_is_not_free() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let place = Place::new(dir.path(), &"dev".parse().expect("a name"));
        assert!(place.check_free(5432).is_ok());
        fs::create_dir(place.root()).expect("folder");
        assert!(place.check_free(5432).is_ok());
        fs::write(place.root().join("x"), "").expect("write");
        assert!(place.check_free(5432).is_err_and(|error| error.to_string().contains("not empty")));
        let linked = Place::new(dir.path(), &"linked".parse().expect("a name"));
        std::os::unix::fs::symlink(dir.path(), linked.root()).expect("link");
        assert!(linked.check_free(5432).is_err_and(|error| error.to_string().contains("a link")));
        let deep = Place::new(&dir.path().join("d".repeat(90)), &"dev".parse().expect("a name"));
        assert!(deep.check_free(5432).is_err_and(|error| error.to_string().contains("too long")));
    }
}
