//! Checks the rules of the repository that a machine can check: who may name what, what a file must and must not hold.
//!
//! Method: reads the files that git knows (or would take), the manifests, and `cargo tree`. Each broken rule is listed
//! with its file and line, so that one run shows all.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file longer than this is two files.
const FILE_LINES_MAX: usize = 1000;

/// Members and what they must not depend on, however indirectly: the leaves do no storage, threads or sockets.
const FORBIDDEN_EDGES: &[(&str, &[&str])] = &[
    ("keyenc", &["rocksdb", "librocksdb-sys", "crossbeam-channel", "postgres", "pageserver"]),
    ("postgres_ffi", &["rocksdb", "librocksdb-sys", "crossbeam-channel", "postgres", "pageserver", "keyenc"]),
    ("pageserver", &["tools", "tokio"]),
];

/// Text that no Rust file may hold. In two parts, so that this file does not hold it.
const FORBIDDEN_IN_RUST: &[(&str, &str)] = &[
    ("todo", "!("),
    ("unimplemented", "!("),
    ("dbg", "!("),
    ("FIX", "ME"),
    ("XX", "X:"),
    ("TO", "DO:"),
    ("#[ign", "ore"),
    ("uns", "afe {"),
    ("asy", "nc fn"),
    ("asy", "nc move"),
    (".aw", "ait"),
];

/// Names of machines that serve packages. Packages come through their ordinary clients, which know where from.
const REGISTRY_HOSTS: &[(&str, &str)] = &[
    ("registry.npm", "js.org"),
    ("crates", ".io"),
    ("py", "pi.org"),
    ("debian", ".org"),
    ("proxy.golang", ".org"),
    ("postgresql", ".org/pub"),
];

/// Directories of a machine that mean nothing on another one.
const MACHINE_PATHS: &[(&str, &str)] = &[("/ro", "ot/"), ("/wo", "rk/"), ("/ho", "me/")];

struct File {
    name: String,
    text: String,
}

