//! Where to connect and as whom: libpq's connection strings, `key=value` pairs or a `postgres://` URI.
//!
//! - The keys that we know mean what they mean to libpq; any other key is an error, so that nothing is silently ignored.
//! - Nothing is taken from `PG*` environment variables: a daemon's environment is no place for settings.
//! - A password is printed by nobody: `Debug` and `Display` leave it out.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::passfile;

/// Where libpq looks for the socket when no host is given, as Debian builds it.
const DEFAULT_SOCKET_DIRECTORY: &str = "/var/run/postgresql";
/// PG: src/include/pg_config.h, DEF_PGPORT.
const DEFAULT_PORT: u16 = 5432;
/// Without a `connect_timeout`. libpq would wait for ever; we would rather try again.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// No connection string is longer than this.
const CONNINFO_BYTES_MAX: usize = 16 * 1024;

/// A connection string cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnInfoError {
    /// A key that we do not know.
    #[error("unknown connection parameter. key=`{key}`")]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// The value does not fit the key.
    #[error("bad value of a connection parameter. key=`{key}`, expected=`{expected}`")]
    BadValue {
        /// The key. The value is not repeated: it could be a misplaced password.
        key: &'static str,
        /// What would be right.
        expected: &'static str,
    },
    /// The text is neither `key=value` pairs nor a URI.
    #[error("malformed connection string: {what}")]
    Malformed {
        /// Where it went wrong.
        what: &'static str,
    },
    /// No user is given and the system's user has no name.
    #[error("no user given, and the user that runs this has no name")]
    NoUser,
    /// The password file cannot be used.
    #[error("cannot use the password file. path=`{path}`, reason=`{reason}`")]
    PassFile {
        /// The file.
        path: String,
        /// Why not.
        reason: String,
    },
}

fn malformed(what: &'static str) -> ConnInfoError {
    ConnInfoError::Malformed { what }
}

/// A password that does not print itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Keeps `text` as a password.
    pub fn new(text: impl Into<String>) -> Self {
        Password(text.into())
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// libpq's `sslmode`. PG: doc/src/sgml/libpq.sgml, "SSL Mode Descriptions".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS when the server offers it, its certificate unchecked.
    Prefer,
    /// TLS or nothing, the certificate unchecked unless `sslrootcert` is given.
    Require,
    /// TLS, with a certificate that an authority of ours has signed.
    VerifyCa,
    /// As before, and the certificate is made out to the host's name.
    VerifyFull,
}

/// libpq's `channel_binding`: whether SCRAM is bound to the TLS connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBindingMode {
    /// Never.
    Disable,
    /// When server and connection allow it.
    Prefer,
    /// Or the login fails.
    Require,
}

/// Whom TLS trusts: libpq's `sslrootcert`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootCerts {
    /// The certificates of this PEM file.
    File(PathBuf),
    /// The machine's authorities: `sslrootcert=system`.
    System,
}

/// One server that may be the one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostAddress {
    /// A host name or address, and where to go instead of resolving the name (`hostaddr`).
    Tcp {
        /// Name or address, as TLS checks it.
        host: String,
        /// The address to use.
        address: Option<IpAddr>,
        /// The port.
        port: u16,
    },
    /// The directory of a Unix socket; the port is part of the socket's file name.
    Unix {
        /// The directory.
        directory: PathBuf,
        /// The port.
        port: u16,
    },
}

impl HostAddress {
    /// The socket file of a Unix address. PG: src/include/libpq/pqcomm.h, UNIXSOCK_PATH.
    pub fn socket_path(&self) -> Option<PathBuf> {
        match self {
            Self::Unix { directory, port } => Some(directory.join(format!(".s.PGSQL.{port}"))),
            Self::Tcp { .. } => None,
        }
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, .. } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
            Self::Unix { directory, port } => write!(f, "{}:{port}", directory.display()),
        }
    }
}

