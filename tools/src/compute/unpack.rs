//! A base backup's tar becomes a data directory, tablespaces beside it.
//!
//! - Nothing is written outside of the compute's directory: a path with anything but plain names in it is refused, and so is every entry that is
//!   neither a file nor a directory, and every file that is there already.
//! - What is in `pg_tblspc/OID` goes to `tablespaces/OID`, and an absolute link stands in its place.
//! - Files are 0600, directories 0700, as PostgreSQL wants them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tar::{Archive, EntryType};

use super::place::Place;

/// Where PostgreSQL keeps links to tablespaces.
const TABLESPACE_LINKS: &str = "pg_tblspc";
/// A write to a file.
const WRITE_BYTES: usize = 256 * 1024;

/// What came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unpacked {
    /// Files.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
}

/// Unpacks `tar` into `place`, whose directory is there and has neither `data/` nor `tablespaces/`. `on_bytes` gets the length of each piece.
///
/// Errors: the tar is damaged, cut off (nothing says so but what is missing: `global/pg_control` comes last), or has what it must not have.
pub fn unpack(tar: impl Read, place: &Place, on_bytes: &mut dyn FnMut(u64)) -> Result<Unpacked> {
    make_dir(&place.data())?;
    make_dir(&place.tablespaces())?;
    let mut unpacked = Unpacked::default();
    let mut archive = Archive::new(tar);
    // Raw: the page server sends no members that describe the next one, which would be read into memory whatever their length.
    for entry in archive.entries().context("read the base backup")?.raw(true) {
        let mut entry = entry.context("read the base backup")?;
        let path = PathBuf::from(entry.path().context("a path in the base backup")?);
        let target = target(place, &path)?;
        match entry.header().entry_type() {
            EntryType::Directory => make_dirs(place.root(), &target)?,
            EntryType::Regular | EntryType::Continuous => {
                make_dirs(place.root(), target.parent().unwrap_or(place.root()))?;
                unpacked.bytes += write_file(&mut entry, &target, on_bytes)?;
                unpacked.files += 1;
            }
            other => bail!(
                "the base backup has something other than files and directories. path=`{}`, type=`{other:?}`",
                path.display()
            ),
        }
    }
    // What follows the tar's end is read as well: the sender may still say that something went wrong.
    io::copy(&mut archive.into_inner(), &mut io::sink()).context("read the end of the base backup")?;
    ensure!(
        place.data().join("global/pg_control").is_file(),
        "the base backup is not complete: it has no control file, which comes last. files=`{}`",
        unpacked.files
    );
    link_tablespaces(place)?;
    Ok(unpacked)
}

/// Where the entry `path` of the tar goes. Errors: it is empty, absolute, or has `..` in it.
fn target(place: &Place, path: &Path) -> Result<PathBuf> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::CurDir => {}
            _ => bail!("the base backup has a path that leaves the data directory. path=`{}`", path.display()),
        }
    }
    let is_oid = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.parse::<u32>().is_ok());
    Ok(match names[..] {
        [links, oid, ..] if links == TABLESPACE_LINKS => {
            ensure!(is_oid(oid), "the base backup has a tablespace that is no number. path=`{}`", path.display());
            place.tablespaces().join(names[1..].iter().collect::<PathBuf>())
        }
        _ => place.data().join(names.iter().collect::<PathBuf>()),
    })
}

/// Makes `dir`, 0700.
fn make_dir(dir: &Path) -> Result<()> {
    DirBuilder::new().mode(0o700).create(dir).with_context(|| format!("create {}", dir.display()))
}

/// Makes `dir`, which is at or below `root`, and what is missing above it.
fn make_dirs(root: &Path, dir: &Path) -> Result<()> {
    assert!(dir.starts_with(root));
    DirBuilder::new().mode(0o700).recursive(true).create(dir).with_context(|| format!("create {}", dir.display()))
}

fn write_file(from: &mut impl Read, target: &Path, on_bytes: &mut dyn FnMut(u64)) -> Result<u64> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target);
    let file = file.with_context(|| format!("create {}", target.display()))?;
    let mut counted = Counted { inner: from, on_bytes };
    let mut out = BufWriter::with_capacity(WRITE_BYTES, file);
    let bytes = io::copy(&mut counted, &mut out).with_context(|| format!("write {}", target.display()))?;
    out.into_inner().map_err(io::IntoInnerError::into_error).with_context(|| format!("write {}", target.display()))?;
    Ok(bytes)
}

struct Counted<'a, R> {
    inner: R,
    on_bytes: &'a mut dyn FnMut(u64),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        (self.on_bytes)(read as u64);
        Ok(read)
    }
}

/// `data/pg_tblspc/OID` becomes a link to `tablespaces/OID`, an absolute one.
fn link_tablespaces(place: &Place) -> Result<()> {
    for entry in fs::read_dir(place.tablespaces()).context("list the tablespaces")? {
        let entry = entry.context("list the tablespaces")?;
        let links = place.data().join(TABLESPACE_LINKS);
        make_dirs(place.root(), &links)?;
        let link = links.join(entry.file_name());
        symlink(entry.path(), &link).with_context(|| format!("link {}", link.display()))?;
    }
    Ok(())
}

