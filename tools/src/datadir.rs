//! The files of a stopped cluster's data directory, by what they are.
//!
//! - Reads only. A file name that follows no rule of PostgreSQL is reported, not skipped.
//! - The control file decides the version, the segment size and whether the directory may be read at all.
//!
//! PG 15: src/common/relpath.c (names), src/backend/storage/smgr/md.c (segments), src/backend/access/transam/slru.c (SLRU file names).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use postgres_ffi::checkpoint::Checkpoint;
use postgres_ffi::control_file::ControlFile;
use postgres_ffi::page::{Page, ZERO_PAGE};
use postgres_ffi::rel::{DEFAULTTABLESPACE_OID, GLOBALTABLESPACE_OID, SLRU_PAGES_PER_SEGMENT};
use postgres_ffi::{BLCKSZ, BlockNumber, ForkNumber, Lsn, Oid, PgVersion, RelTag, SlruKind};

/// Length of the checkpoint record: header 24, data header 2, CheckPoint 88, the same in 14 to 18.
const CHECKPOINT_RECORD_LEN: u64 = 114;
const WAL_PAGE_HEADER_LEN: u64 = 24;
const WAL_SEGMENT_HEADER_LEN: u64 = 40;

/// One fork of one relation, over all its segment files.
#[derive(Debug, Clone)]
pub struct ForkFiles {
    /// Path of segment 0; the others add `.1`, `.2` and so on.
    first_path: PathBuf,
    /// Length of each segment in bytes, in order.
    segment_lens: Vec<u64>,
}

/// A file that we do not compare, and why.
#[derive(Debug, Clone)]
pub struct OtherFile {
    /// Path within the data directory.
    pub path: PathBuf,
    /// Whether it is known to be of no interest, or a surprise.
    pub reason: OtherReason,
}

/// Why a file is not a relation's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OtherReason {
    /// `t<backend>_<number>`: a temporary relation, never in the WAL.
    TemporaryRelation,
    /// `pg_internal.init`: a cache that the server writes anew.
    RelationCache,
    /// `pgsql_tmp`: sort and hash files.
    TemporaryFile,
    /// Nothing that PostgreSQL is known to write here.
    Unknown,
}

/// A data directory whose files were listed.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    /// `global/pg_control`.
    pub control: ControlFile,
    /// Every fork of every relation that is not temporary.
    pub forks: BTreeMap<(RelTag, ForkNumber), ForkFiles>,
    /// `pg_filenode.map` files by (tablespace, database).
    pub relation_maps: BTreeMap<(Oid, Oid), PathBuf>,
    /// What stands in the folders of relations and is none.
    pub others: Vec<OtherFile>,
}

impl DataDir {
    /// Lists the directory. Says so when there is no control file, it is damaged, or of another version than `PG_VERSION`.
    pub fn open(root: &Path) -> Result<Self> {
        let version_path = root.join("PG_VERSION");
        let version: PgVersion = fs::read_to_string(&version_path)
            .with_context(|| format!("read {}", version_path.display()))?
            .trim()
            .parse()?;
        let control_path = root.join("global/pg_control");
        let control_bytes = fs::read(&control_path).with_context(|| format!("read {}", control_path.display()))?;
        let control = ControlFile::decode_as(version, &control_bytes)
            .with_context(|| format!("decode {}", control_path.display()))?;
        let mut dir = DataDir {
            root: root.to_path_buf(),
            control,
            forks: BTreeMap::new(),
            relation_maps: BTreeMap::new(),
            others: Vec::new(),
        };
        dir.scan_database(&root.join("global"), GLOBALTABLESPACE_OID, 0)?;
        dir.scan_tablespace(&root.join("base"), DEFAULTTABLESPACE_OID)?;
        dir.scan_user_tablespaces()?;
        dir.check_segments()?;
        Ok(dir)
    }

    /// Where the WAL ends that a cleanly stopped server wrote: the end of its shutdown checkpoint record.
    pub fn checkpoint_end_lsn(&self) -> Result<Lsn> {
        checkpoint_end_lsn(&self.control)
    }

    /// Relations that are unlogged: they have an init fork.
    pub fn is_unlogged(&self, rel: RelTag) -> bool {
        self.forks.contains_key(&(rel, ForkNumber::Init))
    }

    /// Size of a fork in blocks, `None` when it has no file. A torn last block is an error.
    pub fn fork_blocks(&self, rel: RelTag, fork: ForkNumber) -> Option<BlockNumber> {
        self.forks.get(&(rel, fork)).map(ForkFiles::blocks)
    }

