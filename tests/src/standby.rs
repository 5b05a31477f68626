//! A hot standby of a running server, from a base backup that is taken here: `pg_basebackup` of Debian 12 refuses
//! servers newer than 15.
//!
//! - The files are copied while the server writes them, between PostgreSQL's own start and end of a backup; recovery
//!   from the label that the end gives makes them right.
//! - Both servers run on one machine, so tablespaces are in place (`allow_in_place_tablespaces`), or their copies lie elsewhere ([`Tablespaces::Beside`]).

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use postgres_ffi::PgVersion;

use crate::Postgres;
use crate::ports::free_port;
use crate::test_dir::give_to_server_user;

/// Directories whose content a base backup leaves out; they must exist, empty.
/// PG 17: src/backend/backup/basebackup.c, excludeDirContents; pg_wal holds no WAL when it comes over the wire.
const CONTENT_LEFT_OUT: &[&str] =
    &["pg_wal", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans", "pg_stat_tmp"];
/// Files that belong to the running server alone.
const FILES_LEFT_OUT: &[&str] = &["postmaster.pid", "postmaster.opts", "pg_internal.init", "backup_label"];

/// What becomes of a tablespace outside of the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tablespaces {
    /// An error.
    InPlace,
    /// A copy in the directory `tablespaces` beside the data directory, and a link to it.
    Beside,
}

/// A running hot standby of `primary` that streams from it; it has its own directory and port.
pub fn start_standby(primary: &Postgres) -> Result<Postgres> {
    let port = free_port()?;
    let root = primary.test_dir().create_subdir(&format!("pg{}-{port}", primary.version()))?;
    let mut standby = primary.sibling(root, port)?;
    base_backup(primary, standby.data_dir(), Tablespaces::InPlace)?;
    standby.set("primary_conninfo", &format!("{} application_name=standby", primary.conninfo()))?;
    standby.set("recovery_target_timeline", "latest")?;
    write(&standby.data_dir().join("standby.signal"), "")?;
    standby.start().context("start the standby")?;
    Ok(standby)
}

/// A server on a base backup of `primary`, its WAL beside it; not started. It recovers to the end of that WAL when it is, and ends as a primary.
/// `first`: see [`base_backup_behind`].
pub fn recovering(primary: &Postgres, first: impl FnOnce() -> Result<()>) -> Result<Postgres> {
    let port = free_port()?;
    let root = primary.test_dir().create_subdir(&format!("recovering{}-{port}", primary.version()))?;
    let mut server = primary.sibling(root, port)?;
    base_backup_behind(primary, server.data_dir(), Tablespaces::InPlace, first)?;
    copy_wal(primary, server.data_dir())?;
    server.set("hot_standby", "on")?; // As it is; with it the port is written.
    Ok(server)
}

/// Copies the WAL that the running `server` has, all that was written so far, into `data_dir`.
pub fn copy_wal(server: &Postgres, data_dir: &Path) -> Result<()> {
    server.execute("SELECT pg_switch_wal()")?;
    for entry in fs::read_dir(server.data_dir().join("pg_wal"))? {
        let entry = entry?;
        // A segment is made under another name, and renamed at any moment.
        let is_being_made = entry.file_name().to_string_lossy().starts_with("xlogtemp.");
        if entry.file_type()?.is_file() && !is_being_made {
            let target = data_dir.join("pg_wal").join(entry.file_name());
            fs::copy(entry.path(), &target).with_context(|| format!("copy {}", entry.path().display()))?;
            give_to_server_user(&target)?;
        }
    }
    Ok(())
}

/// A base backup of the running `server` in `target`, which must not exist; the label included, WAL not.
pub fn base_backup(server: &Postgres, target: &Path, tablespaces: Tablespaces) -> Result<()> {
    base_backup_behind(server, target, tablespaces, || Ok(()))
}

/// As [`base_backup`]; `first` is done once the backup has begun, before a file is copied.
pub fn base_backup_behind(
    server: &Postgres,
    target: &Path,
    tablespaces: Tablespaces,
    first: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let mut session = server.connect()?;
    let (start, stop) = if server.version() >= PgVersion::V15 {
        ("SELECT pg_backup_start('harness', true)", "SELECT labelfile FROM pg_backup_stop(false)")
    } else {
        ("SELECT pg_start_backup('harness', true, false)", "SELECT labelfile FROM pg_stop_backup(false, false)")
    };
    session.batch_execute(start).context("start the base backup")?;
    first()?;
    copy_dir(server.data_dir(), target, true, tablespaces)?;
    remove_unlogged(server.data_dir(), target)?;
    // Must be the session that started it.
    let label: String = session.query_one(stop, &[]).context("end the base backup")?.get(0);
    write(&target.join("backup_label"), &label)
}

