//! One directory of WAL files: what is in it, where a position lies, how files come and go durably.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use postgres_ffi::{Lsn, PgVersion, TimeLineId};

use super::error::{WalFileError, io_error};
use super::history::TimelineHistory;
use super::names::{history_file_name, parse_history_file_name, parse_segment_file_name, segment_file_name};
use crate::failpoint::Failpoint;

/// Files that are being written; a crash leaves them, opening removes them.
const TEMPORARY_SUFFIX: &str = ".tmp";
/// What a file's blocks are counted in, whatever the file system's are. stat(2), st_blocks.
const DISK_BLOCK_BYTES: u64 = 512;

/// Where a timeline's WAL lies and what it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalLayout {
    /// The directory. It holds nothing else.
    pub directory: PathBuf,
    /// The cluster's version.
    pub version: PgVersion,
    /// The cluster's segment size.
    pub segment_bytes: u32,
    /// The cluster's system identifier.
    pub system_id: u64,
}

/// A segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Segment {
    pub(super) segment_no: u64,
    pub(super) timeline_id: TimeLineId,
}

/// A segment file, for those outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentFile {
    /// Counted in segments from the beginning of the WAL.
    pub segment_no: u64,
    /// Its PostgreSQL timeline.
    pub timeline_id: TimeLineId,
    /// Where it begins.
    pub start_lsn: Lsn,
    /// The file.
    pub path: PathBuf,
}

impl WalLayout {
    /// The segment files in order; of several with one number the newest timeline's, which is the one that counts. None where there is no directory.
    pub fn segment_files(&self) -> Result<Vec<SegmentFile>, WalFileError> {
        if !self.directory.exists() {
            return Ok(Vec::new());
        }
        let newest = super::recover::newest_of_each_number(self.segments()?);
        let file = |segment: Segment| SegmentFile {
            segment_no: segment.segment_no,
            timeline_id: segment.timeline_id,
            start_lsn: self.start_of(segment.segment_no),
            path: self.segment_path(segment),
        };
        Ok(newest.into_iter().map(file).collect())
    }

