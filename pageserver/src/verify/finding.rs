//! One thing that is wrong.

use std::path::PathBuf;

use postgres_ffi::Lsn;

/// Which part of what a server keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Versions in RocksDB, and RocksDB's own files.
    Store,
    /// Pages as they would be served.
    Pages,
    /// WAL segment files.
    Wal,
    /// The files of timelines, tenants and leases; the configuration.
    Metadata,
}

impl Part {
    /// One word for tables.
    pub fn name(self) -> &'static str {
        match self {
            Part::Store => "store",
            Part::Pages => "pages",
            Part::Wal => "wal",
            Part::Metadata => "metadata",
        }
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The timeline's name; `None`: of the server as a whole, or nobody's.
    pub timeline: Option<String>,
    /// In which part.
    pub part: Part,
    /// Of what: a page, a key, a stretch of keys, a file's content.
    pub object: String,
    /// The version, or the record, as far as known.
    pub lsn: Option<Lsn>,
    /// The file, below the data directory unless it begins with `/`.
    pub file: Option<PathBuf>,
    /// What is wrong.
    pub what: String,
    /// What a person can do.
    pub what_to_do: &'static str,
}

/// What a person can do.
pub(super) mod advice {
    /// A file of the store is damaged.
    pub const RESTORE_STORE: &str = "stop the server and run `pageserver mend`: it keeps all that can be read, and ingests again what our WAL still has; or take a copy of the data directory";
    /// A timeline that could not be opened.
    pub const UNOPENED: &str = "stop the server and run `pageserver mend`: it tells what is left of it; or pagectl timeline delete (branches first), and import its primary anew";
    /// What a mend had to leave out.
    pub const LOST: &str = "each object in it can be read again from its next image on: after a CHECKPOINT on the primary, the first change of a page brings one";
    /// A damaged file has stopped compaction.
    pub const PAUSED: &str = "stop the server and run `pageserver mend`; or delete the timeline whose file is damaged, once what is needed of it is saved, and pagectl repair lets compaction go on";
    /// A version says something that no version says.
    pub const FAULT: &str = "keep the data directory and report it: this was written so; import the cluster anew";
    /// A page cannot be made.
    pub const PAGE: &str = "read it at another LSN; `pageserver mend`, if a file of the store is damaged; pagectl page history shows its versions";
    /// History went faster than pages were read.
    pub const OVERTAKEN: &str = "nothing of it is known to be damaged; verify again with a longer retention (pagectl timeline retention), or a higher rate";
    /// A WAL file is damaged or missing.
    pub const WAL: &str = "pagectl repair takes the segment from the primary, if that still has it; do not restart before: what is not in the store yet comes from this WAL";
    /// Something about the WAL files that no primary sends again.
    pub const WAL_FILES: &str = "look at the disk; before a restart wait until durable_lsn is last_record_lsn in SHOW TIMELINE: what is not in the store yet comes from this WAL";
    /// A file that the next start reads.
    pub const METADATA: &str =
        "do not restart: pagectl repair writes the file and its copy again from what the server still knows";
    /// The configuration.
    pub const CONFIG: &str = "correct the file before the next start";
    /// Versions that nobody can read.
    pub const ORPHANS: &str = "nobody reads them; pagectl repair deletes them";
    /// The server and its files tell different things.
    pub const DISAGREE: &str = "restart the server; it believes the file";
}
