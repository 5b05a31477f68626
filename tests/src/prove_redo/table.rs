//! The table of operations in `docs/redo.md`: what redo knows, and how many images have proven it.
//!
//! - Rows are all operations that change pages, from the tables of names in `postgres_ffi`; so an operation that no proof has met shows as such.
//! - An operation that always brings the whole page counts the pages that were put in place: there is no redo beyond that.
//! - **Never:** a row at zero without a reason that stands here.

use std::collections::BTreeMap;
use std::fmt::Write;

use pageserver::redo_check::CheckReport;
use postgres_ffi::PgVersion;
use postgres_ffi::redo::MANAGERS;
use postgres_ffi::wal::describe::operation_name;
use postgres_ffi::wal::rmgr;

/// Where the table begins in the document, and where it ends.
pub const BEGIN: &str = "<!-- table of operations: written by prove-redo -->";
/// See [`BEGIN`].
pub const END: &str = "<!-- end of the table -->";

/// Images that have proven each operation: by resource manager, operation and version.
pub type Counts = BTreeMap<(String, String), BTreeMap<PgVersion, u64>>;

/// Operations that touch no page, or that PostgreSQL's code never writes.
const WITHOUT_PAGES: &[(u8, &str)] = &[
    (rmgr::HEAP, "TRUNCATE"),
    (rmgr::HEAP2, "REWRITE"),
    (rmgr::HEAP2, "NEW_CID"),
    (rmgr::BTREE, "REUSE_PAGE"),
    (rmgr::GIST, "PAGE_REUSE"),
    (rmgr::GIST, "ASSIGN_LSN"),
];

/// Operations whose records always bring the whole page; the one for hints may leave it out, and then changes nothing.
const ALWAYS_IMAGES: [(&str, &str); 5] =
    [("XLOG", "FPI"), ("XLOG", "FPI_FOR_HINT"), ("Gin", "SPLIT"), ("Gin", "VACUUM_PAGE"), ("Hash", "SPLIT_PAGE")];

/// Operations that change pages, by name, and the initialising form of those that have one.
pub fn operations(version: PgVersion) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for rmid in MANAGERS {
        for operation in (0..=0xF0_u8).step_by(16) {
            let Some(name) = operation_name(version, rmid, operation) else { continue };
            let is_left_out = rmid == rmgr::XLOG && !name.starts_with("FPI")
                || rmid == rmgr::GENERIC && operation != 0
                || WITHOUT_PAGES.contains(&(rmid, name));
            if !is_left_out {
                found.push((rmgr::BUILTIN_NAMES[usize::from(rmid)].to_owned(), name.to_owned()));
            }
        }
    }
    found
}

/// Adds a leg's report.
pub fn add(counts: &mut Counts, report: &CheckReport) {
    for row in &report.operations {
        // What is known of GiST pages is one flag, which redo of this operation is about; the rest of the page was compared.
        let but_for_flag = if row.rmgr == "Gist" { row.counts.known_difference } else { 0 };
        let proven = row.counts.equal + row.counts.equal_masked + but_for_flag;
        let is_image = ALWAYS_IMAGES.contains(&(row.rmgr.as_str(), row.operation.as_str()));
        let count = if is_image { row.counts.images_applied } else { proven };
        let by_version = counts.entry((row.rmgr.clone(), row.operation.clone())).or_default();
        *by_version.entry(report.version).or_default() += count;
    }
}

/// Operations of `version` that no image has proven and that have no reason for it.
pub fn missing(counts: &Counts, version: PgVersion) -> Vec<String> {
    let is_proven = |operation: &(String, String)| {
        counts.get(operation).and_then(|by_version| by_version.get(&version)).is_some_and(|count| *count > 0)
    };
    let unproven = operations(version).into_iter().filter(|operation| !is_proven(operation));
    let unexpected = unproven.filter(|(manager, name)| reason(version, manager, name).is_none());
    unexpected.map(|(manager, name)| format!("{manager} {name}")).collect()
}

/// Why PostgreSQL does not write an operation in that version.
pub fn reason(_version: PgVersion, manager: &str, operation: &str) -> Option<&'static str> {
    match (manager, operation) {
        // The old tuple is on the same page, so that the new one is never the first. PG: heapam.c, log_heap_update.
        ("Heap", "HOT_UPDATE+INIT") => Some("never written"),
        _ => None,
    }
}

/// The table in Markdown, between [`BEGIN`] and [`END`].
pub fn markdown(counts: &Counts) -> String {
    let mut text = format!("{BEGIN}\n| resource manager | operation |");
    PgVersion::ALL.iter().for_each(|version| _ = write!(text, " {version} |"));
    text.push_str("\n|---|---|---:|---:|---:|---:|---:|\n");
    let mut rows: Vec<(String, String)> = Vec::new();
    for version in PgVersion::ALL {
        for operation in operations(version) {
            if !rows.contains(&operation) {
                rows.push(operation);
            }
        }
    }
    rows.sort_by_key(|(manager, _)| rmgr::BUILTIN_NAMES.iter().position(|name| name == manager));
    for (manager, name) in rows {
        _ = write!(text, "| {manager} | {name} |");
        for version in PgVersion::ALL {
            let key = (manager.clone(), name.clone());
            let has_it = operations(version).contains(&key);
            let count = counts.get(&key).and_then(|by_version| by_version.get(&version)).copied().unwrap_or(0);
            match (has_it, count, reason(version, &manager, &name)) {
                (false, ..) => text.push_str(" – |"),
                (true, 0, Some(reason)) => _ = write!(text, " {reason} |"),
                (true, count, _) => _ = write!(text, " {count} |"),
            }
        }
        text.push('\n');
    }
    text.push_str(END);
    text
}

/// The counts that stand in the table of `document`. `None`: there is no table, or it is not as [`markdown`] writes it.
pub fn parse(document: &str) -> Option<Counts> {
    let (_, rest) = document.split_once(BEGIN)?;
    let (table, _) = rest.split_once(END)?;
    let mut counts = Counts::new();
    for line in table.trim().lines().skip(2) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [manager, name, numbers @ ..] = &cells[..] else { return None };
        if numbers.len() != PgVersion::ALL.len() {
            return None;
        }
        let by_version = counts.entry(((*manager).to_owned(), (*name).to_owned())).or_default();
        for (version, number) in PgVersion::ALL.into_iter().zip(numbers) {
            if let Ok(number) = number.parse() {
                by_version.insert(version, number);
            }
        }
    }
    Some(counts)
}