/// A parsed connection string. Parse one with `text.parse::<ConnInfo>()`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnInfo {
    /// Tried in this order.
    pub hosts: Vec<HostAddress>,
    /// Who logs in.
    pub user: String,
    /// As given in the string; see [`ConnInfo::password_for`].
    pub password: Option<Password>,
    /// Where passwords stand, instead of `~/.pgpass`.
    pub passfile: Option<PathBuf>,
    /// Only used by connections that speak SQL.
    pub dbname: Option<String>,
    /// What the primary shows in `pg_stat_replication` and `synchronous_standby_names` refers to.
    pub application_name: Option<String>,
    /// Whether and how TLS is used over TCP.
    pub ssl_mode: SslMode,
    /// Whom TLS trusts.
    pub ssl_root_certs: Option<RootCerts>,
    /// Our certificate and its key, both or none.
    pub ssl_client_cert: Option<(PathBuf, PathBuf)>,
    /// Whether SCRAM is bound to the TLS connection.
    pub channel_binding: ChannelBindingMode,
    /// Bound on resolving, connecting, TLS and login, each.
    pub connect_timeout: Duration,
    /// Refuse servers that are in recovery.
    pub primary_only: bool,
}

impl ConnInfo {
    /// The password for `host`: of the string, else of the password file. `None` when neither has one.
    pub fn password_for(&self, host: &HostAddress, database: &str) -> Result<Option<Password>, ConnInfoError> {
        if self.password.is_some() {
            return Ok(self.password.clone());
        }
        passfile::look_up(self.passfile.as_deref(), host, database, &self.user)
    }

    /// The name under which the primary lists us.
    pub fn application_name(&self) -> &str {
        self.application_name.as_deref().unwrap_or("pageserver")
    }
}

impl fmt::Display for ConnInfo {
    /// `user@host:port`, several hosts with commas. For people; not a connection string, and without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@", self.user)?;
        for (index, host) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for ConnInfo {
    type Err = ConnInfoError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > CONNINFO_BYTES_MAX {
            return Err(malformed("too long"));
        }
        let uri = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
        let pairs = match uri {
            Some(rest) => uri_pairs(rest)?,
            None => keyword_pairs(text)?,
        };
        Settings::from_pairs(pairs)?.resolve()
    }
}

/// The values as text, before they are checked against each other.
#[derive(Default)]
struct Settings {
    host: Option<String>,
    hostaddr: Option<String>,
    port: Option<String>,
    user: Option<String>,
    password: Option<String>,
    passfile: Option<String>,
    dbname: Option<String>,
    application_name: Option<String>,
    sslmode: Option<String>,
    sslrootcert: Option<String>,
    sslcert: Option<String>,
    sslkey: Option<String>,
    channel_binding: Option<String>,
    connect_timeout: Option<String>,
    target_session_attrs: Option<String>,
}

impl Settings {
    /// Later pairs win, as with libpq; an empty value is as good as none.
    fn from_pairs(pairs: Vec<(String, String)>) -> Result<Self, ConnInfoError> {
        let mut settings = Settings::default();
        for (key, value) in pairs {
            let field = match key.as_str() {
                "host" => &mut settings.host,
                "hostaddr" => &mut settings.hostaddr,
                "port" => &mut settings.port,
                "user" => &mut settings.user,
                "password" => &mut settings.password,
                "passfile" => &mut settings.passfile,
                "dbname" => &mut settings.dbname,
                "application_name" => &mut settings.application_name,
                "sslmode" => &mut settings.sslmode,
                "sslrootcert" => &mut settings.sslrootcert,
                "sslcert" => &mut settings.sslcert,
                "sslkey" => &mut settings.sslkey,
                "channel_binding" => &mut settings.channel_binding,
                "connect_timeout" => &mut settings.connect_timeout,
                "target_session_attrs" => &mut settings.target_session_attrs,
                _ => return Err(ConnInfoError::UnknownKey { key: key.chars().take(64).collect() }),
            };
            *field = Some(value).filter(|value| !value.is_empty());
        }
        Ok(settings)
    }

