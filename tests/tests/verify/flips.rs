//! A bit flipped in any file of a stopped server: the next start refuses and says which file, or the server runs and `verify` names it; what is served is right.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tests::{PageServer, Stop};

use super::files::{assert_clean, byte, files, flip, name, segments, verify};
use super::rig::{Rig, small_primary};

const EXPECTED: &[&str] = &[
    "orrupt",
    "ingest stopped",
    "Read error",
    "checksum",
    "wal receiver",
    "WAL",
    "cannot be read",
    "takes no more",
    "damaged",
    "store",
];

/// What became of one flip.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The server did not start and said why.
    Refused,
    /// It runs; `verify` named the file or what it holds.
    Found,
    /// It runs, `verify` has nothing to say, and every page is right.
    Harmless,
}

fn server(name: &str) -> Result<Rig> {
    // Few files: a compaction would take away the one that is being spoilt.
    let config = "page_cache_mib = 4\n[wal]\nkeep_mib = 64";
    let mut rig = Rig::start(name, small_primary(), PageServer::builder().config(config)?)?;
    EXPECTED.iter().for_each(|text| rig.pageserver.expect_in_log(text));
    for _ in 0..4 {
        rig.write()?;
    }
    let lsn = rig.catch_up()?.to_string();
    let pagectl = rig.pageserver.pagectl()?;
    pagectl.run(&["branch", "create", "b", "--from", "main", "--lsn", &lsn])?;
    pagectl.run(&["lease", "create", "main", "--lsn", &lsn, "--seconds", "86400"])?;
    let tar = rig.dir.path().join("backup.tar");
    pagectl.run(&["basebackup", "main", "--output", &tar.to_string_lossy()])?; // Makes tenant.json.
    rig.stop_and_compare()?;
    rig.pageserver.stop()?;
    Ok(rig)
}

/// Flips a bit, looks what happens, and flips it back where the server has not.
fn try_flip(rig: &mut Rig, file: &Path, at: u64) -> Result<Outcome> {
    flip(file, at)?;
    let flipped = byte(file, at)?;
    let place = format!("{} byte {at}", file.display());
    let outcome = match rig.pageserver.start() {
        Err(error) => {
            let text = format!("{error:?}");
            assert!(!text.contains("panicked"), "{place}: {text}");
            let is_named = ["orrupt", "damaged", name(file), "CURRENT", "MANIFEST", "No such file"]
                .iter()
                .any(|part| text.contains(part));
            assert!(is_named, "{place}: {text}");
            Outcome::Refused
        }
        Ok(()) => {
            let found = verify(&rig.pageserver)?;
            let compared = rig.compare()?;
            // 1 would be a page that is given and wrong.
            assert_ne!(compared.exit_code, 1, "{place}: {}{}", compared.stdout, compared.stderr);
            let text =
                format!("{place}: {}{}; pages: {}{}", found.stdout, found.stderr, compared.stdout, compared.stderr);
            assert!(found.exit_code == 1 || (found.exit_code == 0 && compared.exit_code == 0), "{text}");
            rig.pageserver.kill()?;
            match found.exit_code {
                0 => Outcome::Harmless,
                _ => Outcome::Found,
            }
        }
    };
    if byte(file, at)? == flipped {
        flip(file, at)?;
    }
    Ok(outcome)
}

fn largest(dir: &Path, part: &str) -> Result<(PathBuf, u64)> {
    files(dir, part)?.into_iter().max_by_key(|(_, size)| *size).with_context(|| format!("no {part}"))
}

#[test]
fn a_flipped_bit_in_the_store_is_found_and_never_served() -> Result<()> {
    let mut rig = server("verify-flip-store")?;
    let store = rig.pageserver.data_dir().join("store");
    let (sst, size) = largest(&store, ".sst")?;
    let outcomes: Vec<Outcome> =
        (0..8).map(|n| try_flip(&mut rig, &sst, size * (2 * n + 1) / 16)).collect::<Result<_>>()?;
    let harmless = outcomes.iter().filter(|outcome| **outcome == Outcome::Harmless).count();
    println!("sst: {outcomes:?}");
    assert!(harmless <= 1, "{outcomes:?}"); // Filters are the only part that a check does not read.

    let (manifest, size) = largest(&store, "MANIFEST-")?;
    for n in 0..4 {
        let outcome = try_flip(&mut rig, &manifest, size * (2 * n + 1) / 8)?;
        println!("manifest byte {}: {outcome:?}", size * (2 * n + 1) / 8);
    }
    // A start writes a new MANIFEST; the old one is gone.
    let (current, _) = largest(&store, "CURRENT")?;
    for at in [0, 9] {
        assert_eq!(try_flip(&mut rig, &current, at)?, Outcome::Refused);
    }
    // Nothing reads the options; a start writes new ones.
    let (options, size) = largest(&store, "OPTIONS-")?;
    let outcome = try_flip(&mut rig, &options, size / 2);
    println!("options: {outcome:?}");
    rig.pageserver.start()?;
    assert_clean(&rig.pageserver);
    assert_eq!(rig.compare()?.exit_code, 0);
    rig.pageserver.stop()
}

