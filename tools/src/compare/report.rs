//! What a comparison found: counts per kind of thing, and the first differences in full.

use std::collections::BTreeMap;
use std::fmt;

use postgres_ffi::Lsn;
use serde::Serialize;

/// Counts of one kind of thing (heap pages of main forks, CLOG pages, relation maps, ...).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Held against each other: `equal + equal_masked + different + lsn_differs`.
    pub compared: u64,
    /// Byte for byte the same.
    pub equal: u64,
    /// The same but for bits that may differ.
    pub equal_masked: u64,
    /// A difference that must not be. A mismatch.
    pub different: u64,
    /// The same contents under another LSN. A mismatch.
    pub lsn_differs: u64,
    /// In one of the two only. A mismatch.
    pub missing: u64,
    /// Not compared, by reason.
    pub left_out: BTreeMap<&'static str, u64>,
}

impl Counts {
    fn mismatches(&self) -> u64 {
        self.different + self.lsn_differs + self.missing
    }

    fn add(&mut self, other: &Counts) {
        self.compared += other.compared;
        self.equal += other.equal;
        self.equal_masked += other.equal_masked;
        self.different += other.different;
        self.lsn_differs += other.lsn_differs;
        self.missing += other.missing;
        for (reason, count) in &other.left_out {
            *self.left_out.entry(reason).or_default() += count;
        }
    }
}

/// One difference, for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// Kind of thing, as in [`Report::kinds`].
    pub kind: String,
    /// Which one: `1663/5/16384 main block 7`, `pg_xact segment 0000 page 3`.
    pub what: String,
    /// In what they differ.
    pub detail: String,
    /// Offset of the first byte that differs, where bytes were compared.
    pub offset: Option<usize>,
}

/// The result of a comparison, or of a part of one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What the directory was held against.
    pub compared_with: String,
    /// The LSN of both.
    pub lsn: Option<Lsn>,
    /// Pages and files that were compared.
    pub compared: u64,
    /// How many of them, and of those found on one side only, are not as they should be.
    pub mismatches: u64,
    /// Counts by kind.
    pub kinds: BTreeMap<String, Counts>,
    /// The first mismatches, in the order of their addresses.
    pub first_mismatches: Vec<Mismatch>,
    /// Things that were not compared and that a person should know of.
    pub notes: Vec<String>,
}

impl Report {
    /// The counts of `kind`.
    pub fn kind(&mut self, kind: &str) -> &mut Counts {
        // `entry` would allocate the name for each page.
        if !self.kinds.contains_key(kind) {
            self.kinds.insert(kind.to_owned(), Counts::default());
        }
        self.kinds.get_mut(kind).expect("just inserted")
    }

    /// Leaves `count` things of `kind` out because of `reason`.
    pub fn leave_out(&mut self, kind: &str, reason: &'static str, count: u64) {
        if count > 0 {
            *self.kind(kind).left_out.entry(reason).or_default() += count;
        }
    }

    /// Counts one thing of `kind` that is in one of the two only.
    pub fn missing(&mut self, kind: &str, what: String, detail: String) {
        self.kind(kind).missing += 1;
        self.first_mismatches.push(Mismatch { kind: kind.to_owned(), what, detail, offset: None });
    }

    /// Adds what another thread found.
    pub fn merge(&mut self, other: Report) {
        for (kind, counts) in &other.kinds {
            self.kind(kind).add(counts);
        }
        self.first_mismatches.extend(other.first_mismatches);
        self.notes.extend(other.notes);
    }

    /// Sums up, and keeps the first `mismatches_max` mismatches.
    pub fn finish(&mut self, mismatches_max: usize) {
        self.compared = self.kinds.values().map(|counts| counts.compared).sum();
        self.mismatches = self.kinds.values().map(Counts::mismatches).sum();
        self.first_mismatches.sort_by(|a, b| (&a.kind, &a.what).cmp(&(&b.kind, &b.what)));
        self.first_mismatches.truncate(mismatches_max);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(lsn) = self.lsn {
            writeln!(f, "compared with {} at {lsn}", self.compared_with)?;
        }
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::NOTHING);
        table.set_header(["kind", "compared", "equal", "masked", "different", "lsn differs", "missing", "left out"]);
        for (kind, counts) in &self.kinds {
            let numbers = [
                counts.compared,
                counts.equal,
                counts.equal_masked,
                counts.different,
                counts.lsn_differs,
                counts.missing,
                counts.left_out.values().sum(),
            ];
            table.add_row(std::iter::once(kind.clone()).chain(numbers.map(|number| number.to_string())));
        }
        for column_no in 1..=7 {
            if let Some(column) = table.column_mut(column_no) {
                column.set_cell_alignment(comfy_table::CellAlignment::Right);
            }
        }
        writeln!(f, "{table}")?;
        for (kind, counts) in &self.kinds {
            for (reason, count) in &counts.left_out {
                writeln!(f, "left out: {count} of {kind}: {reason}")?;
            }
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        for mismatch in &self.first_mismatches {
            writeln!(f, "mismatch: {}: {}: {}", mismatch.kind, mismatch.what, mismatch.detail)?;
        }
        write!(f, "pages compared: {}, mismatches: {}", self.compared, self.mismatches)
    }
}
