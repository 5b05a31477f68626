//! Archives in files: plain, gzip or zstd; read to their very end, so that one that was cut off is known.
//!
//! - A tar archive ends with 1,024 bytes of zeroes. A file that was cut between two members reads like a whole one, but for those.
//!   PG 14-18: src/backend/backup/basebackup.c (14: replication/basebackup.c), src/bin/pg_basebackup: both end archives so.
//! - Members that describe the next one (long names, extended fields) come from other programs, and are read up to [`DESCRIPTION_BYTES_MAX`].

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tar::{EntryType, PaxExtensions};

use super::ImportError;

/// What an archive ends with, at least.
const END_BYTES: u64 = 1024;
/// Members start at multiples of this.
const BLOCK_BYTES: u64 = 512;
/// Read from the file at once.
const BUFFER_BYTES: usize = 1 << 20;
const GZIP_MAGIC: [u8; 2] = [0x1F, 0x8B];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
/// Longest member that describes the next one.
const DESCRIPTION_BYTES_MAX: u64 = 1 << 20;
const SPARSE: &str = "a sparse file: make it without --sparse";
/// In the name of a sparse file in an archive of POSIX's format, and what names of its extended fields begin with. GNU tar manual, "Storing Sparse Files": PAX formats 0.0 to 1.0.
const POSIX_SPARSE: &str = "GNUSparseFile.";
const POSIX_SPARSE_FIELDS: &str = "GNU.sparse.";
/// Extended fields. POSIX.1-2017, pax, "pax Extended Header".
const PATH_FIELD: &str = "path";
const SIZE_FIELD: &str = "size";
/// Endings of the names that `pg_basebackup` gives, plain first.
const SUFFIXES: [&str; 3] = ["tar", "tar.gz", "tar.zst"];

/// The archive `name` beside others in `dir`, whatever it is compressed with.
pub(super) fn find_archive(dir: &Path, name: &str) -> Option<PathBuf> {
    SUFFIXES.iter().map(|suffix| dir.join(format!("{name}.{suffix}"))).find(|path| path.is_file())
}

/// Told of a file: its path, length and contents.
pub(super) type EachFile<'a> = &'a mut dyn FnMut(&str, u64, &mut dyn Read) -> Result<ControlFlow<()>, ImportError>;

/// Calls `each` with path, length and contents of each file in the archive, until it breaks. `read_bytes` counts what is read of the file on disk.
/// Errors: not an archive, cut off, unreadable; and those of `each`.
pub(super) fn each_file(path: &Path, read_bytes: &Arc<AtomicU64>, each: EachFile<'_>) -> Result<(), ImportError> {
    let failed = |source| ImportError::Archive { archive: path.display().to_string(), source };
    let input = Counted { inner: open(path, read_bytes).map_err(failed)?, count: 0 };
    let mut archive = tar::Archive::new(input);
    let mut members_end = 0;
    let mut description = Description::default();
    for entry in archive.entries().map_err(failed)?.raw(true) {
        let mut entry = entry.map_err(failed)?;
        let length = entry.size();
        let padded = length.checked_next_multiple_of(BLOCK_BYTES).unwrap_or(u64::MAX);
        members_end = entry.raw_file_position().saturating_add(padded);
        let kind = entry.header().entry_type();
        if description.take(kind, &mut entry).map_err(failed)? {
            continue;
        }
        let Description { long_name, fields } = std::mem::take(&mut description);
        let name = long_name.unwrap_or_else(|| entry.path_bytes().into_owned());
        let name = String::from_utf8_lossy(&name).into_owned();
        match kind {
            EntryType::Link => return Err(failed(other_form(&name, "a hard link: make it with --hard-dereference"))),
            EntryType::GNUSparse => return Err(failed(other_form(&name, SPARSE))),
            EntryType::Regular | EntryType::Continuous => {
                if let Some(form) = unread_form(&name, &fields).map_err(failed)? {
                    return Err(failed(other_form(&name, form)));
                }
            }
            _ => continue,
        }
        if each(name.trim_start_matches("./"), length, &mut entry)?.is_break() {
            return Ok(());
        }
    }
    let mut input = archive.into_inner();
    io::copy(&mut input, &mut io::sink()).map_err(failed)?;
    if input.count < members_end.saturating_add(END_BYTES) {
        return Err(ImportError::ArchiveCut { archive: path.display().to_string(), length: input.count });
    }
    Ok(())
}

