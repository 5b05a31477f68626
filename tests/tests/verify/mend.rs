//! A store with a damaged file is mended: what our WAL still has comes back, what it has not says that it is lost until its next image comes, and no page is wrong.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{PageServer, Stop};

use super::files::{assert_found, files, flip, verify};
use super::rig::{Rig, small_primary};

/// More pages than stand in a few blocks of the store.
const LOST_PAGES_MAX: usize = 200;

/// A server that is stopped, with a branch and with history in the store.
fn server(name: &str, keep_mib: u32) -> Result<Rig> {
    let config = format!("[wal]\nkeep_mib = {keep_mib}\n[store]\nflush_interval_seconds = 1");
    let mut rig = Rig::start(name, small_primary(), PageServer::builder().config(&config)?)?;
    for text in ["orrupt", "Read error", "are lost", "a mended store"] {
        rig.pageserver.expect_in_log(text);
    }
    for _ in 0..4 {
        rig.write()?;
    }
    let lsn = rig.catch_up()?.to_string();
    rig.pageserver.pagectl()?.run(&["branch", "create", "b", "--from", "main", "--lsn", &lsn])?;
    for _ in 0..4 {
        rig.write()?;
        rig.primary.execute("CHECKPOINT")?;
    }
    rig.stop_and_compare()?;
    rig.pageserver.stop()?;
    Ok(rig)
}

fn mend(rig: &Rig, arguments: &[&str]) -> Result<Value> {
    let outcome = rig.pageserver.outcome(&[&["mend", "--json"], arguments].concat())?;
    ensure!(outcome.exit_code == 0, "{}{}", outcome.stdout, outcome.stderr);
    serde_json::from_str(&outcome.stdout).context("the report")
}

