//! A stock server that starts from a base backup of the page server: the archive unpacked, tablespaces as links, nothing else done to it but for
//! what any test server needs (port, no fsync, everybody is let in).

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use postgres_ffi::PgVersion;

use crate::ports::free_port;
use crate::test_dir::give_to_server_user;
use crate::{Postgres, TestDir};

/// What a test server needs besides the backup's own configuration.
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    ("unix_socket_directories", ""),
    ("fsync", "off"),
    ("log_line_prefix", "%m [%p] "),
    ("log_checkpoints", "off"),
];

/// The server of `version` on the base backup `archive`, unpacked below `dir`; not started.
pub fn unpacked(dir: &TestDir, version: PgVersion, archive: impl Read) -> Result<Postgres> {
    let port = free_port()?;
    let root = dir.create_subdir(&format!("backup{version}-{port}"))?;
    let data_dir = root.join("data");
    unpack(archive, &data_dir)?;
    move_tablespaces(&data_dir, &root.join("tablespaces"))?;
    let conf = data_dir.join("postgresql.conf");
    fs::write(&conf, fs::read_to_string(&conf)? + "\ninclude 'harness.conf'\n")?;
    fs::write(
        data_dir.join("pg_hba.conf"),
        "host all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n",
    )?;
    give_all(&root)?;
    Postgres::on_directory(version, dir, root, port, SETTINGS)
}

/// Unpacks with the rights that the archive names, which must be PostgreSQL's.
fn unpack(archive: impl Read, data_dir: &Path) -> Result<()> {
    fs::create_dir(data_dir)?;
    fs::set_permissions(data_dir, fs::Permissions::from_mode(0o700))?;
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = data_dir.join(entry.path()?);
        let is_directory = entry.header().entry_type().is_dir();
        let mode = entry.header().mode()?;
        ensure!(mode == if is_directory { 0o700 } else { 0o600 }, "{} has mode {mode:o}", path.display());
        if is_directory {
            fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        } else {
            let mut file = File::create_new(&path).with_context(|| format!("create {}", path.display()))?;
            std::io::copy(&mut entry, &mut file)?;
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// `pg_tblspc/OID` becomes a link.
fn move_tablespaces(data_dir: &Path, tablespaces: &Path) -> Result<()> {
    fs::create_dir(tablespaces)?;
    for entry in fs::read_dir(data_dir.join("pg_tblspc"))? {
        let entry = entry?;
        let target = tablespaces.join(entry.file_name());
        fs::rename(entry.path(), &target)?;
        symlink(&target, entry.path())?;
    }
    Ok(())
}

fn give_all(path: &Path) -> Result<()> {
    give_to_server_user(path)?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give_all(&entry?.path())?;
        }
    }
    Ok(())
}