/// What members in front of a member say of it.
#[derive(Default)]
struct Description {
    long_name: Option<Vec<u8>>,
    /// POSIX's extended fields.
    fields: Vec<u8>,
}

impl Description {
    /// False: this is no such member. Errors: it is longer than [`DESCRIPTION_BYTES_MAX`], or not what it should be.
    fn take(&mut self, kind: EntryType, member: &mut impl Read) -> io::Result<bool> {
        match kind {
            EntryType::GNULongName => {
                let mut name = read_description(member)?;
                name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
                self.long_name = Some(name);
            }
            EntryType::XHeader => {
                self.fields = read_description(member)?;
                for field in PaxExtensions::new(&self.fields) {
                    let field = field?;
                    if field.key_bytes() == PATH_FIELD.as_bytes() {
                        self.long_name = Some(field.value_bytes().to_vec());
                    }
                }
            }
            EntryType::GNULongLink => {} // Of a link, which is not read.
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn read_description(member: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    member.take(DESCRIPTION_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > DESCRIPTION_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the name of a member is longer than 1 MiB"));
    }
    Ok(bytes)
}

/// How a file stands in the archive, if that is not as it is on disk.
fn unread_form(name: &str, fields: &[u8]) -> io::Result<Option<&'static str>> {
    for field in PaxExtensions::new(fields) {
        let field = field?;
        if field.key_bytes().starts_with(POSIX_SPARSE_FIELDS.as_bytes()) {
            return Ok(Some(SPARSE));
        }
        if field.key_bytes() == SIZE_FIELD.as_bytes() {
            return Ok(Some("a file whose length is an extended field: make it with --format=gnu"));
        }
    }
    Ok(name.contains(POSIX_SPARSE).then_some(SPARSE))
}

/// A member that other programs than PostgreSQL's put into an archive, which would be missed if it was passed over.
fn other_form(name: &str, form: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("`{name}` stands in it as {form}"))
}

fn open(path: &Path, read_bytes: &Arc<AtomicU64>) -> io::Result<Box<dyn Read>> {
    let mut magic = Vec::new();
    File::open(path)?.take(ZSTD_MAGIC.len() as u64).read_to_end(&mut magic)?;
    let file = CountedFile { file: File::open(path)?, read_bytes: Arc::clone(read_bytes) };
    let file = BufReader::with_capacity(BUFFER_BYTES, file);
    Ok(match magic {
        magic if magic.starts_with(&GZIP_MAGIC) => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        magic if magic.starts_with(&ZSTD_MAGIC) => Box::new(zstd::Decoder::with_buffer(file)?),
        _ => Box::new(file),
    })
}

/// Counts for somebody who wants to know how far it is.
struct CountedFile {
    file: File,
    read_bytes: Arc<AtomicU64>,
}

impl Read for CountedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.read_bytes.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Counts the archive's own bytes.
struct Counted {
    inner: Box<dyn Read>,
    count: u64,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what is in a whole archive comes, whatever it is compressed with; one that is cut anywhere is an error, at the latest at its end.
    //! Method: a small archive, cut at every byte.

    use std::io::Write;

    use super::*;

