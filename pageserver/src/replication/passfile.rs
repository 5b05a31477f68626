//! libpq's password file: `host:port:database:user:password`, one per line, the first match counts.
//!
//! - A file that others may read is refused, where libpq would ignore it: a login that fails for no visible reason helps nobody.
//! - PG: doc/src/sgml/libpq.sgml, "The Password File".

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::conninfo::{ConnInfoError, HostAddress, Password};

/// A password file is small; whatever is behind this is not read.
const PASSFILE_BYTES_MAX: u64 = 1 << 20;

/// The password for this server and user. Looks into `named`, else into `~/.pgpass` if it exists.
pub(super) fn look_up(
    named: Option<&Path>,
    host: &HostAddress,
    database: &str,
    user: &str,
) -> Result<Option<Password>, ConnInfoError> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => {
            let Some(home) = home_directory() else { return Ok(None) };
            let path = home.join(".pgpass");
            if !path.is_file() {
                return Ok(None);
            }
            path
        }
    };
    let refused = |reason: String| ConnInfoError::PassFile { path: path.display().to_string(), reason };
    let file = fs::File::open(&path).map_err(|error| refused(error.to_string()))?;
    let metadata = file.metadata().map_err(|error| refused(error.to_string()))?;
    if !metadata.is_file() {
        return Err(refused("not a plain file".into()));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(refused("others may read it; permissions must be u=rw (0600) or less".into()));
    }
    let mut text = String::new();
    file.take(PASSFILE_BYTES_MAX).read_to_string(&mut text).map_err(|error| refused(error.to_string()))?;
    Ok(find(&text, host, database, user))
}

fn home_directory() -> Option<PathBuf> {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.dir)
}

fn find(text: &str, host: &HostAddress, database: &str, user: &str) -> Option<Password> {
    let (host, port) = match host {
        HostAddress::Tcp { host, port, .. } => (host.as_str(), port),
        // As libpq: a socket in the default directory stands under the name localhost, any other under its path.
        HostAddress::Unix { directory, port } => match directory.to_str()? {
            "/var/run/postgresql" | "/tmp" => ("localhost", port),
            directory => (directory, port),
        },
    };
    let wanted = [host, &port.to_string(), database, user];
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = split(line);
        let [fields @ .., password] = fields.as_slice() else { return None };
        let matches =
            fields.len() == 4 && fields.iter().zip(wanted).all(|(field, wanted)| field == "*" || field == wanted);
        (matches && !password.is_empty()).then(|| Password::new(password.as_str()))
    })
}

/// The five fields of a line; a backslash takes a colon or a backslash literally.
fn split(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let c = match c {
            ':' if fields.len() < 5 => {
                fields.push(String::new());
                continue;
            }
            '\\' => chars.next().unwrap_or('\\'),
            c => c,
        };
        if let Some(field) = fields.last_mut() {
            field.push(c);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    //! Goal: the right line is found. Method: one file, several questions.

    use super::*;

    const FILE: &str = "# comment:5432:*:u:no\n\
                        db:5432:replication:rep:one\n\
                        *:5433:*:rep:two:with\\\\\\:colon\n\
                        localhost:*:*:rep:three\n\
                        too:few:fields\n";

    fn ask(host: &str, port: u16, user: &str) -> Option<Password> {
        find(FILE, &HostAddress::Tcp { host: host.into(), address: None, port }, "replication", user)
    }

    #[test]
    fn the_first_matching_line_counts() {
        assert_eq!(ask("db", 5432, "rep"), Some(Password::new("one")));
        assert_eq!(ask("db", 5433, "rep"), Some(Password::new("two:with\\:colon")));
        assert_eq!(ask("db", 5434, "rep"), None);
        assert_eq!(ask("db", 5432, "u"), None);
        let unix = HostAddress::Unix { directory: "/tmp".into(), port: 1 };
        assert_eq!(find(FILE, &unix, "replication", "rep"), Some(Password::new("three")));
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pass");
        fs::write(&path, FILE).unwrap();
        let host = HostAddress::Tcp { host: "db".into(), address: None, port: 5432 };
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = look_up(Some(&path), &host, "replication", "rep").unwrap_err().to_string();
        assert!(refused.contains("0600"), "{refused}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(look_up(Some(&path), &host, "replication", "rep").unwrap(), Some(Password::new("one")));
    }
}
