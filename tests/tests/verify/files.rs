//! The server's files, bits of them, and what `pagectl verify` says.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tests::{Outcome, PageServer};

/// Flips one bit.
pub fn flip(file: &Path, at: u64) -> Result<()> {
    let byte = byte(file, at)? ^ 0x04;
    Ok(OpenOptions::new().write(true).open(file)?.write_all_at(&[byte], at)?)
}

/// One byte of a file.
pub fn byte(file: &Path, at: u64) -> Result<u8> {
    let mut byte = [0];
    fs::File::open(file)?.read_exact_at(&mut byte, at)?;
    Ok(byte[0])
}

/// Files below `dir` whose paths contain `part`, in order, with their sizes.
pub fn files(dir: &Path, part: &str) -> Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    collect(dir, part, &mut found)?;
    found.sort();
    Ok(found)
}

fn collect(dir: &Path, part: &str, found: &mut Vec<(PathBuf, u64)>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, part, found)?;
        } else if path.to_string_lossy().contains(part) {
            let size = fs::metadata(&path)?.len();
            found.push((path, size));
        }
    }
    Ok(())
}

/// WAL segments of the server's timelines, oldest first.
pub fn segments(pageserver: &PageServer) -> Result<Vec<PathBuf>> {
    let found = files(&pageserver.data_dir().join("timelines"), "/wal/")?;
    let is_segment = |path: &PathBuf| path.file_name().is_some_and(|name| name.len() == 24);
    Ok(found.into_iter().map(|(path, _)| path).filter(is_segment).collect())
}

/// The last part of a path.
pub fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// `pagectl verify`.
pub fn verify(pageserver: &PageServer) -> Result<Outcome> {
    pageserver.pagectl()?.outcome(&["verify"])
}

/// Says so if anything is wrong.
#[track_caller]
pub fn assert_clean(pageserver: &PageServer) {
    let outcome = verify(pageserver).unwrap();
    assert_eq!((outcome.exit_code, outcome.stdout.as_str()), (0, "nothing is wrong\n"), "{}", outcome.stderr);
}

/// Says so if nothing is wrong, or if `parts` are not named.
#[track_caller]
pub fn assert_found(pageserver: &PageServer, parts: &[&str]) {
    let outcome = verify(pageserver).unwrap();
    assert_eq!(outcome.exit_code, 1, "{}{}", outcome.stdout, outcome.stderr);
    for part in parts {
        assert!(outcome.stdout.contains(part), "no `{part}` in {}", outcome.stdout);
    }
}
