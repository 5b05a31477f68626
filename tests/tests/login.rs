//! Goal: we log in to a primary in every way that it asks for, and never where we should not.
//! Method: real servers with one kind of authentication each, certificates made on the spot, wrong ones among them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use pageserver::replication::{ConnInfo, Connection, Mode, ReplicationError, one_line};
use pageserver::wal_receiver::{ReceiverError, check_wal_level, explain_refused_connection};
use postgres_ffi::PgVersion;
use tests::process::{run, server_user};
use tests::{Auth, Postgres, Stop, TestDir};

fn log_in(conninfo: &str) -> Result<Connection, ReplicationError> {
    Connection::connect(&conninfo.parse::<ConnInfo>()?, Mode::Replication)
}

fn versions() -> Vec<PgVersion> {
    PgVersion::ALL.into_iter().filter(|version| Postgres::is_installed(*version)).collect()
}

#[test]
fn every_password_method_works_and_a_wrong_password_is_named() -> Result<()> {
    for (auth, version) in [
        (Auth::Trust, PgVersion::V15),
        (Auth::Password, PgVersion::V15),
        (Auth::Md5, PgVersion::V15),
        (Auth::Scram, PgVersion::V15),
        (Auth::Md5, PgVersion::V17),
        (Auth::Scram, PgVersion::V17),
    ] {
        if !Postgres::is_installed(version) {
            continue;
        }
        let dir = TestDir::new("login")?;
        let builder = Postgres::builder(version).auth(auth);
        // Passwords are kept in the form that the method needs.
        let builder = if auth == Auth::Md5 { builder.setting("password_encryption", "md5") } else { builder };
        let server = builder.start(&dir)?;
        if auth == Auth::Md5 {
            server.execute("SET password_encryption = md5; ALTER USER postgres PASSWORD 'not a secret'")?;
        }
        let mut connection = log_in(&server.conninfo()).with_context(|| format!("{auth:?} on {version}"))?;
        assert_eq!(connection.version(), version);
        let identity = connection.identify_system()?;
        let expected = server.query_text("SELECT system_identifier FROM pg_control_system()")?;
        assert_eq!(identity.system_id.to_string(), expected);
        assert_eq!(connection.show("wal_level")?, "replica");
        if auth == Auth::Trust {
            continue;
        }
        let wrong = server.conninfo().replace("not a secret", "wrong one");
        let error = log_in(&wrong).err().context("a wrong password was accepted")?;
        assert_eq!(error.sqlstate(), Some("28P01"), "{}", one_line(&error));
        assert!(error.needs_a_person() && !format!("{error:?} {}", one_line(&error)).contains("wrong one"));
        let none = format!("host=127.0.0.1 port={} user=postgres passfile=/nonexistent", server.port());
        assert!(matches!(log_in(&none), Err(ReplicationError::ConnInfo(_))));
        let none = none.replace("/nonexistent", &empty_passfile(dir.path())?);
        assert!(matches!(log_in(&none), Err(ReplicationError::PasswordMissing { .. })), "{auth:?}");
        let file = passfile(dir.path(), "*:*:replication:postgres:not a secret\n")?;
        log_in(&format!("host=127.0.0.1 port={} user=postgres passfile={file}", server.port()))?;
    }
    Ok(())
}

fn passfile(dir: &Path, content: &str) -> Result<String> {
    let path = dir.join("passfile");
    fs::write(&path, content)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(path.display().to_string())
}

fn empty_passfile(dir: &Path) -> Result<String> {
    passfile(dir, "")
}

#[test]
fn slots_and_settings_are_asked_on_every_version() -> Result<()> {
    for version in versions() {
        let dir = TestDir::new("slots")?;
        let server = Postgres::builder(version).start(&dir)?;
        let mut connection = log_in(&server.conninfo())?;
        assert_eq!(connection.read_slot("a_slot")?, None);
        assert!(connection.create_physical_slot("a_slot")?);
        assert!(!connection.create_physical_slot("a_slot")?);
        if version >= PgVersion::V15 {
            let slot = connection.read_slot("a_slot")?.context("no slot")?;
            let restart_lsn = slot.restart_lsn.context("the slot keeps nothing")?;
            assert!(restart_lsn <= connection.identify_system()?.flush_lsn);
        }
        // An error of the server leaves the connection usable.
        let missing = connection.timeline_history(7).err().context("a history of nothing")?;
        assert_eq!(missing.sqlstate(), Some("58P01"));
        assert!(connection.drop_slot("bad name").is_err());
        connection.drop_slot("a_slot")?;
        assert_eq!(connection.read_slot("a_slot")?, None);
    }
    Ok(())
}

