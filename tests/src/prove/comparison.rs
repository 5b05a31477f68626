//! Runs `pagectl compare` and judges what it found: what a crash of the primary left behind on its disk, without WAL that survived, is no
//! mismatch, and neither is what it forgot, or was about to remove when the backup was made. See `orphans`, `database_dirs`, `dropped_before`, `hint_images`, `lost_wal`
//! and `lost_bits`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use postgres_ffi::page::Page;
use postgres_ffi::{Lsn, PgVersion, RelTag};
use serde_json::Value;

use super::database_dirs::DatabaseDirs;
use super::dropped_before::DroppedBefore;
use super::hint_images;
use super::lost_bits::{self, Recovery};
use super::lost_wal::WalArchive;
use crate::PageServer;

/// More mismatches than this are not told apart: all of them count. A database that is on one side alone has some 300, and each page of a
/// relation that differs is one.
const MISMATCHES_MAX: &str = "100000";

/// What crashes of the primary left behind.
#[derive(Clone, Debug)]
pub struct CrashRemains {
    /// Relations that no catalog names.
    pub orphans: BTreeSet<RelTag>,
    /// What catalogs and WAL say of directories of databases.
    pub database_dirs: DatabaseDirs,
    /// What the WAL before the import's backup dropped.
    pub dropped_before: DroppedBefore,
    /// Where the WAL is that survived.
    pub archive: WalArchive,
    /// Recoveries of a primary without full-page writes.
    pub recoveries: Vec<Recovery>,
}

/// What a comparison found, all of it right.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Pages and files that were compared.
    pub compared: u64,
    /// Mismatches in what crashes left behind.
    pub forgiven: usize,
    /// A line per kind of page, and one with the sum.
    pub text: String,
}

/// Compares the data directory of a stopped primary with `timeline`. A mismatch that `remains` does not explain is an error that shows it.
/// Both versions of pages that differ are saved in the test's directory.
pub fn compare(server: &PageServer, timeline: &str, data_dir: &Path, remains: &CrashRemains) -> Result<Comparison> {
    let save_dir = server.test_dir().path().join("mismatches");
    let [data_dir, save_dir] = [data_dir, &save_dir].map(|path| path.to_string_lossy().into_owned());
    let arguments = ["--json", "compare", "--timeline", timeline, "--datadir", &data_dir, "--wait-seconds", "300"];
    let arguments = [&arguments[..], &["--mismatches", MISMATCHES_MAX, "--save", &save_dir]].concat();
    let outcome = server.pagectl()?.outcome(&arguments)?;
    ensure!(outcome.exit_code <= 1, "pagectl compare: {}{}", outcome.stdout, outcome.stderr);
    let report: Value = serde_json::from_str(outcome.stdout.trim()).context("the report of pagectl compare")?;
    let lsn: Lsn = report["lsn"].as_str().context("no LSN in the report")?.parse()?;
    judge(&report, |mismatch| {
        Ok(remains.explain(mismatch)?
            || remains.database_dirs.explain(mismatch, &remains.archive, lsn)?
            || remains.dropped_before.explain(mismatch, &remains.archive, lsn)?
            || hint_images::explains(mismatch, &remains.archive)?
            || remains.has_lost_bits(server, timeline, Path::new(&save_dir), lsn, mismatch)?)
    })
}

/// The same for a primary that has never crashed: every mismatch counts.
pub fn compare_uncrashed(server: &PageServer, timeline: &str, data_dir: &Path) -> Result<Comparison> {
    let archive = WalArchive { dirs: Vec::new(), version: PgVersion::V15, segment_bytes: 1 << 20 };
    let nothing = CrashRemains {
        orphans: BTreeSet::new(),
        database_dirs: DatabaseDirs::default(),
        dropped_before: DroppedBefore::default(),
        archive, // Holds nothing, so that nothing is explained with it.
        recoveries: Vec::new(),
    };
    compare(server, timeline, data_dir, &nothing)
}

fn judge(report: &Value, is_explained: impl Fn(&Value) -> Result<bool>) -> Result<Comparison> {
    let number = |key: &str| report[key].as_u64().with_context(|| format!("no {key} in the report"));
    let (compared, mismatches) = (number("compared")?, number("mismatches")?);
    let described = report["first_mismatches"].as_array().context("no mismatches in the report")?;
    let mut wrong = Vec::new();
    for mismatch in described {
        if !is_explained(mismatch)? {
            wrong.push(mismatch);
        }
    }
    let forgiven = described.len() - wrong.len();
    let wrong_count = mismatches - forgiven as u64;
    let text = format!("{}pages compared: {compared}, mismatches: {wrong_count}", table(report));
    let shown: Vec<String> = wrong.iter().take(30).map(ToString::to_string).collect();
    ensure!(wrong_count == 0, "{}\n{text}", shown.join("\n"));
    ensure!(compared > 0, "nothing was compared");
    Ok(Comparison { compared, forgiven, text })
}

