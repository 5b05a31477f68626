//! Names of libraries, as PostgreSQL's `shared_preload_libraries` takes them (`SplitDirectoriesString` of `src/backend/utils/adt/varlena.c`, 14 to 18).

use std::fmt::{self, Display, Formatter};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A library that PostgreSQL loads: a name, an absolute path, or one below `$libdir`.
///
/// Invariant: between double quotes it is one item of the list, as [`Display`] writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Library(String);

/// Not a library's name. The message has the name and the way out.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no library: must be a name or an absolute path, without quotes")]
pub struct NotALibrary(String);

impl Library {
    /// The library at an absolute path.
    pub fn at(path: &Path) -> Result<Self, NotALibrary> {
        let shown = || NotALibrary(path.to_string_lossy().into_owned());
        if !path.is_absolute() {
            return Err(shown());
        }
        path.to_str().ok_or_else(shown)?.parse()
    }

    /// Its name or path, without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Library {
    type Err = NotALibrary;

    fn from_str(name: &str) -> Result<Self, NotALibrary> {
        let is_plain = !name.is_empty() && !name.contains(|c: char| c == '"' || c.is_control());
        // A relative path would be looked for in the directory that a redo process has for a moment.
        if is_plain && (!name.contains('/') || name.starts_with(['/', '$'])) {
            Ok(Library(name.to_owned()))
        } else {
            Err(NotALibrary(name.to_owned()))
        }
    }
}

impl TryFrom<String> for Library {
    type Error = NotALibrary;

    fn try_from(name: String) -> Result<Self, NotALibrary> {
        name.parse()
    }
}

impl From<Library> for String {
    fn from(library: Library) -> String {
        library.0
    }
}

/// Quoted, as an item of the list.
impl Display for Library {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_postgresql_would_take_for_one_library_is_one() {
        for name in ["mine", "$libdir/mine", "/opt/my libs/a,b.so", "'"] {
            assert_eq!(name.parse::<Library>().expect(name).to_string(), format!("\"{name}\""));
        }
        for name in ["", "a\"b", "a\nb", "lib/mine", "./mine"] {
            assert!(name.parse::<Library>().is_err(), "{name:?}");
        }
        assert!(Library::at(Path::new("mine.so")).is_err());
        assert_eq!(Library::at(Path::new("/lib/mine.so")).unwrap().as_str(), "/lib/mine.so");
    }
}
