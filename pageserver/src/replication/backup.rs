//! BASE_BACKUP: the tablespaces of a running server as tar archives, one after the other.
//!
//! - Up to 14 each archive is a COPY of its own; from 15 on there is one COPY whose messages say where an archive begins.
//! - The end position comes only after the last archive: without [`BaseBackup::finish`] there is no backup.
//! - The server checks page checksums as it reads, where the cluster has them, and fails the backup at its end if some are wrong.

use std::io::{self, Read};
use std::time::Duration;

use bytes::{Buf, Bytes};
use postgres_ffi::{Lsn, Oid, PgVersion, TimeLineId};

use super::connection::Connection;
use super::error::{ReplicationError, protocol};
use super::frames::Body;

/// The backup begins with a checkpoint, which can write for a long time.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(3600);
/// Longest silence between two pieces of a backup.
const DATA_TIMEOUT: Duration = Duration::from_secs(600);
/// What one read of the socket may bring.
const BACKUP_BLOCK_BYTES: usize = 1024 * 1024;

/// What a backup is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupOptions {
    /// Stands in the backup's label file and in the server's log.
    pub label: String,
    /// Do the checkpoint at once instead of spreading it.
    pub fast_checkpoint: bool,
    /// Bound on the server's speed in KiB per second, 32 to 1,048,576.
    pub rate_kib_max: Option<u32>,
}

impl Default for BackupOptions {
    fn default() -> Self {
        BackupOptions { label: "pageserver import".into(), fast_checkpoint: true, rate_kib_max: None }
    }
}

/// One archive of the backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupTablespace {
    /// `None` for the data directory itself.
    pub oid: Option<Oid>,
    /// Where the tablespace lies on the server.
    pub location: Option<String>,
    /// The server's estimate of its size.
    pub size_kib: Option<u64>,
}

/// How the backup ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupEnd {
    /// WAL up to here makes the backup consistent.
    pub end_lsn: Lsn,
    /// PostgreSQL timeline of that position.
    pub timeline_id: TimeLineId,
}

/// A backup that is being received.
pub struct BaseBackup {
    connection: Connection,
    start_lsn: Lsn,
    timeline_id: TimeLineId,
    tablespaces: Vec<BackupTablespace>,
    position: Position,
    bytes_done: u64,
}

enum Position {
    /// Before the archive with this index (up to 14), or anywhere before the next archive's name (from 15 on).
    Between { next_index: usize },
    /// In the archive with this index.
    Within { index: usize },
    /// The next archive has announced itself, and is this one.
    Announced { index: usize },
    /// After the last archive.
    Done,
}

impl Connection {
    /// Starts a backup. Returns after the server's checkpoint.
    pub fn base_backup(mut self, options: &BackupOptions) -> Result<BaseBackup, ReplicationError> {
        let sql = base_backup_sql(self.version(), options)?;
        self.frames.set_block_bytes(BACKUP_BLOCK_BYTES);
        self.frames.set_timeouts(CHECKPOINT_TIMEOUT, self.answer_timeout)?;
        self.send_query(&sql)?;
        let start = self.result_set()?;
        let start = start.first().ok_or_else(|| protocol("a backup without a start position"))?;
        let (start_lsn, timeline_id) = (start.lsn(0)?, start.parsed(1, "timeline id")?);
        self.frames.set_timeouts(DATA_TIMEOUT, self.answer_timeout)?;
        let mut tablespaces = Vec::new();
        for row in self.result_set()? {
            tablespaces.push(BackupTablespace {
                oid: row.text(0).map(|_| row.parsed(0, "tablespace")).transpose()?,
                location: row.text(1).map(str::to_owned),
                size_kib: row.text(2).and_then(|size| size.parse().ok()),
            });
        }
        if tablespaces.iter().filter(|tablespace| tablespace.oid.is_none()).count() != 1 {
            return Err(protocol("a backup needs one data directory among its tablespaces"));
        }
        if self.version() >= PgVersion::V15 {
            self.expect(b'H')?;
        }
        let position = Position::Between { next_index: 0 };
        Ok(BaseBackup { connection: self, start_lsn, timeline_id, tablespaces, position, bytes_done: 0 })
    }

    fn expect(&mut self, tag: u8) -> Result<(), ReplicationError> {
        match self.next_message()?.tag {
            found if found == tag => Ok(()),
            found => Err(protocol(format!("message {:?} in a backup", char::from(found)))),
        }
    }
}

fn base_backup_sql(version: PgVersion, options: &BackupOptions) -> Result<String, ReplicationError> {
    if options.label.len() > 512 || options.label.contains(['\'', '\\', '\0', '\n']) {
        return Err(protocol("the label of a backup must be short and without quotes"));
    }
    let label = &options.label;
    // The WAL is streamed by the receiver, so nothing is waited for and none of it belongs into the archives.
    Ok(if version >= PgVersion::V15 {
        let checkpoint = if options.fast_checkpoint { "fast" } else { "spread" };
        let rate = options.rate_kib_max.map(|rate| format!(", MAX_RATE {rate}")).unwrap_or_default();
        format!(
            "BASE_BACKUP (LABEL '{label}', PROGRESS true, CHECKPOINT '{checkpoint}', WAIT false, WAL false, MANIFEST 'no'{rate})"
        )
    } else {
        let fast = if options.fast_checkpoint { " FAST" } else { "" };
        let rate = options.rate_kib_max.map(|rate| format!(" MAX_RATE {rate}")).unwrap_or_default();
        format!("BASE_BACKUP LABEL '{label}' PROGRESS{fast} NOWAIT{rate}")
    })
}