impl File {
    /// `name:line` of each line that `is_wrong`.
    fn lines_that<'a>(&'a self, is_wrong: impl Fn(&str) -> bool + 'a) -> impl Iterator<Item = String> + 'a {
        let numbered = self.text.lines().enumerate();
        numbered
            .filter(move |(_, line)| is_wrong(line))
            .map(|(no, line)| format!("{}:{}: {}", self.name, no + 1, line.trim()))
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace lies above its members").to_owned()
}

/// The text files that git tracks or would take.
fn files() -> Vec<File> {
    let mut git = Command::new("git");
    git.args(["-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(root());
    let output = git.output().expect("run git");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("file names are UTF-8");
    let read =
        |name: &str| Some(File { name: name.to_owned(), text: std::fs::read_to_string(root().join(name)).ok()? });
    let files: Vec<File> = names.lines().filter_map(read).collect();
    assert!(files.len() > 20, "git knows only {} files", files.len());
    files
}

fn rust_files() -> Vec<File> {
    files().into_iter().filter(|file| file.name.ends_with(".rs")).collect()
}

fn contains(line: &str, (head, tail): &(&str, &str)) -> bool {
    line.match_indices(head).any(|(at, _)| line[at + head.len()..].starts_with(tail))
}

fn manifest(path: &str) -> toml::Table {
    let text = std::fs::read_to_string(root().join(path)).expect("read a manifest");
    text.parse().unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn members() -> Vec<String> {
    let members = manifest("Cargo.toml")["workspace"]["members"].as_array().expect("a list of members").clone();
    members.iter().map(|member| member.as_str().expect("a folder").to_owned()).collect()
}

#[track_caller]
fn assert_none(rule: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{rule}:\n{}", broken.join("\n"));
}

#[test]
fn only_the_store_names_rocksdb() {
    let allowed = |name: &str| name.starts_with("pageserver/src/store/") || name.starts_with("benches/");
    let naming = ("rocks", "db::");
    let files = rust_files();
    let broken = files
        .iter()
        .filter(|file| !allowed(&file.name))
        .flat_map(|file| file.lines_that(|line| contains(line, &naming)));
    assert_none("RocksDB is named in pageserver/src/store/ (and measured in benches/) alone", broken.collect());
}

#[test]
fn dependencies_point_one_way() {
    let mut broken = Vec::new();
    for (member, forbidden) in FORBIDDEN_EDGES {
        let tree = cargo_tree(&["--edges", "normal", "--package", member]);
        let names = tree.lines().filter_map(|line| line.split(' ').next());
        let edges = names.filter(|name| forbidden.contains(name)).map(|name| format!("{member} -> {name}"));
        broken.extend(edges);
    }
    assert_none("a member depends on what it must not know", broken);
}

/// Lines of `cargo tree`: name and version of a crate, and what else was asked for.
fn cargo_tree(arguments: &[&str]) -> String {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["tree", "--locked", "--offline", "--prefix", "none"]).args(arguments);
    let output = cargo.current_dir(root()).output().expect("run cargo tree");
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Crates with their features, as one build of `packages` takes them; with or without what tests need.
fn crates_built(packages: &[&str], edges: &str) -> BTreeSet<String> {
    let tree = cargo_tree(&[&["--edges", edges, "--format", "{p} with {f}"], packages].concat());
    tree.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
}

#[test]
fn a_member_alone_builds_nothing_that_the_workspace_has_not_built() {
    let whole = crates_built(&["--workspace"], "normal,build,dev");
    let mut broken = Vec::new();
    let mut member_count = 0;
    for manifest in files().into_iter().filter(|file| file.name.ends_with("/Cargo.toml")) {
        let Some(member) = manifest.name.split('/').next().filter(|_| manifest.text.contains("\nedition.workspace"))
        else {
            continue;
        };
        member_count += 1;
        for edges in ["normal,build", "normal,build,dev"] {
            let alone = crates_built(&["--package", member], edges);
            broken.extend(alone.difference(&whole).map(|other| format!("{member}: {other}")));
        }
    }
    assert!(member_count > 5, "members are no longer found by their manifests");
    assert_none("a crate is built with other features for a member alone: see workspace_features/Cargo.toml", broken);
}

#[test]
fn every_rust_file_says_what_it_is_for() {
    let files = rust_files();
    let broken = files.iter().filter(|file| !file.text.starts_with("//! ")).map(|file| file.name.clone());
    assert_none("a file must start with `//! ` and what it is for", broken.collect());
}

#[test]
fn nothing_is_left_undone() {
    let files = rust_files();
    let wrong = |line: &str| FORBIDDEN_IN_RUST.iter().any(|text| contains(line, text));
    assert_none(
        "left undone, switched off, or forbidden",
        files.iter().flat_map(|file| file.lines_that(wrong)).collect(),
    );
}

#[test]
fn no_file_is_too_long_or_a_drawer() {
    let files = rust_files();
    let long = files.iter().filter(|file| file.text.lines().count() > FILE_LINES_MAX);
    let drawers = files.iter().filter(|file| {
        let name = Path::new(&file.name);
        ["utils", "util", "helpers", "misc", "common"]
            .iter()
            .any(|drawer| name.file_stem().is_some_and(|stem| stem == *drawer))
    });
    assert_none(
        "longer than 1000 lines, or named for nothing in particular",
        long.chain(drawers).map(|file| file.name.clone()).collect(),
    );
}

#[test]
fn every_dependency_stands_once_in_the_workspace() {
    let mut broken = Vec::new();
    let mut used = std::collections::BTreeSet::new();
    for member in members() {
        let path = format!("{member}/Cargo.toml");
        let manifest = manifest(&path);
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(dependencies) = manifest.get(section) else { continue };
            for (name, value) in dependencies.as_table().expect("a table of dependencies") {
                used.insert(name.clone());
                let inherited = value.get("workspace").and_then(toml::Value::as_bool) == Some(true);
                if !inherited || value.get("version").is_some() || value.get("features").is_some() {
                    broken.push(format!("{path}: {section}: {name}"));
                }
            }
        }
    }
    assert_none("a dependency with its version and features stands in the workspace's Cargo.toml", broken);
    let workspace = manifest("Cargo.toml");
    let declared = workspace["workspace"]["dependencies"].as_table().expect("a table of dependencies");
    let unused = declared.keys().filter(|name| !used.contains(*name)).cloned();
    assert_none("declared in the workspace, used by no member", unused.collect());
}

#[test]
fn unsafe_code_is_forbidden_in_every_member() {
    let workspace = manifest("Cargo.toml");
    assert_eq!(workspace["workspace"]["lints"]["rust"]["unsafe_code"].as_str(), Some("forbid"));
    let inherits = |member: &String| {
        let lints = manifest(&format!("{member}/Cargo.toml")).get("lints").cloned();
        lints.and_then(|lints| lints.get("workspace")?.as_bool()) == Some(true)
    };
    assert_none(
        "`[lints] workspace = true` is missing",
        members().into_iter().filter(|member| !inherits(member)).collect(),
    );
}

#[test]
fn no_file_names_a_registry_host_or_a_place_on_one_machine() {
    // Written by cargo and by cargo alone.
    let files = files().into_iter().filter(|file| file.name != "Cargo.lock").collect::<Vec<_>>();
    let names_host = |line: &str| REGISTRY_HOSTS.iter().any(|host| contains(line, host));
    let names_place = |line: &str| MACHINE_PATHS.iter().any(|path| starts_a_path(line, path));
    let broken = files.iter().flat_map(|file| file.lines_that(move |line| names_host(line) || names_place(line)));
    assert_none("a package registry's host name, or a path of one machine", broken.collect());
}

/// Whether `line` holds an absolute path that begins with `path`: what stands before it ends no word.
fn starts_a_path(line: &str, (head, tail): &(&str, &str)) -> bool {
    line.match_indices(head).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let ends_a_word = before.is_some_and(|c| c.is_alphanumeric() || "_-.*})]>".contains(c));
        line[at + head.len()..].starts_with(tail) && !ends_a_word
    })
}

#[test]
fn scripts_are_valid_and_strict() {
    let is_script = |file: &File| file.text.starts_with("#!/usr/bin/env bash");
    let scripts: Vec<File> = files().into_iter().filter(is_script).collect();
    assert!(scripts.iter().any(|file| file.name == ".ci/run"), "CI's script is a bash script");
    let mut broken = Vec::new();
    for file in &scripts {
        let parsed = Command::new("bash").arg("-n").arg(root().join(&file.name)).status().expect("run bash");
        if !parsed.success() || !file.text.contains("set -euo pipefail") {
            broken.push(file.name.clone());
        }
    }
    assert_none("a script does not parse, or goes on after a failure", broken);
}
