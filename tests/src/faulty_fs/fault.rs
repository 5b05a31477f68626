//! What goes wrong, and when.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use nix::errno::Errno;

/// What a program asks of the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A file is opened, or made.
    Open,
    /// Bytes are read.
    Read,
    /// Bytes are written.
    Write,
    /// `fsync` or `fdatasync` of a file.
    Fsync,
    /// `fsync` of a directory. The path is the directory's.
    FsyncDir,
    /// A file or directory is renamed. The path is the new one.
    Rename,
    /// A hard link is made. The path is that of the link.
    Link,
    /// A file is removed.
    Unlink,
    /// A file is cut off or made longer without a write.
    Truncate,
}

/// What the program meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The operation does nothing and fails.
    Error(Errno),
    /// Of a write the first so many bytes get through; then it fails. Other operations fail as with [`Effect::Error`].
    CutOff {
        /// Bytes that are written.
        bytes: usize,
        /// What the program is told.
        error: Errno,
    },
    /// Reads that cover this byte of the file see its lowest bit flipped; other reads are not picked.
    FlipBit {
        /// Position in the file, in bytes.
        at: u64,
    },
}

/// Operations to pick, and what becomes of them. Every one that matches, unless told otherwise.
#[derive(Clone, Debug)]
pub struct Fault {
    operation: Operation,
    path_part: String,
    effect: Effect,
    first: u64,
    last: u64,
}

impl Fault {
    /// Every `operation` on a file whose path below the mount contains `path_part`.
    pub fn new(operation: Operation, path_part: &str, effect: Effect) -> Self {
        Fault { operation, path_part: path_part.to_owned(), effect, first: 1, last: u64::MAX }
    }

    /// Only the `n`-th that matches from now on; 1 is the next one.
    pub fn nth(self, n: u64) -> Self {
        Fault { first: n, last: n, ..self }
    }

    /// The `n`-th that matches from now on and all after it.
    pub fn from_nth(self, n: u64) -> Self {
        Fault { first: n, last: u64::MAX, ..self }
    }
}

/// A fault at work, to ask what it has done. Dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct InjectedFault {
    active: Arc<Active>,
}

#[derive(Debug)]
struct Active {
    fault: Fault,
    matched: AtomicU64,
    hits: AtomicU64,
}

impl InjectedFault {
    /// How many operations it has spoilt.
    pub fn hits(&self) -> u64 {
        self.active.hits.load(Ordering::SeqCst)
    }

    /// How many operations matched, spoilt or not.
    pub fn matched(&self) -> u64 {
        self.active.matched.load(Ordering::SeqCst)
    }
}

impl Active {
    fn effect_on(&self, operation: Operation, path: &str, covers: impl Fn(u64) -> bool) -> Option<Effect> {
        let fault = &self.fault;
        if fault.operation != operation || !path.contains(&fault.path_part) {
            return None;
        }
        if let Effect::FlipBit { at } = fault.effect
            && !covers(at)
        {
            return None;
        }
        let n = self.matched.fetch_add(1, Ordering::SeqCst) + 1;
        (fault.first..=fault.last).contains(&n).then(|| {
            self.hits.fetch_add(1, Ordering::SeqCst);
            fault.effect
        })
    }
}

/// All faults of one file system.
#[derive(Debug, Default)]
pub(super) struct Faults {
    active: RwLock<Vec<Arc<Active>>>,
}

impl Faults {
    pub fn add(&self, fault: Fault) -> InjectedFault {
        let active = Arc::new(Active { fault, matched: AtomicU64::new(0), hits: AtomicU64::new(0) });
        self.active.write().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&active));
        InjectedFault { active }
    }

    pub fn clear(&self) {
        self.active.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What becomes of an operation on `path`; `covers` says whether it is about a byte of the file.
    pub fn effect_on(&self, operation: Operation, path: &str, covers: impl Fn(u64) -> bool) -> Option<Effect> {
        let active = self.active.read().unwrap_or_else(PoisonError::into_inner);
        active.iter().find_map(|one| one.effect_on(operation, path, &covers))
    }

    /// The error that an operation ends with, if it does.
    pub fn check(&self, operation: Operation, path: &str) -> Result<(), Errno> {
        match self.effect_on(operation, path, |_| false) {
            Some(Effect::Error(error) | Effect::CutOff { error, .. }) => Err(error),
            Some(Effect::FlipBit { .. }) | None => Ok(()),
        }
    }
}