    /// One page; `None` if the fork's file does not reach so far, or cannot be read.
    pub fn read_page(&self, rel: RelTag, fork: ForkNumber, block_no: BlockNumber) -> Option<Box<Page>> {
        self.fork_blocks(rel, fork).filter(|block_count| block_no < *block_count)?;
        let mut page = Box::new(ZERO_PAGE);
        self.read_blocks(rel, fork, block_no, &mut page[..]).ok()?;
        Some(page)
    }

    /// Reads `buffer.len() / BLCKSZ` blocks from `first_block` on. Requires: they exist.
    pub fn read_blocks(
        &self,
        rel: RelTag,
        fork: ForkNumber,
        first_block: BlockNumber,
        buffer: &mut [u8],
    ) -> Result<()> {
        let files = self.forks.get(&(rel, fork)).with_context(|| format!("no file for {rel} {fork}"))?;
        let mut block_no = u64::from(first_block);
        let mut rest = buffer;
        let segment_blocks = u64::from(self.control.relseg_size);
        while !rest.is_empty() {
            let in_segment = (segment_blocks - block_no % segment_blocks) as usize;
            let (now, later) = rest.split_at_mut(rest.len().min(in_segment.saturating_mul(BLCKSZ)));
            let path = files.segment_path(block_no / segment_blocks);
            let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
            file.read_exact_at(now, block_no % segment_blocks * BLCKSZ as u64)
                .with_context(|| format!("read {}", path.display()))?;
            block_no += (now.len() / BLCKSZ) as u64;
            rest = later;
        }
        Ok(())
    }

    /// Segment files of an SLRU: number and contents. A missing folder counts as empty.
    pub fn slru_segments(&self, kind: SlruKind) -> Result<BTreeMap<u32, Vec<u8>>> {
        let mut segments = BTreeMap::new();
        for (name, path) in self.plain_files(kind.directory())? {
            let number =
                u32::from_str_radix(&name, 16).with_context(|| format!("SLRU file name {}", path.display()))?;
            let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            ensure!(
                bytes.len() % BLCKSZ == 0 && bytes.len() <= SLRU_PAGES_PER_SEGMENT as usize * BLCKSZ,
                "SLRU file of an impossible length. path=`{}`, length=`{}`",
                path.display(),
                bytes.len()
            );
            segments.insert(number, bytes);
        }
        Ok(segments)
    }

    /// The relation maps' bytes by (tablespace, database).
    pub fn relation_map_bytes(&self) -> Result<BTreeMap<(Oid, Oid), Vec<u8>>> {
        let read = |path: &PathBuf| fs::read(path).with_context(|| format!("read {}", path.display()));
        self.relation_maps.iter().map(|(address, path)| Ok((*address, read(path)?))).collect()
    }

    /// Files of prepared transactions by full transaction id. Before 17 their names hold its lower half; the epoch follows from the
    /// checkpoint's next one.
    pub fn two_phase_files(&self) -> Result<BTreeMap<u64, Vec<u8>>> {
        let checkpoint = Checkpoint::decode(self.control.version, &self.control.checkpoint_copy)?;
        let mut found = BTreeMap::new();
        for (name, path) in self.plain_files("pg_twophase")? {
            let xid = u64::from_str_radix(&name, 16).with_context(|| format!("file name {}", path.display()))?;
            let xid = match u32::try_from(xid) {
                Ok(xid) if self.control.version < PgVersion::V17 => checkpoint.full_xid(xid),
                _ => xid,
            };
            found.insert(xid, fs::read(&path).with_context(|| format!("read {}", path.display()))?);
        }
        Ok(found)
    }

    fn plain_files(&self, folder: &str) -> Result<Vec<(String, PathBuf)>> {
        let folder = self.root.join(folder);
        if !folder.exists() {
            return Ok(Vec::new());
        }
        let files = entries(&folder)?.into_iter().filter(|(_, path)| path.is_file());
        Ok(files.collect())
    }

    fn scan_user_tablespaces(&mut self) -> Result<()> {
        let links = self.root.join("pg_tblspc");
        let version_folder = format!("PG_{}_{}", self.control.version, self.control.catalog_version_no);
        for (name, path) in entries(&links)? {
            let spc_oid: Oid = name.parse().with_context(|| format!("tablespace link {}", path.display()))?;
            let folder = path.join(&version_folder);
            if folder.exists() {
                self.scan_tablespace(&folder, spc_oid)?;
            }
        }
        Ok(())
    }

