//! A file of one timeline is damaged and a compaction meets it: ingest of all stops once; after a restart it goes on with compaction paused; when the timeline is
//! deleted, `repair` lets compaction go on.

use std::collections::HashSet;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use postgres_ffi::Lsn;
use tests::{PageServer, Stop, wait_until};

use super::files::{assert_clean, assert_found, files, flip, name};
use super::rig::{LIMIT, Rig, small_primary};

/// Nothing is written out by itself: each import's pages are one file, in the last level.
const LAZY: &str = "page_cache_mib = 4\n[wal]\nkeep_mib = 64";
/// Layers that are written out all the time; caches that hold little.
const BUSY_STORE: &str = "[store]\nlayer_mib = 1\nblock_cache_mib = 1\nflush_interval_seconds = 1";
const EXPECTED: &[&str] =
    &["takes no more", "ingest stopped", "wal receiver", "WAL receiver", "compaction of the store is paused"];

/// A figure of the store.
fn figure(rig: &Rig, what: &str) -> Result<String> {
    let rows = rig.pageserver.query("STORE STATS")?;
    let row = rows.into_iter().find(|row| row[0] == what);
    Ok(row.with_context(|| format!("no {what}"))?.swap_remove(1))
}

fn level0_files(rig: &Rig) -> Result<u64> {
    Ok(figure(rig, "store.levels.0.files")?.parse()?)
}

/// Writes until so much of it is durable on a timeline.
fn write_and_flush(rig: &Rig, timeline: &str) -> Result<()> {
    rig.write()?;
    let written_lsn = rig.primary.current_lsn()?;
    wait_until("a flush", LIMIT, || {
        let durable = rig.pageserver.timeline(timeline, "durable_lsn")?;
        Ok(durable.parse::<Lsn>().is_ok_and(|durable_lsn| durable_lsn >= written_lsn))
    })
    .with_context(|| format!("{timeline}: {}", rig.pageserver.timeline(timeline, "last_error").unwrap_or_default()))
}

/// Two timelines follow one primary; a file of `main` is damaged on disk, and the server is stopped.
fn start() -> Result<(Rig, PathBuf)> {
    let mut rig = Rig::start("verify-paused", small_primary(), PageServer::builder().config(LAZY)?)?;
    EXPECTED.iter().for_each(|text| rig.pageserver.expect_in_log(text));
    let store = rig.pageserver.data_dir().join("store");
    let of_main: HashSet<PathBuf> = files(&store, ".sst")?.into_iter().map(|(file, _)| file).collect();
    rig.pageserver.import("other", &rig.primary.conninfo())?;
    rig.pageserver.stop()?;
    let of_main = files(&store, ".sst")?.into_iter().filter(|(file, _)| of_main.contains(file));
    let (file, size) = of_main.max_by_key(|(_, size)| *size).context("the file of the import")?;
    flip(&file, size / 2)?;
    rig.pageserver.set_config(BUSY_STORE)?;
    Ok((rig, file))
}

#[test]
fn a_damaged_file_stops_ingest_once_and_goes_with_its_timeline() -> Result<()> {
    let (mut rig, file) = start()?;
    let mark = rig.pageserver.data_dir().join("store/compaction_paused");
    rig.pageserver.start()?;
    let mut begun = 0;
    wait_until("a compaction to meet the damaged file", 2 * LIMIT, || {
        rig.write()?;
        begun += 1;
        let is_stopped = |timeline| Ok::<_, anyhow::Error>(rig.pageserver.timeline(timeline, "state")? == "stopped");
        Ok(is_stopped("main")? && is_stopped("other")?)
    })?;
    println!("stopped after {begun} updates");
    for timeline in ["main", "other"] {
        let reason = rig.pageserver.timeline(timeline, "last_error")?;
        assert!(reason.contains(name(&file)) && reason.contains("pagectl repair"), "{timeline}: {reason}");
    }
    assert!(mark.exists());
    rig.pageserver.kill()?;

    // Both go on, beyond what level 0 may hold otherwise.
    rig.pageserver.start()?;
    assert!(figure(&rig, "store.compaction_paused")?.contains(name(&file)));
    let files_before = level0_files(&rig)?;
    while level0_files(&rig)? <= 13.max(files_before + 4) {
        write_and_flush(&rig, "main")?;
        write_and_flush(&rig, "other")?;
    }
    assert_found(&rig.pageserver, &[name(&file), "compaction is paused"]);
    let pagectl = rig.pageserver.pagectl()?;
    let outcome = pagectl.outcome(&["repair"])?;
    assert!(outcome.exit_code == 1 && outcome.stdout.contains("and stays so"), "{}{}", outcome.stdout, outcome.stderr);
    rig.pageserver.kill()?;
    rig.pageserver.start()?;
    assert!(mark.exists() && file.exists());
    write_and_flush(&rig, "other")?;

    // The way out.
    pagectl.run(&["timeline", "delete", "main", "--confirm"])?;
    assert!(!file.exists(), "the file goes with its timeline");
    assert_found(&rig.pageserver, &["compaction is paused"]);
    let outcome = pagectl.outcome(&["repair", "--dry-run"])?;
    assert!(
        outcome.exit_code == 1 && outcome.stdout.contains("compaction would go on") && mark.exists(),
        "{}",
        outcome.stdout
    );
    let outcome = pagectl.outcome(&["repair"])?;
    assert!(
        outcome.exit_code == 0 && outcome.stdout.contains("compaction goes on"),
        "{}{}",
        outcome.stdout,
        outcome.stderr
    );
    assert!(!mark.exists());
    assert_clean(&rig.pageserver);
    wait_until("level 0 to be merged", LIMIT, || Ok(level0_files(&rig)? < 6))?;
    assert_eq!(figure(&rig, "store.compaction_paused")?, "null");
    for _ in 0..3 {
        write_and_flush(&rig, "other")?;
    }
    rig.primary.stop(Stop::Fast)?;
    let data_dir = rig.primary.data_dir().to_str().context("a path in UTF-8")?.to_owned();
    let outcome = pagectl.outcome(&["compare", "--timeline", "other", "--datadir", &data_dir])?;
    ensure!(outcome.exit_code == 0, "{}{}", outcome.stdout, outcome.stderr);
    rig.pageserver.stop()?;
    rig.pageserver.start()?;
    assert_eq!(figure(&rig, "store.compaction_paused")?, "null");
    assert_clean(&rig.pageserver);
    rig.pageserver.stop()
}
