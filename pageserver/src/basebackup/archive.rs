//! A tar archive with the rights that PostgreSQL wants: 0700 for directories, 0600 for files.

use std::io::{Read, Write};

use super::BackupError;

/// Writes entries one after the other.
pub(super) struct Archive<W: Write> {
    builder: tar::Builder<W>,
    modified_at: u64,
    file_count: u64,
}

impl<W: Write> Archive<W> {
    /// Every entry was modified at `modified_at`, seconds since 1970.
    pub(super) fn new(output: W, modified_at: u64) -> Self {
        Archive { builder: tar::Builder::new(output), modified_at, file_count: 0 }
    }

    /// Files written so far.
    pub(super) fn file_count(&self) -> u64 {
        self.file_count
    }

    /// An empty directory.
    pub(super) fn directory(&mut self, path: &str) -> Result<(), BackupError> {
        let mut header = self.header(tar::EntryType::Directory, 0o700, 0);
        let path = format!("{path}/");
        self.builder.append_data(&mut header, path, std::io::empty()).map_err(BackupError::from_io)
    }

    /// A file of these bytes.
    pub(super) fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), BackupError> {
        self.stream(path, bytes.len() as u64, bytes)
    }

    /// A file of `length` bytes, which `contents` gives. Errors: it gives another number.
    pub(super) fn stream(&mut self, path: &str, length: u64, contents: impl Read) -> Result<(), BackupError> {
        let mut header = self.header(tar::EntryType::Regular, 0o600, length);
        let mut counted = Counted { inner: contents.take(length), count: 0 };
        self.builder.append_data(&mut header, path, &mut counted).map_err(BackupError::from_io)?;
        assert!(counted.count == length, "a file has the length that its header says");
        self.file_count += 1;
        Ok(())
    }

    /// Ends the archive; the output, with all of it written to it.
    pub(super) fn finish(self) -> Result<W, BackupError> {
        self.builder.into_inner().map_err(BackupError::from_io)
    }

    fn header(&self, entry_type: tar::EntryType, mode: u32, length: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(entry_type);
        header.set_mode(mode);
        header.set_size(length);
        header.set_mtime(self.modified_at);
        header.set_uid(0);
        header.set_gid(0);
        header
    }
}

struct Counted<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count += count as u64;
        Ok(count)
    }
}