impl BaseBackup {
    /// The checkpoint's redo position: WAL from here on makes the backup right.
    pub fn start_lsn(&self) -> Lsn {
        self.start_lsn
    }

    /// PostgreSQL timeline of the start position.
    pub fn timeline_id(&self) -> TimeLineId {
        self.timeline_id
    }

    /// What will come, in the server's order.
    pub fn tablespaces(&self) -> &[BackupTablespace] {
        &self.tablespaces
    }

    /// Bytes of archives received so far.
    pub fn bytes_done(&self) -> u64 {
        self.bytes_done
    }

    /// A handle that ends the backup from another thread.
    pub fn interrupt_handle(&self) -> Result<super::Interrupt, ReplicationError> {
        self.connection.interrupt_handle()
    }

    /// Goes on to the next archive; what is left of the one before is skipped. Its index in [`BaseBackup::tablespaces`]; `None` after the last.
    pub fn next_archive(&mut self) -> Result<Option<usize>, ReplicationError> {
        loop {
            match self.position {
                Position::Within { .. } => while self.next_piece()?.is_some() {},
                Position::Announced { index } => {
                    self.position = Position::Within { index };
                    return Ok(Some(index));
                }
                Position::Done => return Ok(None),
                Position::Between { next_index } if self.connection.version() < PgVersion::V15 => {
                    if next_index == self.tablespaces.len() {
                        self.position = Position::Done;
                    } else {
                        self.connection.expect(b'H')?;
                        self.position = Position::Announced { index: next_index };
                    }
                }
                // The first message of the COPY names the first archive.
                Position::Between { .. } => {
                    if self.next_piece()?.is_some() {
                        return Err(protocol("data before the first archive"));
                    }
                }
            }
        }
    }

    /// The next bytes of the current archive; `None` at its end.
    fn next_piece(&mut self) -> Result<Option<Bytes>, ReplicationError> {
        let modern = self.connection.version() >= PgVersion::V15;
        match self.position {
            Position::Within { .. } => {}
            // Only here does a message announce the first archive.
            Position::Between { .. } if modern => {}
            _ => return Ok(None),
        }
        loop {
            let frame = self.connection.next_message()?;
            match frame.tag {
                b'd' if !modern => {
                    self.bytes_done += frame.body.len() as u64;
                    return Ok(Some(frame.body));
                }
                b'd' => {
                    if let Some(piece) = self.modern_piece(frame.body)? {
                        return Ok(Some(piece));
                    }
                    if matches!(self.position, Position::Announced { .. }) {
                        return Ok(None);
                    }
                }
                b'c' => {
                    self.position = match self.position {
                        Position::Within { index } if !modern => Position::Between { next_index: index + 1 },
                        _ => Position::Done,
                    };
                    return Ok(None);
                }
                tag => return Err(protocol(format!("message {:?} in a backup", char::from(tag)))),
            }
        }
    }

    /// PG 15: doc/src/sgml/protocol.sgml, BASE_BACKUP: 'n' new archive, 'd' data, 'p' progress, 'm' manifest.
    fn modern_piece(&mut self, mut message: Bytes) -> Result<Option<Bytes>, ReplicationError> {
        let mut body = Body(&message);
        match body.u8()? {
            b'd' if matches!(self.position, Position::Within { .. }) => {
                message.advance(1);
                self.bytes_done += message.len() as u64;
                Ok(Some(message))
            }
            b'n' => {
                let name = body.text()?;
                let oid = match name.strip_suffix(".tar") {
                    Some("base") => None,
                    Some(oid) => Some(oid.parse::<Oid>().map_err(|_| protocol("an archive without a tablespace"))?),
                    None => return Err(protocol("an archive that is no tar file")),
                };
                let known = self.tablespaces.iter().position(|tablespace| tablespace.oid == oid);
                let index = known.ok_or_else(|| protocol("an archive that was not announced"))?;
                self.position = Position::Announced { index };
                Ok(None)
            }
            b'p' => Ok(None),
            other => Err(protocol(format!("{:?} in a backup", char::from(other)))),
        }
    }

    /// Reads the current archive. Requires: [`BaseBackup::next_archive`] said that there is one.
    pub fn reader(&mut self) -> ArchiveReader<'_> {
        ArchiveReader { backup: self, piece: Bytes::new() }
    }

    /// The end position, and the connection for other use. Requires: all archives were read.
    pub fn finish(mut self) -> Result<(BackupEnd, Connection), ReplicationError> {
        if self.next_archive()?.is_some() {
            return Err(protocol("a backup has more archives"));
        }
        let rows = self.connection.result_set()?;
        let row = rows.first().ok_or_else(|| protocol("a backup without an end position"))?;
        let end = BackupEnd { end_lsn: row.lsn(0)?, timeline_id: row.parsed(1, "timeline id")? };
        self.connection.until_ready()?;
        let answer_timeout = self.connection.answer_timeout;
        self.connection.frames.set_timeouts(answer_timeout, answer_timeout)?;
        Ok((end, self.connection))
    }
}

/// The bytes of one archive. An error of the connection comes as the inner error of an [`io::Error`] of kind `Other`.
pub struct ArchiveReader<'a> {
    backup: &'a mut BaseBackup,
    piece: Bytes,
}

impl Read for ArchiveReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !buffer.is_empty() {
            match self.backup.next_piece().map_err(io::Error::other)? {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let length = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}
