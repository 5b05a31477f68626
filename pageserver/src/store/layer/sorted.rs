//! A frozen layer in the order of files: by key, versions oldest first.
//!
//! Versions of one key are scattered over the layer, in the order in which WAL brought them. Walking one chain after the other waits
//! for memory once or twice per version. So a window of keys is walked in step: the next entry of each, then the next again; then the
//! beginnings of all values. The loads of one round do not depend on each other and the processor has many under way at once.

use keyenc::Key;

use super::{EntryNo, LayerData, LayerVersion, NONE, sort_key};

/// Keys walked in step. A window's entries and values should fit the processor's first cache levels.
const WINDOW_KEYS: usize = 64;
const LINE_BYTES: usize = 64;

/// Goes over a layer window by window.
pub(in crate::store) struct SortedWindows<'a> {
    layer: &'a LayerData,
    heads: std::vec::IntoIter<(Key, EntryNo)>,
    /// (number of the key in the window, entry), in rounds.
    found: Vec<(u32, EntryNo)>,
    window: Window<'a>,
}

/// Some keys in order, with all their versions.
#[derive(Default)]
pub(in crate::store) struct Window<'a> {
    keys: Vec<Key>,
    /// Where the versions of key n end; those of the next begin there.
    ends: Vec<usize>,
    versions: Vec<LayerVersion<'a>>,
}

impl<'a> SortedWindows<'a> {
    pub fn new(layer: &'a LayerData) -> Self {
        let blocks = layer.blocks.iter().map(|(key, head)| (key.0, head.entry_no()));
        let mut heads: Vec<(Key, EntryNo)> =
            layer.others.iter().map(|(key, head)| (*key, head.entry_no())).chain(blocks).collect();
        heads.sort_unstable_by_key(|(key, _)| sort_key(key));
        SortedWindows { layer, heads: heads.into_iter(), found: Vec::new(), window: Window::default() }
    }

    /// The next keys with their versions; None at the end.
    pub fn next_window(&mut self) -> Option<&Window<'a>> {
        self.window.keys.clear();
        let mut frontier = [NONE; WINDOW_KEYS];
        for (at, (key, head)) in frontier.iter_mut().zip(self.heads.by_ref()) {
            self.window.keys.push(key);
            *at = head;
        }
        if self.window.keys.is_empty() {
            return None;
        }
        self.walk_chains(frontier);
        self.place_versions();
        touch(&self.window.versions);
        Some(&self.window)
    }

    /// Fills `found`, all chains in step, newest first.
    fn walk_chains(&mut self, mut frontier: [EntryNo; WINDOW_KEYS]) {
        self.found.clear();
        let frontier = &mut frontier[..self.window.keys.len()];
        loop {
            let found_before = self.found.len();
            for (key_no, at) in frontier.iter_mut().enumerate().filter(|(_, at)| **at != NONE) {
                self.found.push((key_no as u32, *at));
                *at = self.layer.entries[*at as usize].older;
            }
            if self.found.len() == found_before {
                return;
            }
        }
    }

    /// Puts what was found in the order of keys, oldest first.
    fn place_versions(&mut self) {
        let Window { keys, ends, versions } = &mut self.window;
        let mut places = [0; WINDOW_KEYS];
        self.found.iter().for_each(|(key_no, _)| places[*key_no as usize] += 1);
        ends.clear();
        let mut end = 0;
        for place in &mut places[..keys.len()] {
            end += *place;
            *place = end;
            ends.push(end);
        }
        versions.clear();
        versions.resize(end, LayerVersion::NOTHING);
        for (key_no, entry_no) in &self.found {
            // Newest first, so from the end of the key's range downwards.
            let place = &mut places[*key_no as usize];
            *place -= 1;
            versions[*place] = self.layer.version(&self.layer.entries[*entry_no as usize]);
        }
    }
}

impl<'a> Window<'a> {
    /// Each key with its versions, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &[LayerVersion<'a>])> {
        let mut start = 0;
        self.keys.iter().zip(&self.ends).map(move |(key, end)| {
            let versions = &self.versions[start..*end];
            start = *end;
            (key, versions)
        })
    }
}

/// Reads where the values begin and end, and the line after the beginning, so that they are in the cache when they are copied.
/// What lies between in a long value the processor fetches by itself.
fn touch(versions: &[LayerVersion<'_>]) {
    let byte = |value: &[u8], at: usize| value.get(at).copied().unwrap_or(0);
    let sum = versions.iter().fold(0, |sum, LayerVersion { value, .. }| {
        sum ^ byte(value, 0) ^ byte(value, LINE_BYTES) ^ byte(value, value.len().wrapping_sub(1))
    });
    std::hint::black_box(sum);
}

#[cfg(test)]
mod tests {
    //! Goal: windows give every version once, in the order of files. Method: more keys than a window holds, chains of all lengths.

    use keyenc::{Kind, Object};
    use postgres_ffi::{ForkNumber, Lsn, RelTag};

    use super::super::HeavyFinder;
    use super::super::Layer;
    use super::*;
    use crate::store::Batch;

    #[test]
    fn windows_give_every_version_in_order() {
        let key = |n: u32| Key::block(RelTag { spc_oid: n % 3, db_oid: 2, rel_number: n }, ForkNumber::Main, n);
        let mut batch = Batch::new();
        let mut expect = Vec::new();
        let mut lsn = 0;
        for round in 0..40 {
            for n in (0..200).filter(|n| round <= n % 40) {
                lsn += 8;
                batch.put(key(n), Lsn::new(lsn), Kind::Delta, &lsn.to_be_bytes()[..n as usize % 9]);
                expect.push((key(n), lsn, lsn.to_be_bytes()[..n as usize % 9].to_vec()));
            }
        }
        batch.put(Object::Checkpoint.into(), Lsn::new(lsn), Kind::Image, &[1; 1000]);
        expect.push((Object::Checkpoint.into(), lsn, vec![1; 1000]));
        expect.sort_unstable();
        let layer = Layer::new();
        layer.put(&batch, &|_| 0, &mut HeavyFinder::new(0));
        let data = layer.read();
        let mut windows = SortedWindows::new(&data);
        let mut found = Vec::new();
        while let Some(window) = windows.next_window() {
            for (key, versions) in window.iter() {
                found.extend(versions.iter().map(|v| (*key, v.lsn.as_u64(), v.value.to_vec())));
            }
        }
        assert!(found == expect);
        assert!(SortedWindows::new(&Layer::new().read()).next_window().is_none());
    }
}
