//! Goal: connection strings mean what they mean to libpq, wrong ones are refused by name, passwords do not show.
//! Method: cases in both spellings; a wrong string is compared with the error it must give.

use super::*;

fn parse(text: &str) -> ConnInfo {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn tcp(host: &str, port: u16) -> HostAddress {
    HostAddress::Tcp { host: host.into(), address: None, port }
}

#[test]
fn pairs_and_uris_mean_the_same() {
    let pairs = parse(
        r"host=db.example port = 6543 user=rep password='it''s' dbname=x application_name='a b\'c' sslmode=require connect_timeout=3"
            .replace("it''s", r"it\'s")
            .as_str(),
    );
    let uri = parse("postgres://rep:it's@db.example:6543/x?application_name=a%20b'c&sslmode=require&connect_timeout=3");
    assert_eq!(pairs, uri);
    assert_eq!(pairs.hosts, [tcp("db.example", 6543)]);
    assert_eq!(pairs.password, Some(Password::new("it's")));
    assert_eq!(pairs.application_name(), "a b'c");
    assert_eq!(pairs.ssl_mode, SslMode::Require);
    assert_eq!(pairs.connect_timeout, Duration::from_secs(3));
}

#[test]
fn hosts_are_lists_directories_and_addresses() {
    assert_eq!(parse("host=a,b port=1,2 user=u").hosts, [tcp("a", 1), tcp("b", 2)]);
    assert_eq!(parse("postgresql://u@a:1,b:2/").hosts, [tcp("a", 1), tcp("b", 2)]);
    assert_eq!(parse("host=a,b user=u").hosts, [tcp("a", 5432), tcp("b", 5432)]);
    assert_eq!(parse("postgres://u@[::1]:7/").hosts, [tcp("::1", 7)]);
    assert_eq!(parse("postgres://u@[::1]:7/").hosts[0].to_string(), "[::1]:7");
    let unix = &parse("host=/tmp/x port=5499 user=u").hosts[0];
    assert_eq!(unix.socket_path(), Some("/tmp/x/.s.PGSQL.5499".into()));
    assert_eq!(parse("postgres://u@%2Ftmp%2Fx:5499/").hosts[0], *unix);
    let named = HostAddress::Tcp { host: "name".into(), address: "127.0.0.1".parse().ok(), port: 5432 };
    assert_eq!(parse("host=name hostaddr=127.0.0.1 user=u").hosts, [named]);
    assert!(matches!(parse("user=u").hosts[0], HostAddress::Unix { .. }));
}

#[test]
fn wrong_strings_are_refused_by_name() {
    let check = |text: &str, expect: &str| {
        let error = text.parse::<ConnInfo>().expect_err(text).to_string();
        assert!(error.contains(expect), "{text}: {error}");
    };
    check("host=a gssencmode=disable", "key=`gssencmode`");
    check("host=a sslmode=maybe", "key=`sslmode`");
    check("host=a sslmode=verify-full", "key=`sslrootcert`");
    check("host=a sslmode=require sslrootcert=system", "verify-full");
    check("host=a sslcert=x", "sslkey");
    check("host=a port=0", "key=`port`");
    check("host=a port=65536", "key=`port`");
    check("host=a,b,c port=1,2", "key=`port`");
    check("host=a hostaddr=b", "key=`hostaddr`");
    check("host", "`=` is missing");
    check("host=a user='b", "no end");
    check("host=a user=b\\", "backslash");
    check("postgres://a%zz/", "escape");
    check("postgres://a%ff/", "escape");
    check("postgres://u%00@a/", "escape");
    check("postgres://[::1/", "IPv6");
    check("postgres://a?b", "`=` is missing");
    check(&format!("host={}", "a".repeat(CONNINFO_BYTES_MAX)), "too long");
}

#[test]
fn the_password_never_shows() {
    let conninfo = parse("postgres://u:geheim@a/");
    assert!(!format!("{conninfo:?} {conninfo:#?} {conninfo}").contains("geheim"));
    // A password in the wrong place: its text must not come back in the error.
    for text in ["host=a port=geheim", "host=a sslmode=geheim", "host=a connect_timeout=geheim"] {
        let error = text.parse::<ConnInfo>().expect_err(text);
        assert!(!format!("{error} {error:?}").contains("geheim"));
    }
}
