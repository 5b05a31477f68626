//! The operations of the file system: each asks the faults first, then does the same to the directory below.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenAccMode,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use super::fault::{Effect, Faults, Operation};
use super::nodes::{Node, Nodes};

/// The kernel remembers nothing: names and sizes may change below.
const TTL: Duration = Duration::ZERO;

/// See the module.
#[derive(Debug)]
pub(super) struct PassThrough {
    nodes: Nodes,
    faults: Arc<Faults>,
    files: RwLock<HashMap<u64, Arc<OpenFile>>>,
    directories: RwLock<HashMap<u64, Arc<Listing>>>,
    next_handle: AtomicU64,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    node: Arc<Node>,
}

/// A directory as it was when it was opened.
type Listing = Vec<(u64, FileType, OsString)>;

type Outcome<T> = Result<T, Errno>;

impl PassThrough {
    /// Hands everything through to `backing`.
    pub fn new(backing: &Path, faults: Arc<Faults>) -> io::Result<Self> {
        Ok(PassThrough {
            nodes: Nodes::new(backing)?,
            faults,
            files: RwLock::default(),
            directories: RwLock::default(),
            next_handle: AtomicU64::new(1),
        })
    }

    fn node(&self, number: INodeNo) -> Outcome<Arc<Node>> {
        self.nodes.get(number.0).map_err(errno)
    }

    fn check(&self, operation: Operation, path: &Path) -> Outcome<()> {
        self.faults.check(operation, &path.to_string_lossy())
    }

    fn entry(&self, parent: &Node, name: &OsStr) -> Outcome<FileAttr> {
        let (number, metadata) = self.nodes.look_up(parent, name).map_err(errno)?;
        Ok(attributes(number, &metadata))
    }

    fn attributes_of(&self, number: INodeNo) -> Outcome<FileAttr> {
        let metadata = self.node(number)?.metadata().map_err(errno)?;
        Ok(attributes(number.0, &metadata))
    }

    fn keep_open(&self, file: File, node: Arc<Node>) -> FileHandle {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let open = Arc::new(OpenFile { file, node });
        self.files.write().unwrap_or_else(PoisonError::into_inner).insert(handle, open);
        FileHandle(handle)
    }

    fn open_file(&self, handle: FileHandle) -> Outcome<Arc<OpenFile>> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.get(&handle.0).map(Arc::clone).ok_or(Errno::EBADF)
    }

    fn make(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        flags: i32,
    ) -> Outcome<(FileAttr, FileHandle)> {
        let parent = self.node(parent)?;
        self.check(Operation::Open, &parent.path().join(name))?;
        let at = parent.place().join(name);
        let mut options = access(OpenFlags(flags));
        // Never O_EXCL: the kernel has looked, and who lost a race opens what the other made, or is told by the kernel.
        let file = options.write(true).create(true).truncate(false).open(&at).map_err(errno)?;
        self.own(request, &at, mode)?;
        let attributes = self.entry(&parent, name)?;
        let node = self.node(attributes.ino)?;
        Ok((attributes, self.keep_open(file, node)))
    }

    /// A new entry belongs to who asked for it.
    fn own(&self, request: &Request, at: &Path, mode: u32) -> Outcome<()> {
        chown(at, Some(request.uid()), Some(request.gid())).map_err(errno)?;
        fs::set_permissions(at, Permissions::from_mode(mode & 0o7777)).map_err(errno)
    }

    fn read_bytes(&self, handle: FileHandle, offset: u64, size: u32) -> Outcome<Vec<u8>> {
        let open = self.open_file(handle)?;
        let path = open.node.path();
        let range = offset..offset.saturating_add(u64::from(size));
        let effect = self.faults.effect_on(Operation::Read, &path.to_string_lossy(), |at| range.contains(&at));
        if let Some(Effect::Error(error) | Effect::CutOff { error, .. }) = effect {
            return Err(error);
        }
        let mut bytes = vec![0; size as usize];
        let mut filled = 0;
        while filled < bytes.len() {
            match open.file.read_at(&mut bytes[filled..], offset + filled as u64).map_err(errno)? {
                0 => break,
                count => filled += count,
            }
        }
        bytes.truncate(filled);
        if let Some(Effect::FlipBit { at }) = effect
            && let Some(byte) = usize::try_from(at - offset).ok().and_then(|at| bytes.get_mut(at))
        {
            *byte ^= 1;
        }
        Ok(bytes)
    }

    fn write_bytes(&self, handle: FileHandle, offset: u64, data: &[u8]) -> Outcome<u32> {
        let open = self.open_file(handle)?;
        let path = open.node.path();
        match self.faults.effect_on(Operation::Write, &path.to_string_lossy(), |_| false) {
            Some(Effect::Error(error)) => return Err(error),
            Some(Effect::CutOff { bytes, error }) => {
                open.file.write_all_at(&data[..bytes.min(data.len())], offset).map_err(errno)?;
                return Err(error);
            }
            Some(Effect::FlipBit { .. }) | None => {}
        }
        open.file.write_all_at(data, offset).map_err(errno)?;
        u32::try_from(data.len()).map_err(|_| Errno::EINVAL)
    }

    fn list(&self, number: INodeNo) -> Outcome<FileHandle> {
        let node = self.node(number)?;
        let mut listing = vec![
            (number.0, FileType::Directory, OsString::from(".")),
            (number.0, FileType::Directory, OsString::from("..")),
        ];
        for entry in fs::read_dir(node.place()).map_err(errno)? {
            let entry = entry.map_err(errno)?;
            let metadata = entry.metadata().map_err(errno)?;
            listing.push((metadata.ino(), kind(&metadata), entry.file_name()));
        }
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.directories.write().unwrap_or_else(PoisonError::into_inner).insert(handle, Arc::new(listing));
        Ok(FileHandle(handle))
    }

    fn move_entry(&self, from: (INodeNo, &OsStr), to: (INodeNo, &OsStr), flags: RenameFlags) -> Outcome<()> {
        if !flags.is_empty() {
            return Err(Errno::EINVAL);
        }
        let (from_dir, to_dir) = (self.node(from.0)?, self.node(to.0)?);
        let to_path = to_dir.path().join(to.1);
        self.check(Operation::Rename, &to_path)?;
        fs::rename(from_dir.place().join(from.1), to_dir.place().join(to.1)).map_err(errno)
    }

    fn link_to(&self, number: INodeNo, parent: INodeNo, name: &OsStr) -> Outcome<FileAttr> {
        let (node, parent) = (self.node(number)?, self.node(parent)?);
        self.check(Operation::Link, &parent.path().join(name))?;
        let to = parent.place().join(name);
        nix::unistd::linkat(AT_FDCWD, &node.place(), AT_FDCWD, &to, AtFlags::AT_SYMLINK_FOLLOW)?;
        self.entry(&parent, name)
    }

    fn set_size(&self, number: INodeNo, handle: Option<FileHandle>, size: u64) -> Outcome<()> {
        let node = self.node(number)?;
        self.check(Operation::Truncate, &node.path())?;
        match handle {
            Some(handle) => self.open_file(handle)?.file.set_len(size).map_err(errno),
            None => {
                OpenOptions::new().write(true).open(node.place()).and_then(|file| file.set_len(size)).map_err(errno)
            }
        }
    }
}

