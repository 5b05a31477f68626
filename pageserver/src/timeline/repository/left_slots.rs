//! Replication slots that are to go: one that stays at a primary keeps its WAL for ever. `DIR/slots.json`.
//!
//! - A slot is listed, durably, before it is made for an import, and before the timeline that needs it ends to follow, is reset or deleted. It leaves the
//!   list when it is gone, or when a timeline needs it. So none is forgotten, whatever crashes and whichever primary cannot be reached just then.
//! - **Never:** a slot is dropped that a timeline names. Who begins to follow names it first and then waits for who has it in hand; who drops takes it in
//!   hand first and then looks whether a timeline names it.
//! - A thread tries again what could not be dropped, less and less often, and for a week: then the primary is taken to be gone, as a destroyed compute is.
//!
//! ```text
//! {"format": 1, "slots": [{"conninfo": "host=... ", "slot": "pageserver_...", "since_unix_seconds": 1795651200}]}
//! ```

use std::collections::HashSet;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Weak;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use parking_lot::{Condvar, Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use super::leases::now;
use super::slots::{Dropped, try_drop};
use super::{Repository, RepositoryError};
use crate::failpoint::Failpoint;
use crate::replication::one_line;
use crate::sealed_file::{Kept, KeptFile, Sealed};
use crate::timeline::background::Background;
use crate::timeline::metadata::Primary;

/// Name of the file within the data directory.
const FILE_NAME: &str = "slots.json";
/// After the first failure, and at most.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3600)];
/// A primary that could not be reached for so long is gone.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(7 * 86_400);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SlotsFile {
    format: u32,
    slots: Vec<LeftSlot>,
}

impl Default for SlotsFile {
    fn default() -> Self {
        SlotsFile { format: Self::FORMAT, slots: Vec::new() }
    }
}

impl Sealed for SlotsFile {
    const FORMAT: u32 = 1;

    fn format(&self) -> u32 {
        self.format
    }
}

impl Kept for SlotsFile {
    const POINTS: [Failpoint; 3] = [Failpoint::SlotsBeforeRename, Failpoint::SlotsRenamed, Failpoint::SlotsSaved];
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeftSlot {
    conninfo: String,
    slot: String,
    /// It is on the list since then; seconds since 1970.
    since_unix_seconds: u64,
}

impl LeftSlot {
    fn primary(&self) -> Primary {
        Primary { conninfo: self.conninfo.clone(), slot: self.slot.clone() }
    }

    fn is_of(&self, primary: &Primary) -> bool {
        (&self.conninfo, &self.slot) == (&primary.conninfo, &primary.slot)
    }
}

/// The list.
pub(super) struct LeftSlots {
    file: KeptFile<SlotsFile>,
    /// Names of slots that somebody makes, keeps or drops.
    in_hand: Mutex<HashSet<String>>,
    put_down: Condvar,
    thread: Background,
}

/// A slot in somebody's hand: nobody else makes, keeps or drops it.
pub(super) struct InHand<'a> {
    slots: &'a LeftSlots,
    primary: Primary,
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.slots.in_hand.lock().remove(&self.primary.slot);
        self.slots.put_down.notify_all();
    }
}

impl InHand<'_> {
    /// A timeline that is on disk names the slot: it stays.
    pub fn keep(self) -> Result<(), RepositoryError> {
        self.slots.remove(&self.primary)
    }

    /// Drops the slot, if its primary lets us. What came of it, for people.
    pub fn drop_slot(&self) -> String {
        let (slot, server) = (&self.primary.slot, self.primary.server());
        match self.try_drop() {
            Ok(Dropped::Now) => format!("slot `{slot}` dropped at {server}"),
            Ok(Dropped::Before) => format!("slot `{slot}` is not at {server}"),
            Err(reason) => {
                warn!(slot, %server, reason, "a replication slot stays for now");
                format!("slot `{slot}` stays at {server} and keeps WAL there; for a week it is tried again: {reason}")
            }
        }
    }

    fn try_drop(&self) -> Result<Dropped, String> {
        let dropped = try_drop(&self.primary).map_err(|error| one_line(&error))?;
        self.slots.remove(&self.primary).map_err(|error| one_line(&error))?;
        Ok(dropped)
    }
}

