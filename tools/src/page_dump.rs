//! Pages on their way to a person: files, hexadecimal.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use postgres_ffi::page::Page;
use postgres_ffi::{BlockNumber, ForkNumber};

/// Writes `STEM.bin` into `folder`, which is made if it is not there.
pub fn save(folder: &Path, stem: &str, page: &Page, _fork: ForkNumber, _block_no: BlockNumber) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let path = folder.join(format!("{stem}.bin"));
    fs::write(&path, page).with_context(|| format!("write {}", path.display()))
}