fn errno(error: io::Error) -> Errno {
    error
        .raw_os_error()
        .map_or(if error.kind() == io::ErrorKind::NotFound { Errno::ENOENT } else { Errno::EIO }, Errno::from_raw)
}

/// What FUSE calls it.
fn fuse(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error as i32)
}

fn kind(metadata: &Metadata) -> FileType {
    let file_type = metadata.file_type();
    match () {
        () if file_type.is_dir() => FileType::Directory,
        () if file_type.is_symlink() => FileType::Symlink,
        () if file_type.is_socket() => FileType::Socket,
        () if file_type.is_fifo() => FileType::NamedPipe,
        () => FileType::RegularFile,
    }
}

fn attributes(number: u64, metadata: &Metadata) -> FileAttr {
    let time = |seconds: i64, nanos: i64| {
        UNIX_EPOCH + Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanos).unwrap_or(0))
    };
    FileAttr {
        ino: INodeNo(number),
        size: metadata.size(),
        blocks: metadata.blocks(),
        atime: time(metadata.atime(), metadata.atime_nsec()),
        mtime: time(metadata.mtime(), metadata.mtime_nsec()),
        ctime: time(metadata.ctime(), metadata.ctime_nsec()),
        crtime: UNIX_EPOCH,
        kind: kind(metadata),
        perm: (metadata.mode() & 0o7777) as u16,
        nlink: u32::try_from(metadata.nlink()).unwrap_or(u32::MAX),
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// Reading is always allowed to us, whatever the program may do; the kernel has checked its rights.
fn access(flags: OpenFlags) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(flags.acc_mode() != OpenAccMode::O_RDONLY);
    options
}

fn time_spec(time: Option<TimeOrNow>) -> TimeSpec {
    match time {
        None => TimeSpec::UTIME_OMIT,
        Some(TimeOrNow::Now) => TimeSpec::UTIME_NOW,
        Some(TimeOrNow::SpecificTime(time)) => {
            TimeSpec::from_duration(time.duration_since(UNIX_EPOCH).unwrap_or_default())
        }
    }
}

