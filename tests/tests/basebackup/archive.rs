//! What is in the archive, with each option.

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use pageserver::import::layout::{FileKind, classify};
use postgres_ffi::{ForkNumber, PgVersion};
use tests::{Stop, backup_server};

use super::clone;
use super::primary::{Followed, backup};

/// Of each file, by path.
type Contents = BTreeMap<String, Vec<u8>>;

/// Paths in the order of the archive; the files among them with their bytes.
fn entries(archive: impl Read) -> Result<(Vec<String>, Contents)> {
    let mut archive = tar::Archive::new(archive);
    let (mut paths, mut files) = (Vec::new(), BTreeMap::new());
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        paths.push(path.clone());
        if entry.header().entry_type().is_file() {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            ensure!(files.insert(path.clone(), bytes).is_none(), "{path} comes twice");
        }
    }
    // What follows the archive belongs to it: nothing but zeroes.
    let mut rest = Vec::new();
    archive.into_inner().read_to_end(&mut rest)?;
    ensure!(rest.iter().all(|byte| *byte == 0));
    Ok((paths, files))
}

/// Those that are the same in every backup as of one LSN: the others name the new timeline, or say when.
fn same_in_all(files: &BTreeMap<String, Vec<u8>>) -> BTreeMap<&str, &Vec<u8>> {
    let differs = |path: &str| path.starts_with("pg_wal/") || path == "global/pg_control";
    files.iter().map(|(path, bytes)| (path.as_str(), bytes)).filter(|(path, _)| !differs(path)).collect()
}

#[test]
fn options_change_what_they_say() {
    check().unwrap();
}

fn check() -> Result<()> {
    let followed = Followed::start("archive", PgVersion::V15, "")?;
    let lsn = Some(followed.catch_up()?);
    let (paths, files) = entries(backup(&followed, lsn, &[])?)?;
    ensure!(paths.first().is_some_and(|path| path == "PG_VERSION") && files["PG_VERSION"] == b"15\n");
    ensure!(paths.last().is_some_and(|path| path == "global/pg_control"), "the control file comes last");
    for directory in ["pg_notify/", "pg_wal/archive_status/", "pg_logical/mappings/", "pg_subtrans/"] {
        ensure!(paths.iter().any(|path| path == directory), "{directory}");
    }
    ensure!(!paths.iter().any(|path| path.starts_with("pg_wal/summaries")), "that is for 17 and above");
    let conf = String::from_utf8(files["postgresql.conf"].clone())?;
    ensure!(conf.contains("max_prepared_transactions = 20\n") && conf.contains("wal_level = replica\n"), "{conf}");

    let (_, unzipped) = entries(GzDecoder::new(backup(&followed, lsn, &["--gzip"])?))?;
    ensure!(same_in_all(&files) == same_in_all(&unzipped), "compressing changes the files");

    let (_, bare) = entries(backup(&followed, lsn, &["--no-data"])?)?;
    let kind = |path: &str| classify(path, PgVersion::V15);
    let is_init = |path: &str| matches!(kind(path), FileKind::Relation { fork: ForkNumber::Init, .. });
    let is_data = |path: &str| matches!(kind(path), FileKind::Relation { .. }) && !is_init(path);
    let all = same_in_all(&files);
    ensure!(all.keys().filter(|path| is_data(path)).count() > 500);
    ensure!(all.keys().filter(|path| is_init(path)).count() > 1);
    let expect: BTreeMap<_, _> = all.into_iter().filter(|(path, _)| !is_data(path)).collect();
    ensure!(same_in_all(&bare) == expect, "--no-data leaves out relation forks and nothing else");
    check_cut_off(&followed)
}

/// An archive that was cut off has no control file, and no server starts from it.
fn check_cut_off(followed: &Followed) -> Result<()> {
    let mut bytes = Vec::new();
    backup(followed, None, &[])?.read_to_end(&mut bytes)?;
    let control_file = bytes.len() - 8192 - 3 * 512;
    ensure!(bytes[control_file..].starts_with(b"global/pg_control\0"), "the archive ends with it");
    bytes.truncate(control_file);
    let mut server = backup_server::unpacked(&followed.dir, PgVersion::V15, &bytes[..])?;
    let error = server.start().err().context("it started")?;
    ensure!(format!("{error:?}").contains("pg_control"), "{error:?}");
    Ok(())
}

/// A second backup, of a server that a backup started: its history has two lines.
#[test]
fn a_clone_of_a_clone_knows_both_ancestors() {
    check_second_generation().unwrap();
}

fn check_second_generation() -> Result<()> {
    let followed = Followed::start("generations", PgVersion::V15, "")?;
    followed.catch_up()?;
    let mut child = backup_server::unpacked(&followed.dir, PgVersion::V15, backup(&followed, None, &[])?)?;
    child.start()?;
    child.execute("INSERT INTO marks VALUES ('child', '')")?;
    followed.page_server.import("child", &child.conninfo())?;
    let path = followed.dir.path().join("grandchild.tar");
    let path_text = path.to_string_lossy().into_owned();
    followed.page_server.pagectl()?.run(&["basebackup", "child", "--output", &path_text])?;
    let mut grandchild = backup_server::unpacked(&followed.dir, PgVersion::V15, std::fs::File::open(&path)?)?;
    grandchild.start()?;
    clone::check_first_start(&grandchild)?;
    let marks = grandchild.query_text("SELECT count(*) FROM marks WHERE mark = 'child'")?;
    ensure!(marks == "1", "{marks}");
    let child_timeline = clone::timeline_of_history(&child)?;
    let timeline_id = clone::timeline_of_history(&grandchild)?;
    let history = std::fs::read_to_string(grandchild.data_dir().join(format!("pg_wal/{timeline_id:08X}.history")))?;
    let left: Vec<&str> = history.lines().filter_map(|line| line.split('\t').next()).collect();
    ensure!(left == ["1", &child_timeline.to_string()], "{history}");
    drop(followed.page_server); // Before the servers that it follows.
    child.stop(Stop::Fast)?;
    grandchild.stop(Stop::Fast)
}