impl LeftSlots {
    /// The list in `data_dir`. Errors: unreadable or damaged.
    pub fn load(data_dir: &Path) -> Result<Self, RepositoryError> {
        let path = data_dir.join(FILE_NAME);
        let doing = "read the slots that are to go";
        let file = KeptFile::load(path.clone()).map_err(|source| RepositoryError::Io { doing, path, source })?;
        Ok(LeftSlots { file, in_hand: Mutex::default(), put_down: Condvar::new(), thread: Background::default() })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Reads the file again. Err: it is damaged, or says something else than is known.
    pub fn check_file(&self) -> Result<(), String> {
        self.file.check()
    }

    /// Writes the file again as it is known.
    pub fn write_again(&self) -> Result<(), RepositoryError> {
        self.file.write_again().map_err(|source| self.write_failed(source))
    }

    /// From now on the slot goes, unless a timeline names it. Durable.
    pub fn add(&self, primary: &Primary) -> Result<(), RepositoryError> {
        let mut file = self.file.content();
        let Primary { conninfo, slot } = primary.clone();
        let added = LeftSlot { conninfo, slot, since_unix_seconds: now() };
        // One that is listed already, and was followed meanwhile, is left only now; so is what was not tried as long as the timeline followed another.
        let mut slots = file.slots.clone();
        slots.retain(|listed| !listed.is_of(primary));
        let elsewhere = slots.iter_mut().filter(|listed| listed.slot == added.slot);
        elsewhere.for_each(|listed| listed.since_unix_seconds = added.since_unix_seconds);
        slots.push(added);
        self.replace(&mut file, slots)
    }

    /// Takes the slot in hand; waits for who has it.
    pub fn take(&self, primary: &Primary) -> InHand<'_> {
        let mut in_hand = self.in_hand.lock();
        while !in_hand.insert(primary.slot.clone()) {
            self.put_down.wait(&mut in_hand);
        }
        InHand { slots: self, primary: primary.clone() }
    }

    /// The same, unless somebody has it.
    fn try_take(&self, primary: &Primary) -> Option<InHand<'_>> {
        let is_free = self.in_hand.lock().insert(primary.slot.clone());
        is_free.then(|| InHand { slots: self, primary: primary.clone() })
    }

    /// Where else a slot of that name is to go. As long as a timeline names it, it is not tried: the other primary may be the same one at another address.
    pub fn elsewhere(&self, primary: &Primary) -> Vec<String> {
        let file = self.file.content();
        let is_elsewhere = |left: &&LeftSlot| left.slot == primary.slot && !left.is_of(primary);
        file.slots.iter().filter(is_elsewhere).map(|left| left.primary().server()).collect()
    }

    fn remove(&self, primary: &Primary) -> Result<(), RepositoryError> {
        let mut file = self.file.content();
        let slots: Vec<LeftSlot> = file.slots.iter().filter(|listed| !listed.is_of(primary)).cloned().collect();
        if slots.len() == file.slots.len() {
            return Ok(());
        }
        self.replace(&mut file, slots)
    }

    fn replace(&self, file: &mut MutexGuard<'_, SlotsFile>, slots: Vec<LeftSlot>) -> Result<(), RepositoryError> {
        let new = SlotsFile { slots, ..SlotsFile::default() };
        self.file.replace(file, new).map_err(|source| self.write_failed(source))
    }

    fn write_failed(&self, source: std::io::Error) -> RepositoryError {
        RepositoryError::Io { doing: "write the slots that are to go", path: self.path().to_owned(), source }
    }

    /// Ends the thread.
    pub fn stop(&self) {
        self.thread.stop();
    }
}

impl Repository {
    /// Starts to drop slots that an earlier run, or a primary that could not be reached, has left.
    pub fn start_dropping_slots(&self) -> Result<(), RepositoryError> {
        let me = self.me.clone();
        self.left_slots.thread.start("slots", move |stop| run(&me, &stop)).map_err(RepositoryError::Thread)
    }

    /// Tries each slot that is to go. True: none is left that could not be dropped.
    fn drop_left_slots(&self) -> bool {
        let listed = self.left_slots.file.content().slots.clone();
        let stay = listed.iter().filter(|left| !self.drop_left_slot(left)).count();
        stay == 0
    }

