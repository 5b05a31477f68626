//! Decoded pages as text.

use std::fmt::{self, Write};

use super::index::TidMeaning;
use super::{BrinTuple, HeapTuple, IndexTuple, ItemView, PageView, SpgistTuple, Tuple};
use crate::page::layout::ItemFlags;

impl fmt::Display for PageView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} page, fork {}, block {}", self.kind.name(), self.fork, self.block_no)?;
        let lsn = self.lsn.unwrap_or_default();
        let right = if self.checksum_is_right { "right" } else { "not that of this block" };
        writeln!(f, "lsn {lsn}  checksum {:#06x} ({right})", self.checksum)?;
        let header = &self.header;
        writeln!(
            f,
            "flags {:#06x}  lower {}  upper {}  special {}  version {:#06x}  prune xid {}",
            header.flags, header.lower, header.upper, header.special, header.pagesize_version, header.prune_xid
        )?;
        for damage in &self.damage {
            writeln!(f, "DAMAGE: {damage}")?;
        }
        if let Some(special) = &self.special {
            writeln!(f, "special: {}{}", special.fields, flags(&special.flags))?;
        }
        if let Some(contents) = &self.contents {
            writeln!(f, "contents: {contents}")?;
        }
        if let Some(visible) = &self.visible {
            writeln!(f, "all-visible {}: {}", visible.all_visible, runs(&visible.visible_runs))?;
            writeln!(f, "all-frozen {}: {}", visible.all_frozen, runs(&visible.frozen_runs))?;
        }
        if let Some(space) = &self.free_space {
            let (leaves, most) = (space.leaves_with_space, space.most_free_bytes);
            writeln!(f, "free space: {leaves} leaves, at most {most} bytes, next slot {}", space.next_slot)?;
        }
        self.items.iter().try_for_each(|item| writeln!(f, "{item}"))
    }
}

fn flags(names: &[&str]) -> String {
    if names.is_empty() { String::new() } else { format!(" [{}]", names.join(" ")) }
}

fn runs(runs: &[(u64, u64)]) -> String {
    let words: Vec<String> = runs.iter().map(|(first, last)| format!("{first}-{last}")).collect();
    words.join(" ")
}

impl fmt::Display for ItemView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let item = &self.item;
        write!(f, "{:>5} ", item.offset_no)?;
        match item.flags {
            ItemFlags::Unused => f.write_str("unused")?,
            ItemFlags::Redirect => write!(f, "redirect to {}", item.offset)?,
            ItemFlags::Dead if item.len == 0 => f.write_str("dead")?,
            ItemFlags::Dead => write!(f, "dead   {:>5}+{:<5}", item.offset, item.len)?,
            ItemFlags::Normal => write!(f, "normal {:>5}+{:<5}", item.offset, item.len)?,
        }
        match &self.tuple {
            None => Ok(()),
            Some(Tuple::Heap(tuple)) => tuple.fmt(f),
            Some(Tuple::Index(tuple)) => tuple.fmt(f),
            Some(Tuple::Spgist(tuple)) => tuple.fmt(f),
            Some(Tuple::Brin(tuple)) => tuple.fmt(f),
            Some(Tuple::Raw { len }) => write!(f, " {len} bytes"),
        }
    }
}

impl fmt::Display for HeapTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " xmin {} xmax {} cid {} ctid {}", self.xmin, self.xmax, self.cid, self.ctid)?;
        write!(f, " columns {} data {}{}", self.columns, self.data_len, flags(&self.flags))?;
        if !self.null_columns.is_empty() {
            write!(f, " nulls {:?}", self.null_columns)?;
        }
        Ok(())
    }
}

impl fmt::Display for IndexTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.meaning {
            None => write!(f, " tid {}", self.tid)?,
            Some(TidMeaning::Pivot { columns, has_heap_tid }) => {
                let with = if *has_heap_tid { " with a tid" } else { "" };
                write!(f, " child {} columns {columns}{with}", self.tid.block_no)?;
            }
            Some(TidMeaning::Posting { count, first }) => {
                write!(f, " posting list of {count}")?;
                first.iter().try_for_each(|tid| write!(f, " from {tid}"))?;
            }
        }
        let nulls = if self.has_nulls { " nulls" } else { "" };
        write!(f, " size {}{nulls}", self.size)
    }
}

impl fmt::Display for SpgistTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " {} size {}", self.state, self.size)?;
        if let (Some(nodes), Some(prefix_len)) = (self.nodes, self.prefix_len) {
            write!(f, " nodes {nodes} prefix {prefix_len}")?;
        }
        self.tid.iter().try_for_each(|tid| write!(f, " tid {tid}"))
    }
}

impl fmt::Display for BrinTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " heap block {}", self.heap_block)?;
        let words =
            [(self.is_empty_range, " empty range"), (self.is_placeholder, " placeholder"), (self.has_nulls, " nulls")];
        words.iter().filter(|(is_set, _)| *is_set).try_for_each(|(_, word)| f.write_str(word))
    }
}

const HEX_LINE_LEN: usize = 16;

/// Offset, hexadecimal and ASCII, 16 bytes per line; lines that repeat the one before are a single `*`.
pub fn hex_dump(bytes: &[u8]) -> String {
    let mut out = String::new();
    let mut previous: Option<&[u8]> = None;
    let mut is_skipping = false;
    for (line_no, line) in bytes.chunks(HEX_LINE_LEN).enumerate() {
        if previous == Some(line) {
            out.push_str(if is_skipping { "" } else { "*\n" });
            is_skipping = true;
            continue;
        }
        (previous, is_skipping) = (Some(line), false);
        push_line(&mut out, line_no * HEX_LINE_LEN, line);
    }
    out.push_str(&format!("{:04x}\n", bytes.len()));
    out
}

fn push_line(out: &mut String, offset: usize, line: &[u8]) {
    let mut hex = String::new();
    for byte in line {
        // Writing to a String cannot fail.
        let _ = write!(hex, " {byte:02x}");
    }
    let text: String = line
        .iter()
        .map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' })
        .collect();
    out.push_str(&format!("{offset:04x} {hex:<48}  {text}\n"));
}
