//! The story of the README runs as it is written there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tests::{TestDir, built_program};

/// The block of the README that begins behind this heading.
const HEADING: &str = "## Clone it";

fn block(readme: &str) -> Option<&str> {
    let (_, after) = readme.split_once(HEADING)?;
    let (_, after) = after.split_once("```\n")?;
    Some(after.split_once("\n```")?.0)
}

#[test]
fn the_story_of_the_readme_is_true() -> Result<()> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md"))?;
    let story = block(&readme).context("no block of shell in the README")?;
    let dir = TestDir::new("readme")?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let address = format!("127.0.0.1:{port}");
    let programs = built_program("pageserver")?.parent().map(PathBuf::from).context("a directory of programs")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([programs].into_iter().chain(std::env::split_paths(&path)))?;
    // Whatever happens, what the story started in the background ends with it.
    let ends = "trap 'pagectl compute destroy dev --confirm --force; kill $(jobs -p)' EXIT\n";
    let script = dir.path().join("story.sh");
    fs::write(&script, format!("set -euo pipefail\n{ends}{story}\ntrap - EXIT\n"))?;
    let mut bash = Command::new("bash");
    bash.arg(&script).current_dir(dir.path()).stdin(Stdio::null());
    bash.env("PATH", path).env("PAGESERVER_LISTEN", &address).env("PAGECTL_SERVER", &address);
    let output = bash.output().context("run bash")?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    // What the clone shows, and the end.
    ensure!(
        stdout.contains("100000") && stdout.contains("rescue destroyed") && stdout.contains("dev destroyed"),
        "{stdout}"
    );
    Ok(())
}
