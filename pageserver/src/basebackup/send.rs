//! The archive, entry by entry.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes};
use flate2::Compression;
use flate2::write::GzEncoder;
use keyenc::{Key, Object};
use postgres_ffi::rel::SLRU_PAGES_PER_SEGMENT;
use postgres_ffi::start::{WalPlace, files, history, origins, standby};
use postgres_ffi::{BLCKSZ, BlockNumber, ForkNumber, Lsn, RelTag};

use super::archive::Archive;
use super::page_stream::PageStream;
use super::standby::StandbyWal;
use super::{BackupCounts, BackupError, BackupWal, BaseBackup, config_files, old_wal};
use crate::import::layout::RELSEG_BLOCKS;
use crate::timeline::DatabaseTag;
use crate::wal::history::CLONE_REASON;
use crate::wal::names::{history_file_name, segment_file_name};

impl BaseBackup {
    /// Writes the whole archive. Errors: the receiver does not take it; a page cannot be read or is newer than the backup. Then the archive has no
    /// `pg_control`, and no server starts from it.
    pub fn send(mut self, output: &mut dyn Write) -> Result<BackupCounts, BackupError> {
        if !self.options.gzip {
            return self.send_archive(output).map(|(_, counts)| counts);
        }
        let (encoder, counts) = self.send_archive(GzEncoder::new(output, Compression::fast()))?;
        encoder.finish().map_err(BackupError::Output)?;
        Ok(counts)
    }

    fn send_archive<W: Write>(&mut self, output: W) -> Result<(W, BackupCounts), BackupError> {
        let mut archive = Archive::new(output, u64::try_from(self.time).unwrap_or_default());
        self.send_configuration(&mut archive)?;
        self.send_databases(&mut archive)?;
        let page_count = self.send_pages(&mut archive)?;
        self.send_wal(&mut archive)?;
        archive.file("global/pg_control", &self.control_file.encode())?;
        let file_count = archive.file_count();
        Ok((archive.finish()?, BackupCounts { file_count, page_count }))
    }

    fn send_configuration(&self, archive: &mut Archive<impl Write>) -> Result<(), BackupError> {
        archive.file("PG_VERSION", self.version_text().as_bytes())?;
        for directory in files::directories(self.place.version) {
            archive.directory(directory)?;
        }
        let conf = config_files::postgresql_conf(&self.control_file, self.contents.origins.len());
        archive.file("postgresql.conf", conf.as_bytes())?;
        archive.file("postgresql.auto.conf", b"")?;
        archive.file("pg_hba.conf", config_files::PG_HBA_CONF.as_bytes())?;
        archive.file("pg_ident.conf", config_files::PG_IDENT_CONF.as_bytes())
    }

    fn version_text(&self) -> String {
        format!("{}\n", self.place.version)
    }

    fn send_databases(&self, archive: &mut Archive<impl Write>) -> Result<(), BackupError> {
        let contents = &self.contents;
        for spc_oid in &contents.tablespaces {
            let directory = format!("pg_tblspc/{spc_oid}");
            archive.directory(&directory)?;
            let version = files::tablespace_version_directory(contents.version, contents.catalog_version_no);
            archive.directory(&format!("{directory}/{version}"))?;
        }
        let shared = contents.directory_of(DatabaseTag { spc_oid: postgres_ffi::rel::GLOBALTABLESPACE_OID, db_oid: 0 });
        for database in &contents.databases {
            let directory = contents.directory_of(*database);
            if directory != shared {
                archive.directory(&directory)?;
            }
        }
        for (database, map) in &contents.relation_maps {
            let directory = contents.directory_of(*database);
            if directory != shared {
                archive.file(&format!("{directory}/PG_VERSION"), self.version_text().as_bytes())?;
            }
            archive.file(&format!("{directory}/pg_filenode.map"), map)?;
        }
        Ok(())
    }

    /// SLRUs, prepared transactions, origins, relations.
    fn send_pages(&self, archive: &mut Archive<impl Write>) -> Result<u64, BackupError> {
        let branch_lsn = self.branch_lsn();
        let keys = self.slru_keys().chain(self.fork_keys());
        std::thread::scope(|scope| {
            let mut pages = Pages { stream: PageStream::start(scope, &self.timeline, branch_lsn, keys)?, taken: 0 };
            self.send_slrus(archive, &mut pages)?;
            self.send_transactions(archive)?;
            for (rel, fork, block_count) in self.contents.forks_sent(self.options.no_data) {
                self.send_fork(archive, &mut pages, *rel, *fork, *block_count)?;
            }
            Ok(pages.taken)
        })
    }

    fn slru_keys(&self) -> impl Iterator<Item = Key> {
        self.contents.slrus.iter().flat_map(|(kind, segments)| {
            segments.iter().flat_map(|(segment_no, page_count)| {
                let first = segment_no * SLRU_PAGES_PER_SEGMENT;
                (first..first + page_count).map(|page_no| Key::from(Object::SlruPage { kind: *kind, page_no }))
            })
        })
    }

    fn fork_keys(&self) -> impl Iterator<Item = Key> {
        let forks = self.contents.forks_sent(self.options.no_data);
        forks.flat_map(|(rel, fork, block_count)| (0..*block_count).map(|block_no| Key::block(*rel, *fork, block_no)))
    }