#[test]
fn unix_sockets_and_lists_of_hosts_work() -> Result<()> {
    let dir = TestDir::new("unix")?;
    let sockets = dir.create_subdir("sockets")?;
    let builder = Postgres::builder(PgVersion::V15).setting("unix_socket_directories", &sockets.display().to_string());
    let server = builder.start(&dir)?;
    let unix = format!("host={} port={} user=postgres sslmode=require", sockets.display(), server.port());
    log_in(&unix)?.identify_system()?;
    // Nobody listens on port 1.
    let port = server.port();
    log_in(&format!("host=127.0.0.1,127.0.0.1 port=1,{port} user=postgres"))?.identify_system()?;
    log_in(&format!("postgres://postgres@localhost:{port}/?target_session_attrs=primary"))?.identify_system()?;
    let nobody = log_in("host=127.0.0.1 port=1 user=postgres");
    assert!(matches!(nobody, Err(ReplicationError::Connect { .. })));
    let unknown = log_in("host=no-such-host.invalid user=postgres");
    assert!(matches!(unknown, Err(ReplicationError::Resolve { .. })));
    Ok(())
}

#[test]
fn a_primary_that_logs_too_little_is_refused_with_the_reason() -> Result<()> {
    let dir = TestDir::new("minimal")?;
    let builder = Postgres::builder(PgVersion::V15).wal_level("minimal").setting("max_wal_senders", "0");
    let mut server = builder.start(&dir)?;
    let conninfo: ConnInfo = server.conninfo().parse()?;
    let refused = Connection::connect(&conninfo, Mode::Replication).err().context("a minimal primary let us in")?;
    let explained = explain_refused_connection(&conninfo, refused);
    assert!(matches!(&explained, ReceiverError::WalLevel { wal_level } if wal_level == "minimal"), "{explained}");
    assert!(explained.to_string().contains("wal_level"));

    server.set("wal_level", "replica")?;
    server.restart(Stop::Fast)?;
    let refused = Connection::connect(&conninfo, Mode::Replication).err().context("no sender, and yet")?;
    let explained = explain_refused_connection(&conninfo, refused).to_string();
    assert!(explained.contains("max_wal_senders is 0"), "{explained}");

    server.set("max_wal_senders", "3")?;
    server.restart(Stop::Fast)?;
    check_wal_level(&mut Connection::connect(&conninfo, Mode::Replication)?)?;
    Ok(())
}

/// Certificates below `dir`: an authority, a server certificate for `localhost` that it signed, a self-signed one, another authority, and a client
/// certificate for user postgres.
struct Certificates {
    dir: PathBuf,
}

impl Certificates {
    fn make(dir: &TestDir) -> Result<Self> {
        let certificates = Certificates { dir: dir.create_subdir("certificates")? };
        for (name, subject) in [("authority", "/CN=authority"), ("stranger", "/CN=stranger"), ("self", "/CN=self")] {
            let alternative = "subjectAltName=DNS:localhost,IP:127.0.0.1";
            certificates.openssl(&[
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                subject,
                "-addext",
                alternative,
                "-keyout",
                &certificates.path(name, "key"),
                "-out",
                &certificates.path(name, "crt"),
            ])?;
        }
        certificates.signed("server", "/CN=server", "subjectAltName=DNS:localhost")?;
        certificates.signed("client", "/CN=postgres", "extendedKeyUsage=clientAuth")?;
        Ok(certificates)
    }

    fn signed(&self, name: &str, subject: &str, extension: &str) -> Result<()> {
        let extensions = self.path(name, "ext");
        fs::write(&extensions, extension)?;
        // An elliptic curve key, so that both kinds are tried.
        self.openssl(&[
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            subject,
            "-keyout",
            &self.path(name, "key"),
            "-out",
            &self.path(name, "csr"),
        ])?;
        self.openssl(&[
            "x509",
            "-req",
            "-days",
            "2",
            "-in",
            &self.path(name, "csr"),
            "-CA",
            &self.path("authority", "crt"),
            "-CAkey",
            &self.path("authority", "key"),
            "-CAcreateserial",
            "-extfile",
            &extensions,
            "-out",
            &self.path(name, "crt"),
        ])
    }

    fn openssl(&self, arguments: &[&str]) -> Result<()> {
        run(Command::new("openssl").args(arguments).current_dir(&self.dir)).map(drop)
    }

    fn path(&self, name: &str, kind: &str) -> String {
        self.dir.join(format!("{name}.{kind}")).display().to_string()
    }

    /// Makes the server use certificate `name`, trust the authority for clients, and start again.
    fn install(&self, server: &mut Postgres, name: &str) -> Result<()> {
        for file in fs::read_dir(&self.dir)? {
            let path = file?.path();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            if let Some((uid, gid)) = server_user()? {
                std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
            }
        }
        server.set("ssl", "on")?;
        server.set("ssl_cert_file", &self.path(name, "crt"))?;
        server.set("ssl_key_file", &self.path(name, "key"))?;
        server.set("ssl_ca_file", &self.path("authority", "crt"))?;
        server.restart(Stop::Fast)
    }
}