    fn scan_tablespace(&mut self, folder: &Path, spc_oid: Oid) -> Result<()> {
        for (name, path) in entries(folder)? {
            match name.parse::<Oid>() {
                Ok(db_oid) if path.is_dir() => self.scan_database(&path, spc_oid, db_oid)?,
                _ => {
                    let reason = match name.as_str() {
                        "pgsql_tmp" => OtherReason::TemporaryFile,
                        _ => OtherReason::Unknown,
                    };
                    self.others.push(OtherFile { path, reason });
                }
            }
        }
        Ok(())
    }

    fn scan_database(&mut self, folder: &Path, spc_oid: Oid, db_oid: Oid) -> Result<()> {
        for (name, path) in entries(folder)? {
            let len = fs::metadata(&path).with_context(|| format!("stat {}", path.display()))?.len();
            match FileName::parse(&name) {
                FileName::Relation { rel_number, fork, segment_no } => {
                    let rel = RelTag { spc_oid, db_oid, rel_number };
                    self.add_segment(rel, fork, segment_no, len, folder)?;
                }
                FileName::RelationMap => drop(self.relation_maps.insert((spc_oid, db_oid), path)),
                FileName::Known => {}
                FileName::Other(reason) => self.others.push(OtherFile { path, reason }),
            }
        }
        Ok(())
    }

    fn add_segment(&mut self, rel: RelTag, fork: ForkNumber, segment_no: u32, len: u64, folder: &Path) -> Result<()> {
        let files = self.forks.entry((rel, fork)).or_insert_with(|| ForkFiles {
            first_path: folder.join(format!("{}{}", rel.rel_number, fork.file_suffix())),
            segment_lens: Vec::new(),
        });
        // 32768 segments of 1 GiB are more than a relation can have with the default segment size.
        let segment_no = usize::try_from(segment_no)?;
        ensure!(segment_no < 1 << 20, "relation segment number out of range. rel=`{rel}`, segment_no=`{segment_no}`");
        if files.segment_lens.len() <= segment_no {
            files.segment_lens.resize(segment_no + 1, 0);
        }
        files.segment_lens[segment_no] = len;
        Ok(())
    }

    /// Every segment is whole blocks, and all but the last are full: what lies behind a short one is out of reach (md.c, mdnblocks).
    fn check_segments(&self) -> Result<()> {
        let full = u64::from(self.control.relseg_size) * BLCKSZ as u64;
        for ((rel, fork), files) in &self.forks {
            let lens = &files.segment_lens;
            if lens.iter().any(|len| len % BLCKSZ as u64 != 0 || *len > full) {
                bail!("relation file of an impossible length. rel=`{rel}`, fork=`{fork}`, lengths=`{lens:?}`");
            }
            // Truncation leaves empty segments behind on purpose.
            let used = lens.iter().rposition(|len| *len > 0).unwrap_or(0);
            if lens.iter().take(used).any(|len| *len != full) {
                bail!(
                    "relation file is short, and a later segment is not empty. rel=`{rel}`, fork=`{fork}`, lengths=`{lens:?}`"
                );
            }
        }
        Ok(())
    }
}

impl ForkFiles {
    /// Size in blocks.
    pub fn blocks(&self) -> BlockNumber {
        let bytes: u64 = self.segment_lens.iter().sum();
        BlockNumber::try_from(bytes / BLCKSZ as u64).unwrap_or(BlockNumber::MAX)
    }

    fn segment_path(&self, segment_no: u64) -> PathBuf {
        match segment_no {
            0 => self.first_path.clone(),
            _ => {
                let mut name = self.first_path.clone().into_os_string();
                name.push(format!(".{segment_no}"));
                name.into()
            }
        }
    }
}

/// What a file in a database's folder is.
#[derive(Debug, PartialEq, Eq)]
enum FileName {
    Relation { rel_number: Oid, fork: ForkNumber, segment_no: u32 },
    RelationMap,
    Known,
    Other(OtherReason),
}

impl FileName {
    fn parse(name: &str) -> Self {
        match name {
            "pg_filenode.map" => return Self::RelationMap,
            "PG_VERSION" | "pg_control" => return Self::Known,
            _ if name.starts_with("pg_internal.init") => return Self::Other(OtherReason::RelationCache),
            "pgsql_tmp" => return Self::Other(OtherReason::TemporaryFile),
            _ => {}
        }
        let temporary = name.strip_prefix('t').and_then(|rest| rest.split_once('_'));
        match (Self::relation(name), temporary) {
            (Some(relation), _) => relation,
            (None, Some((backend, rest))) if is_number(backend) && Self::relation(rest).is_some() => {
                Self::Other(OtherReason::TemporaryRelation)
            }
            _ => Self::Other(OtherReason::Unknown),
        }
    }