    fn send_slrus(&self, archive: &mut Archive<impl Write>, pages: &mut Pages<'_>) -> Result<(), BackupError> {
        for (kind, segments) in &self.contents.slrus {
            for (segment_no, page_count) in segments {
                let path = files::slru_segment_path(*kind, *segment_no);
                archive.stream(&path, u64::from(*page_count) * BLCKSZ as u64, pages.file(*page_count))?;
            }
        }
        Ok(())
    }

    fn send_transactions(&self, archive: &mut Archive<impl Write>) -> Result<(), BackupError> {
        for (xid, state) in &self.contents.two_phase {
            archive.file(&files::two_phase_path(self.place.version, *xid), state)?;
        }
        if !self.contents.origins.is_empty() {
            archive.file(origins::PATH, &origins::replorigin_checkpoint(self.contents.origins.iter().copied()))?;
        }
        Ok(())
    }

    fn send_fork(
        &self,
        archive: &mut Archive<impl Write>,
        pages: &mut Pages<'_>,
        rel: RelTag,
        fork: ForkNumber,
        block_count: BlockNumber,
    ) -> Result<(), BackupError> {
        let directory = self.contents.directory_of(DatabaseTag { spc_oid: rel.spc_oid, db_oid: rel.db_oid });
        let mut blocks_left = block_count;
        let mut segment_no = 0;
        loop {
            let blocks = blocks_left.min(RELSEG_BLOCKS);
            let path = format!("{directory}/{}", files::relation_file_name(rel, fork, segment_no));
            archive.stream(&path, u64::from(blocks) * BLCKSZ as u64, pages.file(blocks))?;
            blocks_left -= blocks;
            segment_no += 1;
            if blocks_left == 0 {
                return Ok(());
            }
        }
    }

    /// The segment of the checkpoint, the next one if the record runs into it, and the history.
    fn send_wal(&mut self, archive: &mut Archive<impl Write>) -> Result<(), BackupError> {
        let place = self.place;
        let segment_bytes = u64::from(place.segment_bytes);
        let branch_lsn = self.branch_lsn();
        let timeline_id = self.pg_timeline_id();
        let (start, left, old_wal) = match &mut self.wal {
            BackupWal::Made { start, left, old_wal } => (start, left, old_wal),
            BackupWal::Copied(wal) => return send_copied(archive, wal, place),
        };
        let front: Box<dyn Read> = match old_wal.take() {
            Some(old_wal) => Box::new(old_wal.into_segment_front(place)),
            None => Box::new(old_wal::filler(place, left.timeline_id, branch_lsn)),
        };
        let room = segment_bytes - branch_lsn.segment_offset(segment_bytes);
        let (here, next) = start.wal.split_at(start.wal.len().min(room as usize));
        let path = |lsn: Lsn| {
            let name = segment_file_name(timeline_id, lsn.segment_no(segment_bytes), place.segment_bytes);
            format!("pg_wal/{name}")
        };
        archive.stream(&path(branch_lsn), segment_bytes, front.chain(here).chain(io::repeat(0)))?;
        if !next.is_empty() {
            archive.stream(&path(start.end_lsn), segment_bytes, Read::chain(next, io::repeat(0)))?;
        }
        let reason = format!("{CLONE_REASON}{}", self.timeline.metadata().name);
        let content = history::history_content(&left.content, left.timeline_id, branch_lsn, &reason);
        archive.file(&format!("pg_wal/{}", history_file_name(timeline_id)), &content)
    }
}

/// What a standby needs: the segments as they are, the history of their timeline, label and signal.
fn send_copied(archive: &mut Archive<impl Write>, wal: &mut StandbyWal, place: WalPlace) -> Result<(), BackupError> {
    let mut first_name = None;
    for (name, contents) in wal.files(place) {
        archive.stream(&format!("pg_wal/{name}"), place.segment_bytes.into(), contents)?;
        first_name.get_or_insert(name);
    }
    if !wal.history.content.is_empty() {
        archive.file(&format!("pg_wal/{}", history_file_name(wal.start.timeline_id)), &wal.history.content)?;
    }
    archive.file(standby::LABEL_PATH, wal.start.label(&first_name.unwrap_or_default()).as_bytes())?;
    archive.file(standby::SIGNAL_PATH, b"")
}

/// Pages as files.
struct Pages<'a> {
    stream: PageStream<'a>,
    taken: u64,
}

impl<'a> Pages<'a> {
    /// The next `page_count` pages.
    fn file<'b>(&'b mut self, page_count: u32) -> PagesOfFile<'a, 'b> {
        PagesOfFile { pages: self, pages_left: page_count, page: Bytes::new() }
    }
}

struct PagesOfFile<'a, 'b> {
    pages: &'b mut Pages<'a>,
    pages_left: u32,
    page: Bytes,
}

impl Read for PagesOfFile<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.page.is_empty() && self.pages_left > 0 {
            self.page = self.pages.stream.next_page().map_err(io::Error::other)?;
            self.pages_left -= 1;
            self.pages.taken += 1;
        }
        let length = buffer.len().min(self.page.len());
        self.page.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}