/// Makes all files and directories below `dir` durable.
pub fn sync_all(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("list {}", dir.display()))?;
        let kind = entry.file_type().with_context(|| format!("look at {}", entry.path().display()))?;
        if kind.is_dir() {
            sync_all(&entry.path())?;
        } else if kind.is_file() {
            sync(&entry.path())?;
        }
    }
    sync(dir)
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).with_context(|| format!("sync {}", path.display()))
}

#[cfg(test)]
mod tests {
    //! Tars made here, good and hostile.

    use std::os::unix::fs::PermissionsExt;

    use tar::{Builder, Header};

    use super::*;

    struct Tar(Builder<Vec<u8>>);

    impl Tar {
        fn new() -> Self {
            Tar(Builder::new(Vec::new()))
        }

        /// An entry whose path is written as it is: the crate's own functions refuse to make bad ones.
        fn entry(mut self, kind: EntryType, path: &str, content: &[u8]) -> Self {
            let mut header = Header::new_gnu();
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(kind);
            header.set_mode(0o777);
            header.set_size(content.len() as u64);
            if kind.is_symlink() || kind.is_hard_link() {
                header.as_mut_bytes()[157..167].copy_from_slice(b"PG_VERSION");
            }
            header.set_cksum();
            self.0.append(&header, content).expect("a tar in memory");
            self
        }

        fn file(self, path: &str, content: &[u8]) -> Self {
            self.entry(EntryType::Regular, path, content)
        }

        fn bytes(self) -> Vec<u8> {
            self.0.into_inner().expect("a tar in memory")
        }
    }

    fn good() -> Tar {
        Tar::new()
            .file("PG_VERSION", b"15\n")
            .entry(EntryType::Directory, "pg_notify", b"")
            .entry(EntryType::Directory, "pg_tblspc", b"")
            .file("base/5/16384", &[7; 8192])
            .file("pg_tblspc/16400/PG_15_202209061/5/16401", &[8; 8192])
    }

    fn check(tar: &[u8]) -> (tempfile::TempDir, Result<Unpacked>) {
        let dir = tempfile::tempdir().expect("temporary folder");
        let place = Place::new(dir.path(), &"dev".parse().expect("a name"));
        fs::create_dir(place.root()).expect("folder");
        let result = unpack(tar, &place, &mut |_| {});
        (dir, result)
    }

    #[test]
    fn files_and_tablespaces_come_where_they_belong() {
        let (dir, unpacked) = check(&good().file("./global/pg_control", b"c").bytes());
        assert_eq!(unpacked.expect("unpacked"), Unpacked { files: 4, bytes: 3 + 8192 + 8192 + 1 });
        let root = dir.path().join("dev");
        assert_eq!(fs::read(root.join("data/base/5/16384")).expect("read"), [7; 8192]);
        assert!(root.join("data/pg_notify").is_dir());
        let linked = root.join("data/pg_tblspc/16400");
        assert_eq!(fs::read_link(&linked).expect("a link"), root.join("tablespaces/16400"));
        assert_eq!(fs::read(linked.join("PG_15_202209061/5/16401")).expect("read"), [8; 8192]);
        for (path, mode) in
            [("data", 0o700), ("data/base/5", 0o700), ("data/PG_VERSION", 0o600), ("tablespaces/16400", 0o700)]
        {
            assert_eq!(fs::metadata(root.join(path)).expect("there").permissions().mode() & 0o777, mode, "{path}");
        }
        sync_all(&root).expect("synced");
    }

    #[test]
    fn what_leaves_the_directory_or_is_no_file_is_refused() {
        for (tar, text) in [
            (good().file("../outside", b"x"), "leaves the data directory"),
            (good().file("/tmp/outside", b"x"), "leaves the data directory"),
            (good().file("base/../../outside", b"x"), "leaves the data directory"),
            (good().file("pg_tblspc/../../outside", b"x"), "leaves the data directory"),
            (good().file("pg_tblspc/name/x", b"x"), "no number"),
            (good().entry(EntryType::Symlink, "link", b""), "other than files"),
            (good().entry(EntryType::Link, "link", b""), "other than files"),
            (good().entry(EntryType::Fifo, "fifo", b""), "other than files"),
            (good().entry(EntryType::GNULongName, "././@LongLink", b"base/5/16385"), "other than files"),
            (good().entry(EntryType::XHeader, "PaxHeader", b"21 path=base/5/16385\n"), "other than files"),
            (good().file("PG_VERSION", b"16\n"), "create"),
            (good().file("base", b"x"), "create"),
            (good().file("PG_VERSION/x", b"x"), "create"),
            (good(), "not complete"),
        ] {
            let (dir, refused) = check(&tar.file("global/other", b"c").bytes());
            let error = format!("{:#}", refused.expect_err(text));
            assert!(error.contains(text), "{error}");
            assert!(!dir.path().join("outside").exists() && !Path::new("/tmp/outside").exists(), "{text}");
        }
    }

    #[test]
    fn a_tar_that_is_cut_off_is_never_complete() {
        let whole = good().file("global/pg_control", &[9; 8192]).bytes();
        let end = whole.len() - 2 * 512; // Two empty blocks end a tar; PostgreSQL does not miss them.
        for len in (0..end).step_by(509) {
            assert!(check(&whole[..len]).1.is_err(), "{len} of {}", whole.len());
        }
        assert!(check(&whole).1.is_ok());
        let mut damaged = whole;
        damaged[600 + 512] ^= 1; // In the second header.
        assert!(check(&damaged).1.is_err());
    }
}