    /// What the files take on disk. One that goes meanwhile takes nothing; nor does a directory that is not there.
    pub fn file_bytes(&self) -> Result<u64, WalFileError> {
        let listed = |source| io_error("list", &self.directory)(source);
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries.map_err(listed)?,
        };
        let mut bytes = 0;
        for entry in entries {
            match entry.map_err(listed)?.metadata() {
                Ok(metadata) => bytes += metadata.blocks() * DISK_BLOCK_BYTES,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(listed(error)),
            }
        }
        Ok(bytes)
    }

    /// Where the segment with this number begins.
    pub fn segment_start_of(&self, segment_no: u64) -> Lsn {
        self.start_of(segment_no)
    }

    /// Makes or replaces a segment file, durably, whole or not at all. Requires: nobody writes to it.
    pub fn replace_segment(
        &self,
        segment_no: u64,
        timeline_id: TimeLineId,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<(), WalFileError> {
        self.write_durably(&self.segment_path(Segment { segment_no, timeline_id }), |file| {
            self.fill_with_zeroes(file)?;
            write(file)
        })
    }

    /// PostgreSQL timelines whose history files are here.
    pub fn history_files(&self) -> Result<Vec<TimeLineId>, WalFileError> {
        let mut found = Vec::new();
        if self.directory.exists() {
            for entry in fs::read_dir(&self.directory).map_err(io_error("list", &self.directory))? {
                let name = entry.map_err(io_error("list", &self.directory))?.file_name();
                found.extend(name.to_str().and_then(parse_history_file_name));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    pub(super) fn segment_no(&self, lsn: Lsn) -> u64 {
        lsn.segment_no(self.segment_bytes.into())
    }

    pub(super) fn segment_offset(&self, lsn: Lsn) -> u64 {
        lsn.segment_offset(self.segment_bytes.into())
    }

    /// Where the segment that holds `lsn` begins.
    pub fn segment_start(&self, lsn: Lsn) -> Lsn {
        self.start_of(self.segment_no(lsn))
    }

    pub(super) fn start_of(&self, segment_no: u64) -> Lsn {
        Lsn::new(segment_no.saturating_mul(self.segment_bytes.into()))
    }

    pub(super) fn segment_path(&self, segment: Segment) -> PathBuf {
        self.directory.join(segment_file_name(segment.timeline_id, segment.segment_no, self.segment_bytes))
    }

    /// All segment files, by number, of one number the oldest timeline first.
    pub(super) fn segments(&self) -> Result<Vec<Segment>, WalFileError> {
        let mut segments = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(io_error("list", &self.directory))? {
            let entry = entry.map_err(io_error("list", &self.directory))?;
            let name = entry.file_name();
            let Some((timeline_id, segment_no)) =
                name.to_str().and_then(|name| parse_segment_file_name(name, self.segment_bytes))
            else {
                continue;
            };
            segments.push(Segment { segment_no, timeline_id });
        }
        segments.sort();
        Ok(segments)
    }

    /// The highest PostgreSQL timeline that a file here is of. `None`: no file here names one, or there is no directory.
    pub fn newest_timeline_id(&self) -> Result<Option<TimeLineId>, WalFileError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("list", &self.directory)(error)),
        };
        let mut newest = None;
        for entry in entries {
            let name = entry.map_err(io_error("list", &self.directory))?.file_name();
            let Some(name) = name.to_str() else { continue };
            let of_segment = parse_segment_file_name(name, self.segment_bytes).map(|(timeline_id, _)| timeline_id);
            newest = newest.max(of_segment).max(parse_history_file_name(name));
        }
        Ok(newest)
    }

    /// The history file of `timeline_id`, if it is here.
    pub fn history(&self, timeline_id: TimeLineId) -> Result<Option<TimelineHistory>, WalFileError> {
        Ok(self.history_file(timeline_id)?.map(|(history, _)| history))
    }

    /// The same with the bytes of the file.
    pub fn history_file(&self, timeline_id: TimeLineId) -> Result<Option<(TimelineHistory, Vec<u8>)>, WalFileError> {
        let path = self.directory.join(history_file_name(timeline_id));
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        match TimelineHistory::parse(timeline_id, &content) {
            Ok(history) => Ok(Some((history, content))),
            Err(source) => Err(WalFileError::History { path, source }),
        }
    }

    /// Makes a history file, durably.
    pub fn write_history(&self, timeline_id: TimeLineId, content: &[u8]) -> Result<(), WalFileError> {
        self.write_durably(&self.directory.join(history_file_name(timeline_id)), |file| file.write_all(content))
    }

    /// Makes a file appear whole or not at all: under another name, fsync, rename, fsync of the directory.
    pub(super) fn write_durably(
        &self,
        path: &Path,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<(), WalFileError> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(TEMPORARY_SUFFIX);
        let temporary = PathBuf::from(temporary);
        let mut file = File::create(&temporary).map_err(io_error("create", &temporary))?;
        write(&mut file).and_then(|()| file.sync_all()).map_err(io_error("write", &temporary))?;
        Failpoint::WalFileBeforeRename.pass();
        fs::rename(&temporary, path).map_err(io_error("rename", &temporary))?;
        Failpoint::WalFileRenamed.pass();
        self.sync_directory()?;
        Failpoint::WalFileDurable.pass();
        Ok(())
    }

    pub(super) fn sync_directory(&self) -> Result<(), WalFileError> {
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(io_error("fsync", &self.directory))
    }

    /// A new segment file of zeroes, durable, with its room on disk reserved: a full disk shows here and not in the middle of a segment.
    pub(super) fn create_segment(&self, segment: Segment) -> Result<File, WalFileError> {
        let path = self.segment_path(segment);
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).read(true).write(true);
        let file = options.open(&path).map_err(io_error("create", &path))?;
        Failpoint::WalSegmentBeforeSync.pass();
        self.fill_with_zeroes(&file).and_then(|()| file.sync_all()).map_err(io_error("create", &path))?;
        self.sync_directory()?;
        Failpoint::WalSegmentMade.pass();
        Ok(file)
    }

    /// Makes the file as long as a segment; what is new reads as zeroes.
    pub(super) fn fill_with_zeroes(&self, file: &File) -> io::Result<()> {
        let length = i64::from(self.segment_bytes);
        match fallocate(file, FallocateFlags::empty(), 0, length) {
            Ok(()) => Ok(()),
            // File systems without reservation.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => file.set_len(self.segment_bytes.into()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn open_segment(&self, segment: Segment) -> Result<File, WalFileError> {
        let path = self.segment_path(segment);
        OpenOptions::new().read(true).write(true).open(&path).map_err(io_error("open", &path))
    }

    pub(super) fn remove_segment(&self, segment: Segment) -> Result<(), WalFileError> {
        let path = self.segment_path(segment);
        Failpoint::WalBeforeRemove.pass();
        fs::remove_file(&path).map_err(io_error("remove", &path))?;
        Failpoint::WalRemoved.pass();
        Ok(())
    }

    /// Removes all files of one PostgreSQL timeline, its history last.
    pub(super) fn remove_timeline(&self, timeline_id: TimeLineId) -> Result<(), WalFileError> {
        for segment in self.segments()?.into_iter().filter(|segment| segment.timeline_id == timeline_id) {
            self.remove_segment(segment)?;
        }
        self.sync_directory()?;
        let path = self.directory.join(history_file_name(timeline_id));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path)(error)),
            _ => self.sync_directory(),
        }
    }

    /// Removes what a crash left half written.
    pub(super) fn remove_temporary_files(&self) -> Result<(), WalFileError> {
        for entry in fs::read_dir(&self.directory).map_err(io_error("list", &self.directory))? {
            let entry = entry.map_err(io_error("list", &self.directory))?;
            if entry.file_name().to_str().is_some_and(|name| name.ends_with(TEMPORARY_SUFFIX)) {
                fs::remove_file(entry.path()).map_err(io_error("remove", &entry.path()))?;
            }
        }
        Ok(())
    }
}