    fn resolve(self) -> Result<ConnInfo, ConnInfoError> {
        let hosts = resolve_hosts(self.host.as_deref(), self.hostaddr.as_deref(), self.port.as_deref())?;
        let user = match self.user {
            Some(user) => user,
            None => nix::unistd::User::from_uid(nix::unistd::geteuid())
                .ok()
                .flatten()
                .map(|user| user.name)
                .ok_or(ConnInfoError::NoUser)?,
        };
        // The wire format ends texts with a zero byte.
        for text in [Some(&user), self.password.as_ref(), self.dbname.as_ref(), self.application_name.as_ref()] {
            if text.is_some_and(|text| text.contains('\0')) {
                return Err(malformed("a value contains a zero byte"));
            }
        }
        let ssl_mode = match self.sslmode.as_deref() {
            None | Some("prefer" | "allow") => SslMode::Prefer,
            Some("disable") => SslMode::Disable,
            Some("require") => SslMode::Require,
            Some("verify-ca") => SslMode::VerifyCa,
            Some("verify-full") => SslMode::VerifyFull,
            Some(_) => return Err(bad("sslmode", "disable, prefer, require, verify-ca or verify-full")),
        };
        let ssl_root_certs = self.sslrootcert.map(|path| match path.as_str() {
            "system" => RootCerts::System,
            _ => RootCerts::File(path.into()),
        });
        if ssl_mode >= SslMode::VerifyCa && ssl_root_certs.is_none() {
            return Err(bad("sslrootcert", "a file or `system`, because sslmode demands a verified certificate"));
        }
        if ssl_root_certs == Some(RootCerts::System) && ssl_mode != SslMode::VerifyFull {
            // Anybody can have a certificate of a public authority, so only the name says who it is. As libpq.
            return Err(bad("sslmode", "verify-full, because sslrootcert=system"));
        }
        let ssl_client_cert = match (self.sslcert, self.sslkey) {
            (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
            (None, None) => None,
            _ => return Err(bad("sslcert", "sslcert and sslkey together")),
        };
        let channel_binding = match self.channel_binding.as_deref() {
            None | Some("prefer") => ChannelBindingMode::Prefer,
            Some("disable") => ChannelBindingMode::Disable,
            Some("require") => ChannelBindingMode::Require,
            Some(_) => return Err(bad("channel_binding", "disable, prefer or require")),
        };
        let connect_timeout = match self.connect_timeout.as_deref() {
            None => DEFAULT_CONNECT_TIMEOUT,
            // As libpq: zero and below mean no timeout. An hour stands in for it: we want to try again some day.
            Some(text) => match text.trim().parse::<i32>() {
                Ok(seconds @ 1..) => Duration::from_secs(seconds.unsigned_abs().into()),
                Ok(_) => Duration::from_secs(3600),
                Err(_) => return Err(bad("connect_timeout", "seconds")),
            },
        };
        let primary_only = match self.target_session_attrs.as_deref() {
            None | Some("any") => false,
            Some("primary" | "read-write") => true,
            Some(_) => return Err(bad("target_session_attrs", "any or primary")),
        };
        Ok(ConnInfo {
            hosts,
            user,
            password: self.password.map(Password),
            passfile: self.passfile.map(PathBuf::from),
            dbname: self.dbname,
            application_name: self.application_name,
            ssl_mode,
            ssl_root_certs,
            ssl_client_cert,
            channel_binding,
            connect_timeout,
            primary_only,
        })
    }
}

fn bad(key: &'static str, expected: &'static str) -> ConnInfoError {
    ConnInfoError::BadValue { key, expected }
}

/// Lists with commas, paired up; one port serves all hosts. PG: src/interfaces/libpq/fe-connect.c, pqConnectOptions2.
fn resolve_hosts(
    host: Option<&str>,
    hostaddr: Option<&str>,
    port: Option<&str>,
) -> Result<Vec<HostAddress>, ConnInfoError> {
    let names: Vec<&str> = host.map(|list| list.split(',').map(str::trim).collect()).unwrap_or_default();
    let addresses: Vec<&str> = hostaddr.map(|list| list.split(',').map(str::trim).collect()).unwrap_or_default();
    let ports: Vec<&str> = port.map(|list| list.split(',').map(str::trim).collect()).unwrap_or_default();
    let count = names.len().max(addresses.len()).max(1);
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        return Err(bad("hostaddr", "as many addresses as there are hosts"));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(bad("port", "one port, or as many as there are hosts"));
    }
    (0..count)
        .map(|index| {
            let port = match ports.get(index).or(ports.first()) {
                None | Some(&"") => DEFAULT_PORT,
                Some(text) => match text.parse() {
                    Ok(port @ 1..) => port,
                    _ => return Err(bad("port", "1 to 65535")),
                },
            };
            let address = match addresses.get(index) {
                None | Some(&"") => None,
                Some(text) => Some(text.parse::<IpAddr>().map_err(|_| bad("hostaddr", "an IP address"))?),
            };
            let name = names.get(index).copied().filter(|name| !name.is_empty());
            Ok(match (name, address) {
                (Some(path), None) if path.starts_with('/') => HostAddress::Unix { directory: path.into(), port },
                (None, None) => HostAddress::Unix { directory: DEFAULT_SOCKET_DIRECTORY.into(), port },
                (Some(name), address) => HostAddress::Tcp { host: name.to_owned(), address, port },
                (None, Some(address)) => HostAddress::Tcp { host: address.to_string(), address: Some(address), port },
            })
        })
        .collect()
}

