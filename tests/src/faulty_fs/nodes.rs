//! The files and directories that the kernel knows of, by the number that it knows them by.
//!
//! Each is held open as a mere place (`O_PATH`) in the directory below and reached through `/proc/self/fd`: so it stays the same file
//! however it is renamed, linked or removed meanwhile.

use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::OFlag;

/// The number of the root directory, by FUSE's rules.
const ROOT: u64 = 1;

/// One file or directory.
#[derive(Debug)]
pub(super) struct Node {
    place: File,
    /// Below the mount, as it was last called.
    path: Mutex<PathBuf>,
}

impl Node {
    fn open(at: &Path, path: PathBuf) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        let place = OpenOptions::new().read(true).custom_flags(flags.bits()).open(at)?;
        Ok(Node { place, path: Mutex::new(path) })
    }

    /// A path that leads to it, whatever it is called.
    pub fn place(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.place.as_raw_fd()))
    }

    /// The place itself, for calls that take one.
    pub fn place_fd(&self) -> &File {
        &self.place
    }

    pub fn metadata(&self) -> io::Result<Metadata> {
        self.place.metadata()
    }

    /// Its path below the mount.
    pub fn path(&self) -> PathBuf {
        lock(&self.path).clone()
    }

    pub fn set_path(&self, path: PathBuf) {
        *lock(&self.path) = path;
    }
}

/// All nodes that the kernel has been told of and has not forgotten.
#[derive(Debug)]
pub(super) struct Nodes {
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    known: HashMap<u64, Known>,
    by_inode: HashMap<(u64, u64), u64>,
    next: u64,
}

#[derive(Debug)]
struct Known {
    node: Arc<Node>,
    inode: (u64, u64),
    lookups: u64,
}

impl Nodes {
    /// Knows the directory `root` alone.
    pub fn new(root: &Path) -> io::Result<Self> {
        let node = Node::open(root, PathBuf::new())?;
        let inode = inode(&node.metadata()?);
        let known = HashMap::from([(ROOT, Known { node: Arc::new(node), inode, lookups: 1 })]);
        let table = Table { known, by_inode: HashMap::from([(inode, ROOT)]), next: ROOT + 1 };
        Ok(Nodes { table: Mutex::new(table) })
    }

    pub fn get(&self, number: u64) -> io::Result<Arc<Node>> {
        let table = lock(&self.table);
        table.known.get(&number).map(|known| Arc::clone(&known.node)).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The entry `name` of `parent`, which the kernel knows once more from now on: its number and what it is like.
    pub fn look_up(&self, parent: &Node, name: &std::ffi::OsStr) -> io::Result<(u64, Metadata)> {
        let path = parent.path().join(name);
        let node = Node::open(&parent.place().join(name), path.clone())?;
        let metadata = node.metadata()?;
        let inode = inode(&metadata);
        let mut table = lock(&self.table);
        let table = &mut *table;
        let number = *table.by_inode.entry(inode).or_insert_with(|| {
            table.next += 1;
            table.next
        });
        let known = table.known.entry(number).or_insert_with(|| Known { node: Arc::new(node), inode, lookups: 0 });
        known.lookups += 1;
        known.node.set_path(path);
        Ok((number, metadata))
    }

    pub fn forget(&self, number: u64, lookups: u64) {
        let mut table = lock(&self.table);
        let Some(known) = table.known.get_mut(&number) else { return };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups == 0 && number != ROOT {
            let inode = known.inode;
            table.known.remove(&number);
            table.by_inode.remove(&inode);
        }
    }
}

fn inode(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
