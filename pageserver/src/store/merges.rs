//! Which removals are worth being merged with what they remove.
//!
//! Removals take room above what they remove until compaction has merged both, and a merge writes everything that lies in its range: one small set of
//! removals in the middle of a large file would have the whole file written again. So neighbours are merged together, over all timelines (whose key ranges
//! lie side by side in the same files), and only where enough goes.

use super::db::StoredFile;

/// A file with fewer removals among its entries waits for the compaction that comes anyway.
const REMOVALS_SHARE_MIN: u64 = 10;
/// A merge whose removals are fewer, against the entries of the files that it writes again, waits for more of them.
const REMOVED_SHARE_MIN: u64 = 16;
/// Who waits for one merge to end waits for about so many bytes, or for one file.
const MERGE_BYTES_MAX: u64 = 128 << 20;

/// Files to be merged, with what lies between and below them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Merge {
    /// Those of removals.
    pub files: Vec<String>,
    pub start_key: Vec<u8>,
    pub end_key: Vec<u8>,
}

/// Those that are worth it, in key order.
pub(super) fn worthwhile_merges(all: &[StoredFile]) -> Vec<Merge> {
    let mut of_removals: Vec<&StoredFile> = all.iter().filter(|file| is_mostly_removals(file)).collect();
    of_removals.sort_by(|one, other| one.start_key.cmp(&other.start_key));
    let mut merges = Vec::new();
    let mut rest = of_removals.as_slice();
    while !rest.is_empty() {
        let group = Group::first_of(rest, all);
        rest = &rest[group.files.len()..];
        if group.removals.saturating_mul(REMOVED_SHARE_MIN) >= group.entries_of_others {
            merges.push(group.into_merge());
        }
    }
    merges
}

fn is_mostly_removals(file: &StoredFile) -> bool {
    file.removals > 0 && file.removals.saturating_mul(REMOVALS_SHARE_MIN) >= file.entries
}

/// Neighbours, and what a merge of them would write again.
struct Group<'a> {
    files: &'a [&'a StoredFile],
    removals: u64,
    bytes: u64,
    entries_of_others: u64,
}

impl<'a> Group<'a> {
    /// As many of `files`, which are in key order, as fit into one merge; at least one.
    fn first_of(files: &'a [&'a StoredFile], all: &[StoredFile]) -> Self {
        let mut taken = Group::of(&files[..1], all);
        for count in 2..=files.len() {
            let more = Group::of(&files[..count], all);
            if more.bytes > MERGE_BYTES_MAX {
                break;
            }
            taken = more;
        }
        taken
    }

    fn of(files: &'a [&'a StoredFile], all: &[StoredFile]) -> Self {
        let (start_key, end_key) = range_of(files);
        let between =
            all.iter().filter(|file| file.start_key.as_slice() <= end_key && file.end_key.as_slice() >= start_key);
        let (bytes, entries) =
            between.fold((0, 0), |(bytes, entries), file| (bytes + file.bytes, entries + file.entries));
        let own_entries: u64 = files.iter().map(|file| file.entries).sum();
        let removals = files.iter().map(|file| file.removals).sum();
        // Its own files are among those between.
        Group { files, removals, bytes, entries_of_others: entries - own_entries }
    }

    fn into_merge(self) -> Merge {
        let (start_key, end_key) = range_of(self.files);
        let files = self.files.iter().map(|file| file.name.clone()).collect();
        Merge { files, start_key: start_key.to_vec(), end_key: end_key.to_vec() }
    }
}

/// First and last key of files in key order. Requires: there is one.
fn range_of<'a>(files: &'a [&'a StoredFile]) -> (&'a [u8], &'a [u8]) {
    let end_key = files.iter().map(|file| file.end_key.as_slice()).max().unwrap_or_default();
    (files[0].start_key.as_slice(), end_key)
}

#[cfg(test)]
mod tests {
    //! Goal: merges that give back little for what they write wait, and neighbours share one. Method: files made up.

    use super::*;

    const MIB: u64 = 1 << 20;

    fn file(name: &str, bytes: u64, keys: std::ops::RangeInclusive<u8>, entries: u64, removals: u64) -> StoredFile {
        let (start_key, end_key) = (vec![*keys.start()], vec![*keys.end()]);
        StoredFile { name: name.to_owned(), bytes, start_key, end_key, entries, removals }
    }

    fn merged(files: &[StoredFile]) -> Vec<Vec<String>> {
        worthwhile_merges(files).into_iter().map(|merge| merge.files).collect()
    }

    #[test]
    fn enough_must_go() {
        let below = file("below", 64 * MIB, 0..=200, 16_000, 0);
        let mut files = vec![below, file("a", MIB, 10..=20, 900, 900)];
        assert!(merged(&files).is_empty());
        // A neighbour makes it worth it, and shares what has to be written.
        files.push(file("b", MIB, 21..=30, 100, 100));
        assert_eq!(merged(&files), [["a", "b"]]);
        // Few removals among many entries are no file of removals.
        files[2].entries = 1001;
        assert!(merged(&files).is_empty());
        // Nothing below: that costs nothing.
        assert_eq!(merged(&files[1..2]), [["a"]]);
    }

    #[test]
    fn a_merge_stays_small_enough_to_wait_for() {
        let mut files: Vec<StoredFile> =
            (0..6).map(|n| file(&format!("below{n}"), 64 * MIB, n * 10..=n * 10 + 9, 1000, 0)).collect();
        files.extend((0..6).map(|n| file(&format!("r{n}"), MIB, n * 10 + 1..=n * 10 + 2, 500, 500)));
        assert_eq!(merged(&files), [["r0"], ["r1"], ["r2"], ["r3"], ["r4"], ["r5"]]);
        files[..6].iter_mut().for_each(|below| below.bytes = 30 * MIB);
        assert_eq!(merged(&files), [["r0", "r1", "r2", "r3"].as_slice(), &["r4", "r5"]]);
        let first = &worthwhile_merges(&files)[0];
        assert_eq!((first.start_key.as_slice(), first.end_key.as_slice()), (&[1][..], &[32][..]));
    }
}