/// A copy of the directory of a stopped server.
pub fn copy_data_dir(source: &Path, target: &Path, tablespaces: Tablespaces) -> Result<()> {
    copy_dir(source, target, false, tablespaces)
}

/// Copies a directory tree; with `leave_out` without what a base backup leaves out. A file that vanishes meanwhile was dropped.
fn copy_dir(source: &Path, target: &Path, leave_out: bool, tablespaces: Tablespaces) -> Result<()> {
    create_empty(target)?;
    let entries = match fs::read_dir(source) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("list {}", source.display()))?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let (from, to) = (entry.path(), target.join(&name));
        let kind = match entry.file_type() {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            kind => kind?,
        };
        if kind.is_dir() {
            let emptied = leave_out && (CONTENT_LEFT_OUT.contains(&name.as_str()) || name.starts_with("pgsql_tmp"));
            if emptied { create_empty(&to)? } else { copy_dir(&from, &to, leave_out, tablespaces)? }
        } else if kind.is_symlink() {
            ensure!(
                tablespaces == Tablespaces::Beside,
                "{} is a link: only tablespaces in place can be copied",
                from.display()
            );
            copy_tablespace(&from, &to, leave_out)?;
        } else if !(leave_out && FILES_LEFT_OUT.contains(&name.as_str())) {
            copy_file(&from, &to)?;
        }
    }
    Ok(())
}

/// `from` and `to` are `DATA/pg_tblspc/OID`; the copy goes to `tablespaces/OID` beside the data directory.
fn copy_tablespace(from: &Path, to: &Path, leave_out: bool) -> Result<()> {
    let name = to.file_name().context("a tablespace has a number")?;
    let beside = to.ancestors().nth(3).context("a data directory lies in a directory")?.join("tablespaces");
    if !beside.exists() {
        create_empty(&beside)?;
    }
    let place = beside.join(name);
    copy_dir(&fs::canonicalize(from)?, &place, leave_out, Tablespaces::InPlace)?;
    symlink(&place, to).with_context(|| format!("link {}", to.display()))
}

/// A base backup has the init forks of unlogged relations alone. One that was made while its directory was being copied may have its init fork
/// in the source only; WAL brings that, and the end of recovery refuses to start the relation over a main fork that is there.
fn remove_unlogged(source: &Path, target: &Path) -> Result<()> {
    for entry in fs::read_dir(target).with_context(|| format!("list {}", target.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if path.is_dir() {
            remove_unlogged(&source.join(name), &path)?;
            continue;
        }
        let number = name.split(['_', '.']).next().unwrap_or_default();
        let is_relation = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let init = format!("{number}_init");
        if is_relation && name != init && (target.join(&init).exists() || source.join(&init).exists()) {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// An empty directory for the server.
fn create_empty(target: &Path) -> Result<()> {
    fs::create_dir(target).with_context(|| format!("create {}", target.display()))?;
    fs::set_permissions(target, fs::Permissions::from_mode(0o700))?;
    give_to_server_user(target)
}

fn copy_file(from: &Path, to: &Path) -> Result<()> {
    match fs::copy(from, to) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        copied => {
            copied.with_context(|| format!("copy {}", from.display()))?;
            give_to_server_user(to)
        }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    give_to_server_user(path)
}

/// A server that recovers from the base backup in `backup` (see [`base_backup`]) with the WAL of `primary`'s directory, as far as `settings` say;
/// it takes connections in recovery.
pub fn start_recovery(primary: &Postgres, backup: &Path, settings: &[(&str, &str)]) -> Result<Postgres> {
    let port = free_port()?;
    let root = primary.test_dir().create_subdir(&format!("pg{}-{port}", primary.version()))?;
    let mut server = primary.sibling(root, port)?;
    copy_data_dir(backup, server.data_dir(), Tablespaces::InPlace)?;
    server.set("restore_command", &format!("cp '{}/pg_wal/%f' '%p'", primary.data_dir().display()))?;
    for (name, value) in settings {
        server.set(name, value)?;
    }
    write(&server.data_dir().join("recovery.signal"), "")?;
    server.start().context("start the recovery")?;
    Ok(server)
}