    /// The last file ends with zeroes, as the archive does.
    fn archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |name: &str, content: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append_data(&mut header, name, content).unwrap();
        };
        add("./backup_label", b"label");
        add("base/1/2", &[7; 600]);
        add("global/pg_control", &[0; 4096]);
        builder.into_inner().unwrap()
    }

    fn read(path: &Path) -> Result<Vec<(String, u64)>, ImportError> {
        let mut files = Vec::new();
        let count = Arc::new(AtomicU64::new(0));
        each_file(path, &count, &mut |name, length, contents| {
            let read = io::copy(contents, &mut io::sink())
                .map_err(|source| ImportError::Archive { archive: name.to_owned(), source })?;
            // What the sink does: a file has the length that it was announced with.
            if read != length {
                return Err(ImportError::FileCut { file: name.to_owned(), length: read });
            }
            files.push((name.to_owned(), length));
            Ok(ControlFlow::Continue(()))
        })?;
        assert_eq!(count.load(Ordering::Relaxed), std::fs::metadata(path).unwrap().len());
        Ok(files)
    }

    fn expected() -> Vec<(String, u64)> {
        [("backup_label", 5), ("base/1/2", 600), ("global/pg_control", 4096)]
            .map(|(name, length)| (name.to_owned(), length))
            .into()
    }

    fn compressed(archive: &[u8]) -> [Vec<u8>; 3] {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(archive).unwrap();
        [archive.to_vec(), gzip.finish().unwrap(), zstd::encode_all(archive, 1).unwrap()]
    }

    #[test]
    fn whole_archives_are_read_and_cut_ones_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base.tar");
        for bytes in compressed(&archive()) {
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(read(&path).unwrap(), expected());
            for length in (0..bytes.len()).step_by(if bytes.len() > 2000 { 17 } else { 1 }).chain([bytes.len() - 1]) {
                std::fs::write(&path, &bytes[..length]).unwrap();
                let error = read(&path).err().unwrap_or_else(|| panic!("cut at {length} of {}", bytes.len()));
                assert!(matches!(
                    error,
                    ImportError::Archive { .. } | ImportError::ArchiveCut { .. } | ImportError::FileCut { .. }
                ));
            }
        }
        std::fs::write(&path, b"no archive at all, but longer than a block".repeat(30)).unwrap();
        assert!(matches!(read(&path), Err(ImportError::Archive { .. })));
    }

    /// What `tar` makes of the directory `base` in `dir`.
    fn made_by_tar(dir: &Path, arguments: &[&str]) -> PathBuf {
        let path = dir.join("base.tar");
        let mut tar = std::process::Command::new("tar");
        let made = tar.arg("-C").arg(dir).args(arguments).arg("-cf").arg(&path).arg("base").status().unwrap();
        assert!(made.success());
        path
    }

    #[test]
    fn files_in_other_forms_are_not_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        std::fs::create_dir(&base).unwrap();
        std::os::unix::fs::symlink("elsewhere", base.join("link")).unwrap();
        File::create(base.join("sparse")).unwrap().set_len(1 << 20).unwrap();
        let whole = read(&made_by_tar(dir.path(), &[])).unwrap();
        assert_eq!(whole, [("base/sparse".to_owned(), 1 << 20)]);
        for (arguments, text) in [
            (&["--sparse", "--format=gnu"][..], "as a sparse file"),
            (&["--sparse", "--format=posix"], "as a sparse file"),
            (&["--sparse", "--format=posix", "--sparse-version=0.0"], "as a sparse file"),
            (&["--sparse", "--format=posix", "--sparse-version=0.1"], "as a sparse file"),
            (&["--format=gnu"], "as a hard link"),
        ] {
            if text.contains("hard") {
                std::fs::hard_link(base.join("sparse"), base.join("twin")).unwrap();
            }
            match read(&made_by_tar(dir.path(), arguments)) {
                Err(ImportError::Archive { source, .. }) => assert!(source.to_string().contains(text), "{source}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn long_names_are_read_and_endless_ones_refused() {
        let dir = tempfile::tempdir().unwrap();
        let name = format!("base/{}/{}", "d".repeat(120), "f".repeat(120));
        std::fs::create_dir_all(dir.path().join(&name).parent().unwrap()).unwrap();
        std::fs::write(dir.path().join(&name), "content").unwrap();
        std::fs::write(dir.path().join("base/short"), "").unwrap();
        for format in ["--format=gnu", "--format=posix"] {
            let mut files = read(&made_by_tar(dir.path(), &[format])).unwrap();
            files.sort();
            assert_eq!(files, [(name.clone(), 7), ("base/short".to_owned(), 0)], "{format}");
        }
        for (kind, length) in [(EntryType::GNULongName, 2 << 20), (EntryType::XHeader, 1 << 40)] {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_size(length);
            header.set_cksum();
            let path = dir.path().join("endless.tar");
            std::fs::write(&path, header.as_bytes()).unwrap();
            File::options().append(true).open(&path).unwrap().set_len(4 << 20).unwrap();
            match read(&path) {
                Err(ImportError::Archive { source, .. }) => assert!(source.to_string().contains("1 MiB"), "{source}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn archives_are_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find_archive(dir.path(), "base"), None);
        for suffix in SUFFIXES.iter().rev() {
            let path = dir.path().join(format!("base.{suffix}"));
            std::fs::write(&path, b"").unwrap();
            assert_eq!(find_archive(dir.path(), "base"), Some(path));
        }
    }
}
