//! Pages on their way to a person: raw, hexadecimal, decoded, JSON.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use postgres_ffi::inspect::{hex_dump, inspect};
use postgres_ffi::page::Page;
use postgres_ffi::{BlockNumber, ForkNumber};

use crate::output::Output;

/// How to show a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Header, line pointers, tuples and special area in words
    Decoded,
    /// Hexadecimal with ASCII beside it
    Hex,
    /// The 8192 bytes
    Raw,
}

/// Shows a relation's page. With `--json`, always decoded.
pub fn show(page: &Page, fork: ForkNumber, block_no: BlockNumber, format: Format, output: &mut Output) -> Result<()> {
    if output.is_json() {
        return output.json_line(&inspect(page, fork, block_no));
    }
    match format {
        Format::Decoded => output.text(&inspect(page, fork, block_no).to_string()),
        Format::Hex => output.text(&hex_dump(page)),
        Format::Raw => output.bytes(page),
    }
}

/// Writes `STEM.bin` (raw) and `STEM.txt` (decoded, then hexadecimal) into `folder`, which is made if it is not there.
pub fn save(folder: &Path, stem: &str, page: &Page, fork: ForkNumber, block_no: BlockNumber) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let text = format!("{}\n{}", inspect(page, fork, block_no), hex_dump(page));
    for (extension, bytes) in [("bin", page.as_slice()), ("txt", text.as_bytes())] {
        let path = folder.join(format!("{stem}.{extension}"));
        fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