/// Stretches of `main` that are lost, by a report.
fn lost(report: &Value) -> Vec<String> {
    let timelines = report["timelines"].as_array().into_iter().flatten();
    let main = timelines.filter(|timeline| timeline["name"] == "main");
    main.flat_map(|main| main["lost"].as_array().into_iter().flatten())
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

/// Flips a bit in the store such that nothing but versions of blocks of `relation` cannot be read any more. The file.
fn spoil(rig: &Rig, relation: &str) -> Result<PathBuf> {
    let ssts = files(&rig.pageserver.data_dir().join("store"), ".sst")?;
    let (sst, size) = ssts.into_iter().max_by_key(|(_, size)| *size).context("an SST file")?;
    for n in 1..40 {
        let at = size * n / 41;
        flip(&sst, at)?;
        let report = mend(rig, &["--dry-run"]);
        let is_of_relation = |stretch: &String| stretch.matches(&format!("{relation}/main/")).count() == 2;
        // What RocksDB's own file tells of the store cannot be read: not this one.
        if let Ok(report) = &report
            && report["files"].as_array().is_some_and(|files| !files.is_empty())
            && !lost(report).is_empty()
            && lost(report).iter().all(is_of_relation)
        {
            println!("byte {at} of {size}: {report}");
            return Ok(sst);
        }
        flip(&sst, at)?;
    }
    anyhow::bail!("no byte of {} belongs to blocks of {relation} alone", sst.display())
}

fn relation(rig: &mut Rig) -> Result<String> {
    rig.primary.start()?;
    let (relation, _) = rig.table()?;
    rig.primary.stop(Stop::Fast)?;
    Ok(relation)
}

/// The old store is as it was, moved aside.
fn assert_moved_aside(report: &Value, damaged: &Path) -> Result<()> {
    let aside = PathBuf::from(report["old_store"].as_str().context("where the old store is")?);
    let name = damaged.file_name().context("a name")?;
    assert!(aside.join("rocksdb").join(name).exists(), "{report}");
    Ok(())
}

#[test]
fn what_the_wal_on_disk_still_has_is_not_lost() -> Result<()> {
    let mut rig = server("mend-from-wal", 64)?;
    let whole = mend(&rig, &[])?;
    assert!(whole["old_store"].is_null() && whole["timelines"] == Value::Array(Vec::new()), "{whole}");
    let relation = relation(&mut rig)?;
    let damaged = spoil(&rig, &relation)?;
    // While the server runs nothing is touched.
    rig.pageserver.start()?;
    let outcome = rig.pageserver.outcome(&["mend"])?;
    assert!(outcome.exit_code == 1 && outcome.stderr.contains("a page server runs already"), "{}", outcome.stderr);
    assert_found(&rig.pageserver, &["cannot be read", "pageserver mend"]);
    rig.pageserver.stop()?;

    let report = mend(&rig, &[])?;
    assert_moved_aside(&report, &damaged)?;
    assert!(report["timelines"][0]["ingested_again_from"].is_string(), "{report}");
    rig.pageserver.start()?;
    // Table t was made after the import, and all WAL since then is there.
    rig.primary.start()?;
    rig.write()?;
    rig.stop_and_compare()?;
    for timeline in ["main", "b"] {
        let lsn = rig.pageserver.timeline("b", "ancestor_lsn")?;
        for block_no in 0..40 {
            rig.pageserver.query(&format!("PAGE GET {timeline} '{relation}/main/{block_no}' AT '{lsn}'"))?;
        }
    }
    rig.pageserver.kill()?;
    rig.pageserver.start()?;
    assert_eq!(rig.compare()?.exit_code, 0);
    rig.pageserver.stop()
}

#[test]
fn what_is_lost_says_so_and_comes_back_with_its_next_image() -> Result<()> {
    let mut rig = server("mend-lost", 1)?;
    let relation = relation(&mut rig)?;
    rig.pageserver.start()?;
    rig.primary.start()?;
    // The WAL of what is in the store goes.
    tests::wait_until("old WAL to go", super::rig::LIMIT, || {
        rig.primary.execute("CREATE TABLE IF NOT EXISTS other AS SELECT repeat('x', 500) FROM generate_series(1, 5000); DROP TABLE other; CHECKPOINT")?;
        rig.catch_up()?;
        Ok(rig.pageserver.query("WAL GET main '000000010000000000000003'").is_err())
    })?;
    rig.stop_and_compare()?;
    rig.pageserver.stop()?;
    let damaged = spoil(&rig, &relation)?;
    let report = mend(&rig, &[])?;
    assert_moved_aside(&report, &damaged)?;
    let stretches = lost(&report);
    assert!((1..=4).contains(&stretches.len()), "{report}");
    rig.pageserver.start()?;

    // Some pages are lost, none is wrong.
    let compared = rig.compare()?;
    assert!(compared.exit_code != 1, "{}{}", compared.stdout, compared.stderr);
    let blocks: Vec<bool> = (0..rig_blocks(&rig, &relation)?)
        .map(|block_no| match rig.pageserver.query(&format!("PAGE GET main '{relation}/main/{block_no}'")) {
            Ok(_) => true,
            Err(error) => {
                assert!(format!("{error:?}").contains("records of this object are lost"), "{error:?}");
                false
            }
        })
        .collect();
    let lost_pages = blocks.iter().filter(|is_there| !**is_there).count();
    println!("{lost_pages} of {} pages are lost", blocks.len());
    assert!((1..=LOST_PAGES_MAX).contains(&lost_pages), "{blocks:?}");
    assert_found(&rig.pageserver, &["taken out by `pageserver mend`", "records of it are lost"]);

    // It goes on: the first change of each page behind a checkpoint brings an image.
    rig.primary.start()?;
    rig.primary.execute("CHECKPOINT")?;
    rig.write()?;
    rig.primary.execute("VACUUM (FREEZE, DISABLE_PAGE_SKIPPING) t")?;
    rig.stop_and_compare()?;
    rig.pageserver.kill()?;
    rig.pageserver.start()?;
    assert_eq!(rig.compare()?.exit_code, 0);
    // History keeps its gap, and the check says so.
    let found = verify(&rig.pageserver)?;
    assert!(found.exit_code == 1 && found.stdout.contains("taken out by `pageserver mend`"), "{}", found.stdout);
    let branch_lsn = rig.pageserver.timeline("b", "ancestor_lsn")?;
    let mut pages = found.stdout.lines().filter(|line| line.contains(": pages: "));
    assert!(pages.all(|line| line.ends_with(&format!("lsn {branch_lsn}"))), "{}", found.stdout);
    rig.pageserver.stop()?;
    let whole = mend(&rig, &[])?;
    assert!(whole["old_store"].is_null(), "there is nothing to mend: {whole}");
    Ok(())
}

fn rig_blocks(rig: &Rig, relation: &str) -> Result<u32> {
    let rows = rig.pageserver.query(&format!("PAGE GET main '{relation}/main/0'"));
    let blocks = rows.ok().and_then(|rows| rows.first()?.get(1)?.parse().ok());
    Ok(blocks.unwrap_or(LOST_PAGES_MAX as u32))
}
