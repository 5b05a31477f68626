//! `pageserver init|serve|stop|status` where they cannot do what they are told.

use std::fs;

use anyhow::Result;
use tests::{Outcome, PageServer, TestDir};

fn check(outcome: &Outcome, exit_code: i32, text: &str) {
    let all = format!("{}{}", outcome.stdout, outcome.stderr);
    assert!(outcome.exit_code == exit_code && all.contains(text), "expected {exit_code} and `{text}`: {outcome:?}");
    assert!(!all.contains("panicked"), "{all}");
}

#[test]
fn stop_and_status_tell_what_is() -> Result<()> {
    let dir = TestDir::new("stop-status")?;
    let mut server = PageServer::builder().start(&dir)?;
    check(&server.outcome(&["status"])?, 0, "running, pid ");
    check(&server.outcome(&["init"])?, 1, "the directory is not empty");
    check(&server.outcome(&["stop"])?, 0, "stopped");
    check(&server.outcome(&["status"])?, 1, "no page server runs on this data directory");
    check(&server.outcome(&["stop"])?, 1, "no page server runs on this data directory");
    server.stop()?; // It ended well.
    // A killed one leaves its pid file, which names nobody.
    server.start()?;
    server.kill()?;
    check(&server.outcome(&["status"])?, 1, "no page server runs on this data directory");
    server.start()?;
    check(&server.outcome(&["status"])?, 0, "running, pid ");
    server.stop()
}

#[test]
fn a_data_directory_is_served_once() -> Result<()> {
    let dir = TestDir::new("served-once")?;
    let mut server = PageServer::builder().start(&dir)?;
    let serve = ["serve", "--listen", "127.0.0.1:0"];
    check(&server.outcome(&serve)?, 1, "a page server runs already");
    // Even if somebody removes the pid file, the store opens once.
    fs::remove_file(server.data_dir().join("pageserver.pid"))?;
    check(&server.outcome(&serve)?, 1, "store is open elsewhere");
    assert!(server.query("SHOW STATUS")?.len() > 3, "the first one serves");
    server.kill()
}

#[test]
fn what_is_no_data_directory_or_no_configuration_is_named() -> Result<()> {
    let dir = TestDir::new("no-data-dir")?;
    let mut server = PageServer::builder().start(&dir)?;
    server.stop()?;
    check(&server.outcome(&["serve", "--listen", "192.0.2.1:6400"])?, 1, "loopback");
    check(&server.outcome(&["serve", "--listen", "here"])?, 2, "here");
    check(&server.outcome(&["serve", "--no-such-flag"])?, 2, "--no-such-flag");
    let config = server.data_dir().join("pageserver.toml");
    let text = fs::read_to_string(&config)?;
    fs::write(&config, format!("no_such_key = 1\n{text}"))?;
    check(&server.outcome(&["serve"])?, 1, "no_such_key");
    fs::remove_file(&config)?;
    check(&server.outcome(&["serve"])?, 1, "`pageserver init` makes one");
    Ok(())
}