/// Is the connection encrypted, as the server sees it?
fn is_encrypted(server: &Postgres) -> Result<bool> {
    let sql = "SELECT ssl::text FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE backend_type = 'walsender'";
    Ok(server.query_text(sql)? == "true")
}

#[test]
fn tls_is_used_and_certificates_are_checked_as_asked() -> Result<()> {
    for version in [PgVersion::V15, PgVersion::V17].into_iter().filter(|version| Postgres::is_installed(*version)) {
        let dir = TestDir::new("tls")?;
        let mut server = Postgres::builder(version).auth(Auth::Scram).start(&dir)?;
        let refused = log_in(&format!("{} sslmode=require", server.conninfo()));
        assert!(matches!(refused, Err(ReplicationError::TlsRefused { .. })));
        log_in(&server.conninfo())?;

        let certificates = Certificates::make(&dir)?;
        certificates.install(&mut server, "server")?;
        let (authority, stranger) = (certificates.path("authority", "crt"), certificates.path("stranger", "crt"));
        let check = |settings: &str, works: bool| -> Result<()> {
            let named = server.conninfo().replace("host=127.0.0.1", "host=localhost hostaddr=127.0.0.1");
            match log_in(&format!("{named} {settings}")) {
                Ok(_connection) => assert!(works && is_encrypted(&server)?, "{settings}"),
                Err(ReplicationError::Tls { .. }) => assert!(!works, "{settings}"),
                Err(error) => panic!("{settings}: {}", one_line(&error)),
            }
            Ok(())
        };
        // SCRAM is bound to the connection where that is not turned off: the server refuses a wrong binding.
        check("", true)?;
        check("sslmode=require channel_binding=require", true)?;
        check("sslmode=require channel_binding=disable", true)?;
        check(&format!("sslmode=verify-ca sslrootcert={authority}"), true)?;
        check(&format!("sslmode=verify-full sslrootcert={authority}"), true)?;
        check(&format!("sslmode=verify-ca sslrootcert={stranger}"), false)?;
        check(&format!("sslmode=require sslrootcert={stranger}"), false)?;
        check("sslmode=verify-full sslrootcert=system", false)?;
        // The certificate is not made out to the address.
        let address = format!("{} sslrootcert={authority}", server.conninfo());
        assert!(matches!(log_in(&format!("{address} sslmode=verify-full")), Err(ReplicationError::Tls { .. })));
        log_in(&format!("{address} sslmode=verify-ca"))?;
        let missing = log_in(&format!("{address} sslmode=verify-ca sslrootcert=/nonexistent"));
        assert!(matches!(missing, Err(ReplicationError::Certificate { .. })));
        // Without TLS there is nothing to bind to.
        let unbound = log_in(&format!("{} sslmode=disable channel_binding=require", server.conninfo()));
        assert!(matches!(unbound, Err(ReplicationError::Scram { .. })));
        assert!(!{
            let _connection = log_in(&format!("{} sslmode=disable", server.conninfo()))?;
            is_encrypted(&server)?
        });

        certificates.install(&mut server, "self")?;
        let own = certificates.path("self", "crt");
        log_in(&format!("{} sslmode=verify-full sslrootcert={own}", server.conninfo()))?;
        log_in(&format!("{} sslmode=require channel_binding=require", server.conninfo()))?;
        let other = log_in(&format!("{} sslmode=verify-full sslrootcert={authority}", server.conninfo()));
        assert!(matches!(other, Err(ReplicationError::Tls { .. })));
    }
    Ok(())
}

#[test]
fn a_client_certificate_opens_the_door() -> Result<()> {
    let dir = TestDir::new("client-certificate")?;
    let mut server = Postgres::builder(PgVersion::V15).start(&dir)?;
    let certificates = Certificates::make(&dir)?;
    certificates.install(&mut server, "server")?;
    // Replication only with a certificate over TLS; the superuser's own sessions as before.
    fs::write(
        server.data_dir().join("pg_hba.conf"),
        "hostssl replication all 127.0.0.1/32 cert\nhost all all 127.0.0.1/32 trust\n",
    )?;
    server.restart(Stop::Fast)?;
    let without = log_in(&format!("{} sslmode=require", server.conninfo())).err().context("let in without")?;
    assert_eq!(without.sqlstate(), Some("28000"), "{}", one_line(&without));
    let (certificate, key) = (certificates.path("client", "crt"), certificates.path("client", "key"));
    let with = format!("{} sslmode=require sslcert={certificate} sslkey={key}", server.conninfo());
    log_in(&with)?.identify_system()?;
    Ok(())
}