#[test]
fn a_flipped_bit_in_metadata_is_mended_from_the_copy_and_refused_without_one() -> Result<()> {
    let mut rig = server("verify-flip-metadata")?;
    let data_dir = rig.pageserver.data_dir().to_owned();
    for part in ["timeline.json", "leases.json", "tenant.json"] {
        // A tenant's file is read when an id is given out, and by a check.
        let with_copy_too = if part == "tenant.json" { Outcome::Found } else { Outcome::Refused };
        let found = files(&data_dir, part)?;
        let (copies, originals): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|(file, _)| file.to_string_lossy().ends_with(".copy"));
        assert_eq!(copies.len(), originals.len());
        for ((file, size), (copy, _)) in originals.iter().zip(&copies) {
            for n in 0..2 {
                let at = size * (2 * n + 1) / 4;
                assert_eq!(try_flip(&mut rig, file, at)?, Outcome::Harmless, "{} {at}", file.display());
                assert_eq!(try_flip(&mut rig, copy, at)?, Outcome::Harmless, "{} {at}", copy.display());
                flip(copy, at)?;
                assert_eq!(try_flip(&mut rig, file, at)?, with_copy_too, "{} {at}, and its copy", file.display());
                flip(copy, at)?;
            }
        }
    }
    rig.pageserver.start()?;
    assert_clean(&rig.pageserver);
    rig.pageserver.stop()
}

#[test]
fn a_flipped_bit_in_wal_is_found() -> Result<()> {
    let mut rig = server("verify-flip-wal")?;
    let segments = segments(&rig.pageserver)?;
    assert!(segments.len() > 4, "{segments:?}");
    for n in [1, segments.len() / 2] {
        // Behind the watermark: nothing needs it, and only a check reads it.
        assert_eq!(try_flip(&mut rig, &segments[n], 500_003)?, Outcome::Found, "{}", segments[n].display());
    }
    flip(&segments[1], 100_001)?;
    rig.pageserver.start()?;
    super::files::assert_found(&rig.pageserver, &[name(&segments[1]), "main: wal: record at"]);
    rig.pageserver.kill()?;
    flip(&segments[1], 100_001)?;
    rig.pageserver.start()?;
    assert_clean(&rig.pageserver);
    rig.pageserver.stop()
}

#[test]
fn versions_of_nobody_are_found_and_deleted() -> Result<()> {
    let mut rig = server("verify-orphans")?;
    let timelines = rig.pageserver.data_dir().join("timelines");
    rig.pageserver.start()?;
    rig.pageserver.pagectl()?.run(&["branch", "detach", "b"])?;
    rig.pageserver.stop()?;
    // Somebody removes the branch's directory by hand.
    for entry in std::fs::read_dir(&timelines)? {
        let dir = entry?.path();
        if std::fs::read_to_string(dir.join("timeline.json"))?.contains("\"b\"") {
            std::fs::remove_dir_all(&dir)?;
        }
    }
    rig.pageserver.start()?;
    super::files::assert_found(&rig.pageserver, &["store: number", "versions under a number that no timeline has"]);
    let pagectl = rig.pageserver.pagectl()?;
    let outcome = pagectl.outcome(&["repair", "--dry-run"])?;
    assert!(outcome.exit_code == 1 && outcome.stdout.contains("would be repaired"), "{}", outcome.stdout);
    super::files::assert_found(&rig.pageserver, &["store: number"]);
    let outcome = pagectl.outcome(&["repair"])?;
    assert!(outcome.exit_code == 0 && outcome.stdout.contains("deleted"), "{}{}", outcome.stdout, outcome.stderr);
    assert_clean(&rig.pageserver);
    rig.primary.start()?;
    rig.catch_up()?;
    rig.primary.stop(Stop::Fast)?;
    rig.pageserver.stop()
}