impl CrashRemains {
    fn explain(&self, mismatch: &Value) -> Result<bool> {
        // It begins with the relation's address, or names something that is no relation.
        let address = mismatch["what"].as_str().and_then(|what| what.split(' ').next()?.parse::<RelTag>().ok());
        let Some(rel) = address else { return Ok(false) };
        if self.orphans.contains(&rel) {
            return Ok(true);
        }
        lsn_on_disk(mismatch).map_or(Ok(false), |lsn| self.archive.no_record_ends_at(lsn))
    }

    /// The pages are those that the comparison saved.
    fn has_lost_bits(
        &self,
        server: &PageServer,
        timeline: &str,
        save_dir: &Path,
        lsn: Lsn,
        mismatch: &Value,
    ) -> Result<bool> {
        let what = mismatch["what"].as_str().unwrap_or_default();
        let words: Vec<&str> = what.split_whitespace().collect();
        let [rel, "vm", "block", block_no] = words[..] else { return Ok(false) };
        let read = |side: &str| -> Result<Page> {
            let path = save_dir.join(format!("{}_vm_{block_no}.{side}.bin", rel.replace('/', "_")));
            let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            bytes.try_into().map_err(|_| anyhow::anyhow!("no page: {}", path.display()))
        };
        let (ours, theirs) = (read("ours")?, read("disk")?);
        let address = format!("{rel}/vm/{block_no}");
        lost_bits::explains(&mut server.connect()?, timeline, &address, (&ours, &theirs), lsn, &self.recoveries)
    }
}

/// The LSN that the page in the directory carries: `... lsn of ours 0/0, on disk 0/47347C8; ...`.
fn lsn_on_disk(mismatch: &Value) -> Option<Lsn> {
    let (_, text) = mismatch["detail"].as_str()?.split_once(", on disk ")?;
    text.split([';', ',', ' ']).next()?.parse().ok()
}

fn table(report: &Value) -> String {
    let kinds = report["kinds"].as_object().into_iter().flatten();
    let line = |(kind, counts): (&String, &Value)| {
        let number = |key: &str| counts[key].as_u64().unwrap_or(0);
        let wrong = number("different") + number("lsn_differs") + number("missing");
        let left_out: u64 = counts["left_out"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum();
        format!("{kind:24} compared {:7}, left out {left_out:5}, different or missing {wrong:4}\n", number("compared"))
    };
    kinds.map(line).chain(reasons(report)).collect()
}

/// Why what was left out of the comparison.
fn reasons(report: &Value) -> Vec<String> {
    let kinds = report["kinds"].as_object().into_iter().flatten();
    let reasons = |(kind, counts): (&String, &Value)| -> Vec<String> {
        let left_out = counts["left_out"].as_object().into_iter().flatten();
        left_out.map(|(reason, count)| format!("left out: {count} of {kind}: {reason}\n")).collect()
    };
    kinds.flat_map(reasons).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Value {
        serde_json::json!({ "compared": 10, "mismatches": 2, "kinds": { "main heap": { "compared": 10, "different": 2 } },
            "first_mismatches": [{ "what": "1663/5/7 main block 1" }, { "what": "1663/5/8 main block 1" }] })
    }

    #[test]
    fn what_is_left_out_is_named() {
        let report = serde_json::json!({ "compared": 1, "mismatches": 0, "first_mismatches": [],
            "kinds": { "init": { "compared": 1, "left_out": { "for a reason": 7 } } } });
        let text = judge(&report, is_one_of(&[])).unwrap().text;
        assert!(text.contains("left out: 7 of init: for a reason\n"), "{text}");
        assert!(text.ends_with("pages compared: 1, mismatches: 0"), "{text}");
    }

    fn is_one_of(rels: &[u32]) -> impl Fn(&Value) -> Result<bool> {
        let names: Vec<String> = rels.iter().map(|rel| format!("1663/5/{rel} main block 1")).collect();
        move |mismatch| Ok(names.iter().any(|name| mismatch["what"] == **name))
    }

    #[test]
    fn only_what_is_explained_is_forgiven() {
        assert!(judge(&report(), is_one_of(&[7])).unwrap_err().to_string().contains("1663/5/8"));
        let comparison = judge(&report(), is_one_of(&[7, 8])).unwrap();
        assert_eq!((comparison.compared, comparison.forgiven), (10, 2));
    }

    #[test]
    fn mismatches_that_are_not_described_count() {
        let mut report = report();
        report["mismatches"] = 3.into();
        assert!(judge(&report, is_one_of(&[7, 8])).is_err());
    }

    #[test]
    fn the_lsn_on_disk_is_found() {
        let detail = "differs from byte 16 on; lsn of ours 0/0, on disk 0/47347C8; from 16: ours 00, on disk f0";
        assert_eq!(lsn_on_disk(&serde_json::json!({ "detail": detail })), Some(Lsn::new(0x47347C8)));
    }
}
