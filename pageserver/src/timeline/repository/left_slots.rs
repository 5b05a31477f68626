//! Replication slots that are to go: one that stays at a primary keeps its WAL for ever. `DIR/slots.json`.
//!
//! - A slot is listed, durably, before it is made for an import, and before the timeline that needs it ends to follow, is reset or deleted. It leaves the
//!   list when it is gone, or when a timeline needs it. So none is forgotten, whatever crashes and whichever primary cannot be reached just then.
//! - **Never:** a slot is dropped that a timeline names. One of that name waits on the list; who begins to follow waits until nobody is dropping.
//! - A thread tries again what could not be dropped, less and less often.
//!
//! ```text
//! {"format": 1, "slots": [{"conninfo": "host=... ", "slot": "pageserver_..."}]}
//! ```

use std::collections::HashSet;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use super::slots::{Dropped, try_drop};
use super::{Repository, RepositoryError};
use crate::failpoint::Failpoint;
use crate::replication::one_line;
use crate::sealed_file;
use crate::timeline::metadata::Primary;

/// Name of the file within the data directory.
const FILE_NAME: &str = "slots.json";
/// Format of the file; raised when an older server could misread it.
const FORMAT: u32 = 1;
/// After the first failure, and at most.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3600)];

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SlotsFile {
    format: u32,
    slots: Vec<Primary>,
}

/// The list.
pub(super) struct LeftSlots {
    path: PathBuf,
    file: Mutex<SlotsFile>,
    /// Of imports that are under way, which take care of them themselves.
    held: Mutex<HashSet<String>>,
    /// Held while a slot is being dropped.
    dropping: Mutex<()>,
    thread: Mutex<Option<(Sender<Infallible>, JoinHandle<()>)>>,
}

/// While this lives the slot of an import is left alone.
pub(super) struct HeldSlot<'a> {
    slots: &'a LeftSlots,
    slot: String,
}

impl Drop for HeldSlot<'_> {
    fn drop(&mut self) {
        self.slots.held.lock().remove(&self.slot);
    }
}

impl LeftSlots {
    /// The list in `data_dir`. Errors: unreadable or damaged.
    pub fn load(data_dir: &Path) -> Result<Self, RepositoryError> {
        let path = data_dir.join(FILE_NAME);
        let io = |source| RepositoryError::Io { doing: "read the slots that are to go", path: path.clone(), source };
        let file = match std::fs::read(&path) {
            Ok(bytes) => parse(&bytes).map_err(|message| io(std::io::Error::other(message)))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                SlotsFile { format: FORMAT, slots: Vec::new() }
            }
            Err(error) => return Err(io(error)),
        };
        let (held, dropping, thread) = (Mutex::default(), Mutex::default(), Mutex::default());
        Ok(LeftSlots { path, file: Mutex::new(file), held, dropping, thread })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file again. Err: it is damaged, or says something else than is known.
    pub fn check_file(&self) -> Result<(), String> {
        let known = self.file.lock();
        let found = match std::fs::read(&self.path) {
            Ok(bytes) => parse(&bytes)?.slots,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error.to_string()),
        };
        if found == known.slots { Ok(()) } else { Err("it says something else than the server knows".to_owned()) }
    }

    /// Writes the file again as it is known.
    pub fn write_again(&self) -> Result<(), RepositoryError> {
        let mut file = self.file.lock();
        let known = file.slots.clone();
        self.replace(&mut file, known)
    }

    /// From now on the slot goes, unless a timeline names it. Durable.
    pub fn add(&self, primary: &Primary) -> Result<(), RepositoryError> {
        let mut file = self.file.lock();
        if file.slots.contains(primary) {
            return Ok(());
        }
        let slots = [&file.slots[..], std::slice::from_ref(primary)].concat();
        self.replace(&mut file, slots)
    }

    /// As [`LeftSlots::add`], but nobody drops it while the value lives.
    pub fn hold(&self, primary: &Primary) -> Result<HeldSlot<'_>, RepositoryError> {
        self.held.lock().insert(primary.slot.clone());
        let held = HeldSlot { slots: self, slot: primary.slot.clone() };
        self.add(primary)?;
        Ok(held)
    }

    /// A timeline that is on disk names the slot: it stays. Waits for who is dropping one.
    pub fn keep(&self, primary: &Primary) -> Result<(), RepositoryError> {
        let _dropping = self.dropping.lock();
        self.remove(primary)
    }

    fn remove(&self, primary: &Primary) -> Result<(), RepositoryError> {
        let mut file = self.file.lock();
        let slots: Vec<Primary> = file.slots.iter().filter(|listed| *listed != primary).cloned().collect();
        if slots.len() == file.slots.len() {
            return Ok(());
        }
        self.replace(&mut file, slots)
    }

    fn replace(&self, file: &mut SlotsFile, slots: Vec<Primary>) -> Result<(), RepositoryError> {
        let new = SlotsFile { format: FORMAT, slots };
        let written = sealed_file::write(&self.path, &new, [Failpoint::SlotsBeforeRename, Failpoint::SlotsRenamed]);
        let doing = "write the slots that are to go";
        written.map_err(|source| RepositoryError::Io { doing, path: self.path.clone(), source })?;
        Failpoint::SlotsSaved.pass();
        *file = new;
        Ok(())
    }

    /// Drops a listed slot, if its primary lets us. What came of it, for people.
    pub fn drop_now(&self, primary: &Primary) -> String {
        let _dropping = self.dropping.lock();
        let (slot, server) = (&primary.slot, primary.server());
        match self.drop_listed(primary) {
            Ok(Dropped::Now) => format!("slot `{slot}` dropped at {server}"),
            Ok(Dropped::Before) => format!("slot `{slot}` is not at {server}"),
            Err(reason) => {
                warn!(slot, %server, reason, "a replication slot stays for now");
                format!(
                    "slot `{slot}` stays at {server} and keeps WAL there; it is tried again until it is gone: {reason}"
                )
            }
        }
    }

    /// Requires: `dropping` is locked.
    fn drop_listed(&self, primary: &Primary) -> Result<Dropped, String> {
        let dropped = try_drop(primary).map_err(|error| one_line(&error))?;
        self.remove(primary).map_err(|error| one_line(&error))?;
        Ok(dropped)
    }

    /// Ends the thread.
    pub fn stop(&self) {
        let thread = self.thread.lock().take();
        if let Some((running, thread)) = thread {
            drop(running);
            let _ = thread.join(); // A panic was logged where it happened.
        }
    }
}

