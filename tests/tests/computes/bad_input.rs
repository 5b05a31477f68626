//! What cannot be is refused with the reason, and leaves nothing behind.

use std::fs;
use std::net::TcpListener;

use anyhow::Result;
use postgres_ffi::{Lsn, PgVersion};
use tests::{Computes, PageServer, TestDir};

use super::life::rig;

/// What is there: names in the directory of computes, and branches.
fn inventory(server: &PageServer, computes: &Computes) -> Result<(Vec<String>, Vec<String>)> {
    let mut names: Vec<String> = fs::read_dir(computes.root())?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    let mut branches: Vec<String> = server.query("SHOW TIMELINES")?.into_iter().map(|row| row[0].clone()).collect();
    branches.sort();
    Ok((names, branches))
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() -> Result<()> {
    let dir = TestDir::new("compute-refused")?;
    let (mut server, computes) = rig(&dir, PgVersion::V15)?;
    let there = computes.create("there", "main", &["--no-sync"])?;
    let taken = there.report["port"].to_string();
    let first_readable: Lsn = server.timeline("main", "first_readable_lsn")?.parse()?;
    fs::create_dir(computes.root().join("full"))?;
    fs::write(computes.root().join("full/something"), "")?;
    fs::create_dir(dir.path().join("empty"))?;
    let empty = dir.path().join("empty").display().to_string();
    let other_version = "/opt/pageserver-postgresql/17/bin";
    let other_version =
        std::env::var("PAGESERVER_PG_HOME").map_or(other_version.to_owned(), |home| format!("{home}/17/bin"));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let busy = listener.local_addr()?.port().to_string();
    let before = inventory(&server, &computes)?;
    let long = "x".repeat(64);
    let cases: &[(&[&str], &str)] = &[
        (&["there", "--branch", "main"], "a compute of this name"),
        (&["..", "--branch", "main"], "letters, digits"),
        (&["a/b", "--branch", "main"], "letters, digits"),
        (&["", "--branch", "main"], "letters, digits"),
        (&[&long, "--branch", "main"], "letters, digits"),
        (&["full", "--branch", "main"], "not empty"),
        (&["new", "--branch", "nowhere"], "no branch `nowhere`"),
        (&["new", "--branch", ""], "expected a timeline"),
        (&["new", "--branch", "main", "--port", &busy], "the port cannot be used"),
        (&["new", "--branch", "main", "--port", &taken], "taken by compute there"),
        (&["new", "--branch", "main", "--port", "0"], "--port"),
        (&["new", "--branch", "main", "--port", "65536"], "--port"),
        (&["new", "--branch", "main", "--pg-bin", &empty], "there is no postgres"),
        (
            &["new", "--branch", "main", "--pg-bin", &other_version],
            "the branch is of PostgreSQL 15, and --pg-bin has PostgreSQL 17",
        ),
        (&["new", "--branch", "main", "--run-as", "root"], "name another user"),
        (&["new", "--branch", "main", "--run-as", "no-such-user-here"], "no-such-user-here"),
        (&["new", "--branch", "main", "--lsn", "0/8"], "below the first readable"),
        (&["new", "--branch", "main", "--lsn", "FFFF/0"], "has not arrived"),
        (&["new", "--branch", "main", "--lsn", "here"], "not an LSN"),
        (&["new", "--branch", "main", "--time", "last year, perhaps"], "last year, perhaps"),
        (&["new", "--branch", "main", "--lsn", "0/8", "--time", "now"], "cannot be used with"),
        (&["new", "--branch", "main", "--standby", "--lsn", "0/8"], "cannot be used with"),
        (&["new", "--branch", "main", "--standby", "--primary", "no=such key"], "--primary"),
        (&["new", "--branch", "main", "--primary", "host=127.0.0.1"], "--standby"),
        // A branch has to be made, since `there` is on `main`; its name is taken.
        (&["main", "--branch", "main"], "its name is taken"),
        // Made up to the very end, and then undone.
        (
            &["new", "--branch", "main", "--user", "nobody-of-this-name", "--timeout", "10"],
            "does not follow the compute",
        ),
    ];
    for (arguments, text) in cases {
        let outcome = computes.outcome(&[&["create"], *arguments].concat())?;
        assert!(
            outcome.exit_code == 2 && outcome.stderr.contains(text),
            "{arguments:?}: expected `{text}`: {outcome:?}"
        );
        assert!(!outcome.stderr.contains("panicked") && !outcome.stderr.contains("NOT undone"), "{outcome:?}");
        let after = inventory(&server, &computes)?;
        assert_eq!(after, before, "{arguments:?}");
    }
    assert!(first_readable > Lsn::new(8));
    assert_eq!(there.query_text("SELECT 1")?, "1", "the one that is there is not disturbed");
    for arguments in
        [&["start", "nobody"][..], &["stop", "nobody"], &["psql", "nobody"], &["destroy", "nobody", "--confirm"]]
    {
        let refused = computes.outcome(arguments)?;
        assert!(refused.exit_code == 2 && refused.stderr.contains("no such compute"), "{refused:?}");
    }

    // Nobody to ask.
    server.stop()?;
    let refused = computes.outcome(&["create", "new", "--branch", "main"])?;
    assert!(refused.exit_code == 2 && refused.stderr.contains("connect to the page server"), "{refused:?}");
    Ok(())
}

#[test]
fn a_server_that_does_not_start_is_undone_and_shows_its_log() -> Result<()> {
    let dir = TestDir::new("compute-no-start")?;
    let (server, computes) = rig(&dir, PgVersion::V15)?;
    // A `postgres` that says that it is one, and ends.
    let bin = dir.path().join("bad-bin");
    fs::create_dir(&bin)?;
    for (name, text) in [
        (
            "postgres",
            "#!/bin/sh\ncase $1 in --version) echo 'postgres (PostgreSQL) 15.99';; *) echo 'no such luck' >&2; exit 1;; esac\n",
        ),
        ("pg_ctl", "#!/bin/sh\necho 'could not start server' >&2\nexit 1\n"),
    ] {
        fs::write(bin.join(name), text)?;
        fs::set_permissions(bin.join(name), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    let bin = bin.display().to_string();
    let outcome = computes.outcome(&["create", "new", "--branch", "main", "--pg-bin", &bin])?;
    assert!(outcome.exit_code == 2 && outcome.stderr.contains("could not start server"), "{outcome:?}");
    assert!(outcome.stderr.contains("undone:") && !computes.root().join("new").exists(), "{outcome:?}");
    assert_eq!(server.timeline("main", "receiver")?, "");
    Ok(())
}
