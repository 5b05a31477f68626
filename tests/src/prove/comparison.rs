//! Runs `pagectl compare` and judges what it found: a mismatch in a file that a crash left behind is none.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use postgres_ffi::RelTag;
use serde_json::Value;

use crate::PageServer;

/// More mismatches than this are not told apart: all of them count.
const MISMATCHES_MAX: &str = "10000";

/// What a comparison found, all of it right.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Pages and files that were compared.
    pub compared: u64,
    /// Mismatches in files that no catalog names.
    pub in_orphans: usize,
    /// A line per kind of page, and one with the sum.
    pub text: String,
}

/// Compares the data directory of a stopped primary with `timeline`. A mismatch outside of `orphans` is an error that shows it.
/// Both versions of pages that differ are saved in the test's directory.
pub fn compare(server: &PageServer, timeline: &str, data_dir: &Path, orphans: &BTreeSet<RelTag>) -> Result<Comparison> {
    let save_dir = server.test_dir().path().join("mismatches");
    let [data_dir, save_dir] = [data_dir, &save_dir].map(|path| path.to_string_lossy().into_owned());
    let arguments = ["--json", "compare", "--timeline", timeline, "--datadir", &data_dir, "--wait-seconds", "300"];
    let arguments = [&arguments[..], &["--mismatches", MISMATCHES_MAX, "--save", &save_dir]].concat();
    let outcome = server.pagectl()?.outcome(&arguments)?;
    ensure!(outcome.exit_code <= 1, "pagectl compare: {}{}", outcome.stdout, outcome.stderr);
    let report: Value = serde_json::from_str(outcome.stdout.trim()).context("the report of pagectl compare")?;
    judge(&report, orphans)
}

fn judge(report: &Value, orphans: &BTreeSet<RelTag>) -> Result<Comparison> {
    let number = |key: &str| report[key].as_u64().with_context(|| format!("no {key} in the report"));
    let (compared, mismatches) = (number("compared")?, number("mismatches")?);
    let described = report["first_mismatches"].as_array().context("no mismatches in the report")?;
    let (in_orphans, wrong): (Vec<_>, Vec<_>) = described.iter().partition(|mismatch| is_in(mismatch, orphans));
    let wrong_count = mismatches - in_orphans.len() as u64;
    let text = format!("{}pages compared: {compared}, mismatches: {wrong_count}", table(report));
    let shown: Vec<String> = wrong.iter().take(30).map(ToString::to_string).collect();
    ensure!(wrong_count == 0, "{}\n{text}", shown.join("\n"));
    ensure!(compared > 0, "nothing was compared");
    Ok(Comparison { compared, in_orphans: in_orphans.len(), text })
}

/// `what` begins with the relation's address, or names something that is no relation.
fn is_in(mismatch: &Value, orphans: &BTreeSet<RelTag>) -> bool {
    let address = mismatch["what"].as_str().and_then(|what| what.split(' ').next()?.parse().ok());
    address.is_some_and(|rel: RelTag| orphans.contains(&rel))
}

fn table(report: &Value) -> String {
    let kinds = report["kinds"].as_object().into_iter().flatten();
    let line = |(kind, counts): (&String, &Value)| {
        let number = |key: &str| counts[key].as_u64().unwrap_or(0);
        let wrong = number("different") + number("lsn_differs") + number("missing");
        let left_out: u64 = counts["left_out"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum();
        format!("{kind:24} compared {:7}, left out {left_out:5}, different or missing {wrong:4}\n", number("compared"))
    };
    kinds.map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Value {
        serde_json::json!({ "compared": 10, "mismatches": 2, "kinds": { "main heap": { "compared": 10, "different": 2 } },
            "first_mismatches": [{ "what": "1663/5/7 main block 1" }, { "what": "1663/5/8 main block 1" }] })
    }

    fn rel(rel_number: u32) -> RelTag {
        RelTag { spc_oid: 1663, db_oid: 5, rel_number }
    }

    #[test]
    fn only_mismatches_in_orphans_are_forgiven() {
        assert!(judge(&report(), &BTreeSet::from([rel(7)])).unwrap_err().to_string().contains("1663/5/8"));
        let comparison = judge(&report(), &BTreeSet::from([rel(7), rel(8)])).unwrap();
        assert_eq!((comparison.compared, comparison.in_orphans), (10, 2));
    }

    #[test]
    fn mismatches_that_are_not_described_count() {
        let mut report = report();
        report["mismatches"] = 3.into();
        assert!(judge(&report, &BTreeSet::from([rel(7), rel(8)])).is_err());
    }
}