fn parse(bytes: &[u8]) -> Result<SlotsFile, String> {
    let file: SlotsFile = sealed_file::parse(bytes)?;
    match file.format {
        FORMAT => Ok(file),
        format => Err(format!("a format that this release does not know. format=`{format}`")),
    }
}

impl Repository {
    /// Starts to drop slots that an earlier run, or a primary that could not be reached, has left.
    pub fn start_dropping_slots(&self) -> Result<(), RepositoryError> {
        let (running, stop) = bounded(0);
        let me = self.me.clone();
        let thread = std::thread::Builder::new().name("slots".to_owned()).spawn(move || run(&me, &stop));
        *self.left_slots.thread.lock() = Some((running, thread.map_err(RepositoryError::Thread)?));
        Ok(())
    }

    /// Tries each slot that is to go. True: none is left that could not be dropped.
    fn drop_left_slots(&self) -> bool {
        let listed = self.left_slots.file.lock().slots.clone();
        listed.iter().all(|primary| {
            let _dropping = self.left_slots.dropping.lock();
            let is_named = |slot: &str| {
                self.timelines()
                    .iter()
                    .any(|timeline| timeline.metadata().primary.as_ref().is_some_and(|primary| primary.slot == slot))
            };
            // In this order: an import's slot is held until its timeline names it.
            if self.left_slots.held.lock().contains(&primary.slot) || is_named(&primary.slot) {
                return true;
            }
            let (slot, server) = (&primary.slot, primary.server());
            match self.left_slots.drop_listed(primary) {
                Ok(_) => info!(slot, %server, "a slot that was left there is gone"),
                Err(reason) => {
                    debug!(slot, %server, reason, "a replication slot stays for now");
                    return false;
                }
            }
            true
        })
    }
}

/// Body of the thread.
fn run(repository: &Weak<Repository>, stop: &Receiver<Infallible>) {
    let [first_pause, longest_pause] = PAUSES;
    let mut pause = first_pause;
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(pause) {
        let Some(repository) = repository.upgrade() else { return };
        pause = if repository.drop_left_slots() { first_pause } else { (pause * 2).min(longest_pause) };
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what is listed stays listed over a restart, and what is kept does not. Method: a directory. With primaries: `tests/tests/branches/following.rs`, prove-crash.

    use super::*;

    fn primary(slot: &str) -> Primary {
        Primary { conninfo: "host=127.0.0.1 port=1".to_owned(), slot: slot.to_owned() }
    }

    #[test]
    fn the_list_is_durable() {
        let dir = tempfile::tempdir().unwrap();
        let slots = LeftSlots::load(dir.path()).unwrap();
        assert_eq!(slots.check_file(), Ok(()));
        slots.keep(&primary("nobody")).unwrap();
        assert!(!slots.path().exists(), "nothing to write");
        let held = slots.hold(&primary("a")).unwrap();
        slots.add(&primary("b")).unwrap();
        slots.add(&primary("b")).unwrap();
        assert!(slots.held.lock().contains("a"));
        drop(held);
        assert!(slots.held.lock().is_empty());
        slots.keep(&primary("a")).unwrap();
        assert!(slots.drop_now(&primary("b")).contains("stays at"));
        let again = LeftSlots::load(dir.path()).unwrap();
        assert_eq!(again.file.lock().slots, [primary("b")]);
        assert_eq!(again.check_file(), Ok(()));
        std::fs::write(again.path(), "{}").unwrap();
        assert!(again.check_file().is_err());
        assert!(LeftSlots::load(dir.path()).is_err());
        again.write_again().unwrap();
        assert_eq!(again.check_file(), Ok(()));
    }
}