impl Filesystem for PassThrough {
    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.node(parent).and_then(|parent| self.entry(&parent, name)) {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(fuse(error)),
        }
    }

    fn forget(&self, _request: &Request, number: INodeNo, lookups: u64) {
        self.nodes.forget(number.0, lookups);
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes_of(number) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(fuse(error)),
        }
    }

    fn setattr(
        &self,
        _request: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = || {
            let place = self.node(number)?.place();
            if let Some(mode) = mode {
                fs::set_permissions(&place, Permissions::from_mode(mode & 0o7777)).map_err(errno)?;
            }
            if uid.is_some() || gid.is_some() {
                chown(&place, uid, gid).map_err(errno)?;
            }
            if let Some(size) = size {
                self.set_size(number, handle, size)?;
            }
            if atime.is_some() || mtime.is_some() {
                let (atime, mtime) = (time_spec(atime), time_spec(mtime));
                utimensat(AT_FDCWD, &place, &atime, &mtime, UtimensatFlags::FollowSymlink)?;
            }
            self.attributes_of(number)
        };
        match set() {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(fuse(error)),
        }
    }

    fn readlink(&self, _request: &Request, number: INodeNo, reply: ReplyData) {
        // An empty path means the link itself, held open as a place.
        let target = self.node(number).and_then(|node| nix::fcntl::readlinkat(node.place_fd(), ""));
        match target {
            Ok(target) => reply.data(target.as_encoded_bytes()),
            Err(error) => reply.error(fuse(error)),
        }
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let make = || {
            let parent = self.node(parent)?;
            let at = parent.place().join(name);
            std::os::unix::fs::symlink(target, &at).map_err(errno)?;
            std::os::unix::fs::lchown(&at, Some(request.uid()), Some(request.gid())).map_err(errno)?;
            self.entry(&parent, name)
        };
        match make() {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(fuse(error)),
        }
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let make = || {
            let parent = self.node(parent)?;
            let at = parent.place().join(name);
            fs::create_dir(&at).map_err(errno)?;
            self.own(request, &at, mode & !umask)?;
            self.entry(&parent, name)
        };
        match make() {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(fuse(error)),
        }
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove = || {
            let parent = self.node(parent)?;
            self.check(Operation::Unlink, &parent.path().join(name))?;
            fs::remove_file(parent.place().join(name)).map_err(errno)
        };
        answer(remove(), reply);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove = || fs::remove_dir(self.node(parent)?.place().join(name)).map_err(errno);
        answer(remove(), reply);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        answer(self.move_entry((parent, name), (new_parent, new_name), flags), reply);
    }

    fn link(&self, _request: &Request, number: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        match self.link_to(number, new_parent, new_name) {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(fuse(error)),
        }
    }

    fn open(&self, _request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let open = || {
            let node = self.node(number)?;
            self.check(Operation::Open, &node.path())?;
            let file = access(flags).open(node.place()).map_err(errno)?;
            Ok(self.keep_open(file, node))
        };
        match open() {
            Ok(handle) => reply.opened(handle, FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(fuse(error)),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        match self.make(request, parent, name, mode & !umask, flags) {
            Ok((attributes, handle)) => {
                reply.created(&TTL, &attributes, Generation(0), handle, FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(error) => reply.error(fuse(error)),
        }
    }

    fn read(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.read_bytes(handle, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(fuse(error)),
        }
    }

    fn write(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.write_bytes(handle, offset, data) {
            Ok(count) => reply.written(count),
            Err(error) => reply.error(fuse(error)),
        }
    }

    /// `close` of a file: nothing was held back.
    fn flush(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.files.write().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _request: &Request, _number: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let sync = || {
            let open = self.open_file(handle)?;
            self.check(Operation::Fsync, &open.node.path())?;
            let synced = if data_only { open.file.sync_data() } else { open.file.sync_all() };
            synced.map_err(errno)
        };
        answer(sync(), reply);
    }

    fn opendir(&self, _request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.list(number) {
            Ok(handle) => reply.opened(handle, FopenFlags::empty()),
            Err(error) => reply.error(fuse(error)),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let directories = self.directories.read().unwrap_or_else(PoisonError::into_inner);
        let Some(listing) = directories.get(&handle.0).map(Arc::clone) else { return reply.error(fuser::Errno::EBADF) };
        drop(directories);
        let position = usize::try_from(offset).unwrap_or(usize::MAX);
        for (position, (inode, kind, name)) in listing.iter().enumerate().skip(position) {
            if reply.add(INodeNo(*inode), position as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.directories.write().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _request: &Request, number: INodeNo, _handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        let sync = || {
            let node = self.node(number)?;
            self.check(Operation::FsyncDir, &node.path())?;
            File::open(node.place()).and_then(|dir| dir.sync_all()).map_err(errno)
        };
        answer(sync(), reply);
    }

    fn statfs(&self, _request: &Request, number: INodeNo, reply: ReplyStatfs) {
        let below = self.node(number).and_then(|node| nix::sys::statvfs::statvfs(&node.place()));
        match below {
            Ok(stat) => reply.statfs(
                stat.blocks(),
                stat.blocks_free(),
                stat.blocks_available(),
                stat.files(),
                stat.files_free(),
                stat.block_size() as u32,
                stat.name_max() as u32,
                stat.fragment_size() as u32,
            ),
            Err(error) => reply.error(fuse(error)),
        }
    }
}

fn answer(outcome: Outcome<()>, reply: ReplyEmpty) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(fuse(error)),
    }
}