/// `key = 'va\'lue' key2=value2`. PG: src/interfaces/libpq/fe-connect.c, conninfo_parse.
fn keyword_pairs(text: &str) -> Result<Vec<(String, String)>, ConnInfoError> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').ok_or(malformed("`=` is missing after a key"))?;
        let key = key.trim_end();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(malformed("`=` is missing after a key"));
        }
        let after = after.trim_start();
        let mut value = String::new();
        let mut chars = after.char_indices();
        let quoted = after.starts_with('\'');
        if quoted {
            chars.next();
        }
        let mut end = if quoted { None } else { Some(after.len()) };
        while let Some((index, c)) = chars.next() {
            match c {
                '\\' => value.push(chars.next().ok_or(malformed("a backslash ends the string"))?.1),
                '\'' if quoted => {
                    end = Some(index + 1);
                    break;
                }
                c if !quoted && c.is_whitespace() => {
                    end = Some(index);
                    break;
                }
                c => value.push(c),
            }
        }
        let end = end.ok_or(malformed("a quoted value has no end"))?;
        pairs.push((key.to_owned(), value));
        rest = after[end..].trim_start();
    }
    Ok(pairs)
}

/// `[user[:password]@][host[:port],...][/dbname][?key=value&...]`. PG: src/interfaces/libpq/fe-connect.c, conninfo_uri_parse_options.
fn uri_pairs(rest: &str) -> Result<Vec<(String, String)>, ConnInfoError> {
    let mut pairs = Vec::new();
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, dbname) = rest.split_once('/').unwrap_or((rest, ""));
    let (userinfo, hosts) = match authority.rsplit_once('@') {
        Some((userinfo, hosts)) => (userinfo, hosts),
        None => ("", authority),
    };
    let (user, password) = match userinfo.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (userinfo, None),
    };
    let mut push = |key: &str, value: &str| -> Result<(), ConnInfoError> {
        pairs.push((percent_decoded(key)?, percent_decoded(value)?));
        Ok(())
    };
    push("user", user)?;
    push("password", password.unwrap_or(""))?;
    push("dbname", dbname)?;
    let mut names = Vec::new();
    let mut ports = Vec::new();
    for host in hosts.split(',') {
        let (name, port) = match host.strip_prefix('[') {
            Some(v6) => {
                let (name, port) = v6.split_once(']').ok_or(malformed("an IPv6 address has no `]`"))?;
                let port = match port {
                    "" => "",
                    port => port.strip_prefix(':').ok_or(malformed("no `:` between host and port"))?,
                };
                (name, port)
            }
            None => host.split_once(':').unwrap_or((host, "")),
        };
        names.push(name);
        ports.push(port);
    }
    push("host", &names.join(","))?;
    push("port", &if ports.iter().all(|port| port.is_empty()) { String::new() } else { ports.join(",") })?;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or(malformed("`=` is missing in the query of the URI"))?;
        // JDBC's spelling, which libpq takes as well.
        let (key, value) = if (key, value) == ("ssl", "true") { ("sslmode", "require") } else { (key, value) };
        push(key, value)?;
    }
    Ok(pairs)
}

fn percent_decoded(text: &str) -> Result<String, ConnInfoError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(malformed("bad `%` escape")) };
        bytes.push((high * 16 + low) as u8);
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(malformed("a `%` escape is not text")),
    }
}

#[cfg(test)]
#[path = "conninfo_tests.rs"]
mod tests;
