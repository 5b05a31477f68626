//! Files that are there only once they are whole.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Has `write` fill a file beside `path`, which takes its name when that has gone well, and goes when it has not.
pub fn write_whole(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let part = part_path(path);
    let mut file = File::create(&part).with_context(|| format!("create {}", part.display()))?;
    let written =
        write(&mut file).and_then(|()| fs::rename(&part, path).with_context(|| format!("write {}", path.display())));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&part);
    }
    written
}

fn part_path(path: &Path) -> PathBuf {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    part.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_lies_beside_the_file() {
        assert_eq!(part_path(Path::new("a/b.tar")), Path::new("a/b.tar.part"));
    }
}
