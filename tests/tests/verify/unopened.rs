//! A timeline whose watermark cannot be read: it says so and answers nothing, the others go on, and it is as it was once its file is.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use tests::{PageServer, wait_until};

use super::files::{assert_found, files, flip};
use super::rig::{LIMIT, Rig, small_primary};

/// In the first block of a file, which begins with a watermark if it begins with a timeline.
const IN_FIRST_BLOCK: u64 = 20;

/// Flips a bit such that the server starts with `main` damaged and `second` not. The file.
fn spoil(rig: &mut Rig) -> Result<PathBuf> {
    for (sst, _) in files(&rig.pageserver.data_dir().join("store"), ".sst")? {
        flip(&sst, IN_FIRST_BLOCK)?;
        rig.pageserver.start()?;
        let [main, second] = ["main", "second"].map(|name| rig.pageserver.timeline(name, "state"));
        if main? == "damaged" && second? != "damaged" {
            return Ok(sst);
        }
        rig.pageserver.kill()?;
        flip(&sst, IN_FIRST_BLOCK)?;
    }
    anyhow::bail!("no file begins with the watermark of main alone")
}

fn compare(rig: &Rig, timeline: &str) -> Result<tests::Outcome> {
    let data_dir = rig.primary.data_dir().to_str().context("a path in UTF-8")?;
    rig.pageserver.pagectl()?.outcome(&["compare", "--timeline", timeline, "--datadir", data_dir])
}

#[test]
fn others_go_on_beside_a_timeline_that_cannot_be_opened() -> Result<()> {
    // Files of few flushes, each of one timeline.
    let config = "[wal]\nkeep_mib = 64\n[store]\nflush_interval_seconds = 3600";
    let mut rig = Rig::start("verify-unopened", small_primary(), PageServer::builder().config(config)?)?;
    for text in ["orrupt", "Read error", "could not be opened", "cannot be opened", "compaction"] {
        rig.pageserver.expect_in_log(text);
    }
    rig.pageserver.import("second", &rig.primary.conninfo())?;
    rig.write()?;
    rig.stop_and_compare()?;
    let (relation, _) = {
        rig.primary.start()?;
        rig.table()?
    };
    rig.pageserver.stop()?;
    // While there is such a file compaction is off: it would take the damaged file along.
    let pause = rig.pageserver.data_dir().join("store/compaction_paused");
    std::fs::write(&pause, "")?;
    let damaged = spoil(&mut rig)?;

    assert!(rig.pageserver.timeline("main", "last_error")?.contains("orrupt"));
    let refused = rig.pageserver.query(&format!("PAGE GET main '{relation}/main/0'"));
    let refused = format!("{:?}", refused.err().context("a page of what cannot be opened")?);
    assert!(refused.contains("could not be opened at the start") && refused.contains("timeline=`main`"), "{refused}");
    assert_found(&rig.pageserver, &["main", "could not be opened", "pageserver mend"]);

    // The other one follows the primary, and has its pages.
    rig.write()?;
    let primary_lsn = rig.primary.current_lsn()?;
    wait_until("second to catch up", LIMIT, || {
        let last_record_lsn: postgres_ffi::Lsn = rig.pageserver.timeline("second", "last_record_lsn")?.parse()?;
        Ok(last_record_lsn >= primary_lsn)
    })?;
    rig.primary.stop(tests::Stop::Fast)?;
    wait_until("second to have the shutdown checkpoint", LIMIT, || Ok(compare(&rig, "second")?.exit_code == 0))?;
    assert_eq!(rig.pageserver.timeline("main", "state")?, "damaged");

    // Nothing of the damaged one was lost meanwhile: its slot kept the WAL.
    rig.pageserver.kill()?;
    ensure!(damaged.exists(), "{} is gone", damaged.display());
    flip(&damaged, IN_FIRST_BLOCK)?;
    std::fs::remove_file(&pause)?;
    rig.pageserver.start()?;
    rig.primary.start()?;
    rig.write()?;
    rig.stop_and_compare()?;
    rig.pageserver.stop()
}
