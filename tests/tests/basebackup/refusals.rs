//! What a server would not start from, or would start from with transactions forgotten, is refused before the first byte.
//! Method: copies of a stopped server's directory, each with a file taken away or moved; what is there is imported as it is.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use pageserver::client::{Client, ClientConfig};
use postgres_ffi::PgVersion;
use tests::standby::{Tablespaces, copy_data_dir};
use tests::{PageServer, Postgres, Stop, TestDir};

use super::primary;

/// Enough that the pages of commit timestamps are needed for certain: the next id is known to 1,024 only.
const TRANSACTIONS: usize = 1200;

type Damage = fn(&Path) -> Result<()>;

fn remove(data_dir: &Path, file: &str) -> Result<()> {
    fs::remove_file(data_dir.join(file)).with_context(|| file.to_owned())
}

/// What is done to a copy, and what the refusal says. The first one has nothing done to it.
const CASES: &[(&str, Damage, Option<&str>)] = &[
    ("whole", |_| Ok(()), None),
    ("xact", |dir| remove(dir, "pg_xact/0000"), Some("pg_xact/0")),
    ("offsets", |dir| remove(dir, "pg_multixact/offsets/0000"), Some("pg_multixact/offsets/0")),
    ("members", |dir| remove(dir, "pg_multixact/members/0000"), Some("pg_multixact/members/0")),
    ("timestamps", |dir| remove(dir, "pg_commit_ts/0000"), Some("pg_commit_ts/0")),
    ("future", move_prepared, Some("prepared transaction is not below the next transaction id")),
];

/// The prepared transaction gets an id that was never given out.
fn move_prepared(data_dir: &Path) -> Result<()> {
    let entry = fs::read_dir(data_dir.join("pg_twophase"))?.next().context("a prepared transaction")??;
    Ok(fs::rename(entry.path(), data_dir.join("pg_twophase/00FFFFFF"))?)
}

#[test]
fn what_is_not_whole_is_refused_beforehand() {
    check().unwrap();
}

fn check() -> Result<()> {
    let dir = TestDir::new("refusals")?;
    let mut primary = Postgres::builder(PgVersion::V15).start(&dir)?;
    primary.execute("CREATE TABLE locked AS SELECT generate_series(1, 100) n; CREATE TABLE marks (mark text)")?;
    let mut session = primary.connect()?;
    for _ in 0..TRANSACTIONS {
        session.batch_execute("INSERT INTO marks VALUES ('x')")?;
    }
    drop(session);
    primary::multixacts(&primary)?;
    primary.execute("BEGIN; INSERT INTO marks VALUES ('y'); PREPARE TRANSACTION 'prepared'")?;
    primary.stop(Stop::Fast)?;

    let page_server = PageServer::builder().start(&dir)?;
    let mut client = Client::connect(&ClientConfig::new(format!("127.0.0.1:{}", page_server.port())))?;
    for (name, damage, refusal) in CASES {
        let copy = dir.path().join(format!("copy-{name}"));
        copy_data_dir(primary.data_dir(), &copy, Tablespaces::InPlace)?;
        damage(&copy)?;
        client.query_one(&format!("IMPORT {name} FROM DIRECTORY '{}'", copy.display()))?;
        match (client.copy_out(&format!("BASEBACKUP {name} --no-data")), refusal) {
            (Ok(mut backup), None) => _ = std::io::copy(&mut backup, &mut std::io::sink())?,
            (Err(error), Some(refusal)) => {
                let error = error.to_string();
                ensure!(error.contains(refusal) && error.contains("XX001"), "{name}: {error}");
            }
            (Ok(_), Some(_)) => bail!("{name} was not refused"),
            (Err(error), None) => return Err(error).context("of the whole copy"),
        }
    }
    Ok(())
}