    /// False: it stays for now.
    fn drop_left_slot(&self, left: &LeftSlot) -> bool {
        let primary = left.primary();
        // First in hand, then the look: see the head of the file.
        let Some(in_hand) = self.left_slots.try_take(&primary) else { return true };
        let names_it = |named: &Primary| named.slot == primary.slot;
        if self.timelines().iter().any(|timeline| timeline.metadata().primary.as_ref().is_some_and(names_it)) {
            return true;
        }
        let (slot, server) = (&primary.slot, primary.server());
        let Err(reason) = in_hand.try_drop() else {
            info!(slot, %server, "a slot that was left there is gone");
            return true;
        };
        if now().saturating_sub(left.since_unix_seconds) < GIVEN_UP_AFTER.as_secs() {
            debug!(slot, %server, reason, "a replication slot stays for now");
            return false;
        }
        warn!(slot, %server, reason, "a replication slot could not be dropped for a week: given up. If the server is still there, drop it by hand");
        in_hand.keep().is_ok()
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
    //! Goal: what is listed stays listed over a restart, what is kept does not, and a slot is in one hand at a time. Method: a directory. With primaries:
    //! `tests/tests/branches/following.rs`, prove-crash.

    use super::*;

    fn primary(slot: &str) -> Primary {
        Primary { conninfo: "host=127.0.0.1 port=1".to_owned(), slot: slot.to_owned() }
    }

    fn listed(slots: &LeftSlots) -> Vec<Primary> {
        slots.file.content().slots.iter().map(LeftSlot::primary).collect()
    }

    #[test]
    fn the_list_is_durable() {
        let dir = tempfile::tempdir().unwrap();
        let slots = LeftSlots::load(dir.path()).unwrap();
        assert_eq!(slots.check_file(), Ok(()));
        slots.take(&primary("nobody")).keep().unwrap();
        assert!(!slots.path().exists(), "nothing to write");
        for slot in ["a", "b", "b"] {
            slots.add(&primary(slot)).unwrap();
        }
        slots.take(&primary("a")).keep().unwrap();
        assert!(slots.take(&primary("b")).drop_slot().contains("stays at"));
        let again = LeftSlots::load(dir.path()).unwrap();
        assert_eq!(listed(&again), [primary("b")]);
        assert_eq!(again.check_file(), Ok(()));
        std::fs::write(again.path(), "{}").unwrap();
        assert!(again.check_file().is_err());
        assert_eq!(listed(&LeftSlots::load(dir.path()).unwrap()), [primary("b")], "from the copy");
        std::fs::write(again.path(), "{}").unwrap();
        std::fs::write(again.path().with_extension("json.copy"), "{}").unwrap();
        assert!(LeftSlots::load(dir.path()).is_err());
        again.write_again().unwrap();
        assert_eq!(again.check_file(), Ok(()));
    }

    #[test]
    fn a_slot_that_is_left_once_more_is_left_from_then_on() {
        let dir = tempfile::tempdir().unwrap();
        let slots = LeftSlots::load(dir.path()).unwrap();
        let Primary { conninfo, slot } = primary("a");
        slots.replace(&mut slots.file.content(), vec![LeftSlot { conninfo, slot, since_unix_seconds: 1 }]).unwrap();
        slots.add(&primary("a")).unwrap();
        let listed = slots.file.content().slots.clone();
        assert!(listed.len() == 1 && listed[0].since_unix_seconds > 1, "{listed:?}");
    }

    #[test]
    fn a_slot_that_stays_elsewhere_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let slots = LeftSlots::load(dir.path()).unwrap();
        let elsewhere = Primary { conninfo: "host=127.0.0.2 port=2 user=u".to_owned(), slot: "a".to_owned() };
        [&elsewhere, &primary("a"), &primary("b")].into_iter().for_each(|left| slots.add(left).unwrap());
        assert_eq!(slots.elsewhere(&primary("a")), ["u@127.0.0.2:2"]);
        assert!(slots.elsewhere(&primary("b")).is_empty());
        assert_eq!(listed(&LeftSlots::load(dir.path()).unwrap()), [elsewhere, primary("a"), primary("b")]);
    }

    #[test]
    fn a_slot_is_in_one_hand_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let slots = LeftSlots::load(dir.path()).unwrap();
        let first = slots.take(&primary("a"));
        assert!(slots.try_take(&primary("a")).is_none());
        assert!(slots.try_take(&primary("b")).is_some());
        std::thread::scope(|scope| {
            let second = scope.spawn(|| drop(slots.take(&primary("a"))));
            assert!(!second.is_finished());
            drop(first);
            second.join().unwrap();
        });
        assert!(slots.try_take(&primary("a")).is_some());
    }
}