    /// `NUMBER[_fork][.SEGMENT]`
    fn relation(name: &str) -> Option<Self> {
        let (stem, segment_no) = match name.split_once('.') {
            Some((stem, segment)) => (stem, number(segment).filter(|no| *no > 0)?),
            None => (name, 0),
        };
        let (digits, fork) = match stem.split_once('_') {
            Some((digits, fork)) => (digits, fork.parse().ok().filter(|fork| *fork != ForkNumber::Main)?),
            None => (stem, ForkNumber::Main),
        };
        Some(Self::Relation { rel_number: number(digits)?, fork, segment_no })
    }
}

fn is_number(digits: &str) -> bool {
    number(digits).is_some()
}

/// A decimal number as PostgreSQL writes it: no sign, no leading zero.
fn number(digits: &str) -> Option<u32> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    plain.then(|| digits.parse().ok()).flatten()
}

/// Name and path of what stands in a folder, sorted by name.
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry.with_context(|| format!("list {}", folder.display()))?;
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    found.sort();
    Ok(found)
}

/// The end of the checkpoint record that `control` names.
pub fn checkpoint_end_lsn(control: &ControlFile) -> Result<Lsn> {
    record_end(control.checkpoint_lsn, CHECKPOINT_RECORD_LEN, u64::from(control.xlog_seg_size))
        .context("checkpoint position is at the end of the 64-bit WAL")
}

/// The end of a record of `len` bytes at `start_lsn`: page headers in its way counted, aligned to 8. `None` past the end of the 64-bit WAL.
fn record_end(start_lsn: Lsn, len: u64, segment_bytes: u64) -> Option<Lsn> {
    let page_bytes = BLCKSZ as u64;
    let mut position = start_lsn;
    let mut rest = len;
    loop {
        let room = page_bytes - position.as_u64() % page_bytes;
        if rest <= room {
            return Some(position.checked_add(rest)?.align_up());
        }
        rest -= room;
        position = position.checked_add(room)?;
        let header = match position.segment_offset(segment_bytes) {
            0 => WAL_SEGMENT_HEADER_LEN,
            _ => WAL_PAGE_HEADER_LEN,
        };
        position = position.checked_add(header)?;
    }
}

#[cfg(test)]
mod tests {
    //! Names and arithmetic; whole directories are compared in `tests/`.

    use super::*;

    #[test]
    fn file_names_are_told_apart() {
        let relation = |rel_number, fork, segment_no| FileName::Relation { rel_number, fork, segment_no };
        for (name, expected) in [
            ("16384", relation(16384, ForkNumber::Main, 0)),
            ("16384.12", relation(16384, ForkNumber::Main, 12)),
            ("16384_vm", relation(16384, ForkNumber::Vm, 0)),
            ("16384_fsm.1", relation(16384, ForkNumber::Fsm, 1)),
            ("16384_init", relation(16384, ForkNumber::Init, 0)),
            ("pg_filenode.map", FileName::RelationMap),
            ("PG_VERSION", FileName::Known),
            ("pg_internal.init.123", FileName::Other(OtherReason::RelationCache)),
            ("t3_16385", FileName::Other(OtherReason::TemporaryRelation)),
            ("t3_16385_fsm", FileName::Other(OtherReason::TemporaryRelation)),
            ("16384_main", FileName::Other(OtherReason::Unknown)),
            ("16384.0", FileName::Other(OtherReason::Unknown)),
            ("016384", FileName::Other(OtherReason::Unknown)),
            ("99999999999", FileName::Other(OtherReason::Unknown)),
            ("16384.bak", FileName::Other(OtherReason::Unknown)),
            ("", FileName::Other(OtherReason::Unknown)),
        ] {
            assert_eq!(FileName::parse(name), expected, "{name}");
        }
    }

    #[test]
    fn a_record_ends_behind_the_page_headers_in_its_way() {
        let segment = 16 << 20;
        let end = |start: u64| record_end(Lsn::new(start), CHECKPOINT_RECORD_LEN, segment).map(Lsn::as_u64);
        // As PostgreSQL reported it: checkpoint at 0/A31D698, minimum recovery ending location 0/A31D710.
        assert_eq!(end(0xA31_D698), Some(0xA31_D710));
        // 14 bytes on the next page, behind its header of 24.
        assert_eq!(end(0x2000 * 3 - 100), Some((0x2000 * 3 + 24 + 14 + 7) & !7));
        // Over a segment's end: 40.
        assert_eq!(end(0x200_0000 - 64), Some((0x200_0000u64 + 40 + 50).next_multiple_of(8)));
        assert_eq!(record_end(Lsn::MAX, 114, segment), None);
    }
}
