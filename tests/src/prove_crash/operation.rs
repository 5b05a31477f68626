//! What is done to the page server's timelines, and what there must be afterwards.
//!
//! - An operation that was acknowledged has happened. One that was not has happened as a whole or not at all.
//! - Everything that is chosen here can be done: a refusal is an error of the course.

use postgres_ffi::Lsn;
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use super::timelines::{Reach, Shown, Timelines};

/// The timeline that follows the primary from the beginning and is never changed.
pub const MAIN: &str = "main";
/// What branches are called that left their ancestor at the end of a record, and those that may have left it within one: once the WAL there is gone
/// from the page server's disk, an LSN is taken as it is. From there on the WAL of the ancestor's primary cannot be read.
const BRANCH: &str = "branch";
const POINT: &str = "point";
/// What imports of the primary are called.
const IMPORT: &str = "import";
/// What imports of a stopped server's directory are called.
pub const FILES: &str = "files";
/// Timelines at once; then some are deleted.
const TIMELINES_MAX: usize = 9;
/// Those that follow the primary, each of which has all of its WAL.
const FOLLOWERS_MAX: usize = 3;
/// WAL that a branch may have to catch up with when it begins to follow the primary.
const FOLLOW_BYTES_MAX: u64 = 32 << 20;
/// Imports at once.
const IMPORTS_MAX: usize = 2;
/// So long that none is over before the course is.
const LEASE_SECONDS: u64 = 86_400;
/// So many at once: the oldest one keeps all WAL from there on.
const LEASES_MAX: usize = 8;

fn is_import(name: &str) -> bool {
    [IMPORT, FILES].iter().any(|what| name.starts_with(what))
}

/// Kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `BRANCH CREATE`
    Branch,
    /// `TIMELINE FOLLOW`
    Follow,
    /// `TIMELINE UNFOLLOW`
    Unfollow,
    /// `BRANCH DELETE` of a branch
    Delete,
    /// The same of one that has versions of its own
    DeleteFollower,
    /// `TIMELINE DELETE` of the only timeline of a tenant
    DeleteImport,
    /// `BRANCH RENAME`
    Rename,
    /// `BRANCH RESET`
    Reset,
    /// `BRANCH RESET` of one that has versions of its own
    ResetFollower,
    /// `BRANCH DETACH`
    Detach,
    /// `LEASE`
    Lease,
    /// `LEASE END`
    EndLease,
    /// `IMPORT` of the primary
    Import,
    /// `IMPORT` of a directory
    ImportFiles,
    /// `BASEBACKUP`
    Backup,
}

/// What is chosen when nothing is wished for; how often is how often it stands here.
const USUAL: &[Kind] = &[
    Kind::Branch,
    Kind::Branch,
    Kind::Branch,
    Kind::Branch,
    Kind::Follow,
    Kind::Follow,
    Kind::Unfollow,
    Kind::Delete,
    Kind::Delete,
    Kind::DeleteFollower,
    Kind::DeleteImport,
    Kind::Rename,
    Kind::Reset,
    Kind::ResetFollower,
    Kind::Detach,
    Kind::Lease,
    Kind::Lease,
    Kind::EndLease,
    Kind::Backup,
];

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new branch of `from`.
    Branch {
        /// The branch.
        name: String,
        /// What it leaves.
        from: String,
        /// Where; else at its last record.
        at: Option<Lsn>,
    },
    /// It follows the primary.
    Follow(String),
    /// It follows nobody.
    Unfollow(String),
    /// It goes.
    Delete(String),
    /// It gets another name.
    Rename {
        /// The name that it has.
        name: String,
        /// The name that it gets.
        new_name: String,
    },
    /// It begins anew.
    Reset {
        /// The branch.
        name: String,
        /// Where; else at its ancestor's last record.
        at: Option<Lsn>,
    },
    /// It needs its ancestor no more.
    Detach(String),
    /// An LSN of `main` is leased.
    Lease(Lsn),
    /// A lease is ended.
    EndLease(u64),
    /// The primary becomes another timeline.
    Import(String),
    /// The directory of a stopped server becomes a timeline.
    ImportFiles(String),
    /// A base backup without relations is taken, for which a PostgreSQL timeline id is given out.
    Backup,
}

/// What a choice depends on.
pub struct Situation<'a> {
    /// The timelines.
    pub timelines: &'a Timelines,
    /// What can be read of them.
    pub reaches: &'a [Reach],
    /// LSNs of which pages are known.
    pub moments: &'a [Lsn],
    /// Leases that were given.
    pub leases: &'a [u64],
    /// No name is taken twice.
    pub next_name: u32,
}

impl Situation<'_> {
    fn branches(&self, is_one: impl Fn(&Shown) -> bool) -> Vec<&String> {
        let all = self.timelines.iter().filter(|(name, shown)| *name != MAIN && is_one(shown));
        all.map(|(name, _)| name).collect()
    }

    /// No other timeline left it.
    fn is_leaf(&self, shown: &Shown) -> bool {
        !self.timelines.values().any(|other| other.ancestor.as_ref().is_some_and(|(id, _)| *id == shown.id))
    }

    fn reach(&self, name: &str) -> Option<&Reach> {
        self.reaches.iter().find(|reach| reach.name == name)
    }

    /// An LSN of which pages are known and that can be read on `name`: the end of a record.
    fn known_lsn(&self, name: &str, rng: &mut SmallRng) -> Option<Lsn> {
        let reach = self.reach(name)?;
        let lsns = reach.first_readable_lsn?..=reach.last_record_lsn;
        let known: Vec<Lsn> = self.moments.iter().copied().filter(|lsn| lsns.contains(lsn)).collect();
        known.choose(rng).copied()
    }

    /// It has not much to catch up with, should it follow the primary.
    fn is_near(&self, name: &str) -> bool {
        let last_record_lsn = |name: &str| self.reach(name).map_or(Lsn::ZERO, |reach| reach.last_record_lsn);
        last_record_lsn(MAIN).saturating_sub(last_record_lsn(name)) < FOLLOW_BYTES_MAX
    }

    /// Any LSN that can be read on `name`.
    fn any_lsn(&self, name: &str, rng: &mut SmallRng) -> Option<Lsn> {
        let reach = self.reach(name)?;
        let (first_lsn, last_lsn) = (reach.first_readable_lsn?, reach.last_record_lsn);
        Some(Lsn::new(rng.random_range(first_lsn.as_u64()..=last_lsn.as_u64())))
    }

    fn new_name(&self, what: &str) -> String {
        format!("{what}-{}", self.next_name)
    }

    /// An operation of the kind `wish`, or one that makes it possible; any without a wish.
    pub fn choose(&self, wish: Option<Kind>, rng: &mut SmallRng) -> Operation {
        let wish = wish.or_else(|| USUAL.choose(rng).copied());
        self.of_kind(wish.unwrap_or(Kind::Branch), rng).unwrap_or_else(|| self.plain_branch())
    }

    /// One that everything can be done with.
    fn plain_branch(&self) -> Operation {
        Operation::Branch { name: self.new_name(BRANCH), from: MAIN.to_owned(), at: None }
    }

    fn branch(&self, rng: &mut SmallRng) -> Operation {
        let is_source = |reach: &&Reach| reach.first_readable_lsn.is_some() && reach.state == "active";
        let sources: Vec<&Reach> = self.reaches.iter().filter(is_source).collect();
        let from = sources.choose(rng).map_or(MAIN, |reach| &reach.name).to_owned();
        let known = self.known_lsn(&from, rng).filter(|_| rng.random_bool(0.6));
        let at = known.or_else(|| self.any_lsn(&from, rng).filter(|_| rng.random_bool(0.5)));
        let is_record_end = known.is_some() || at.is_none() && !from.starts_with(POINT);
        Operation::Branch { name: self.new_name(if is_record_end { BRANCH } else { POINT }), from, at }
    }

    /// `None`: it cannot be done, and a branch would help.
    fn of_kind(&self, kind: Kind, rng: &mut SmallRng) -> Option<Operation> {
        let one = |names: Vec<&String>, rng: &mut SmallRng| names.choose(rng).map(|name| (*name).clone());
        let followers = self.timelines.values().filter(|shown| shown.follows).count();
        // Detached ones and imports, too.
        let any_leaf = |shown: &Shown| self.is_leaf(shown);
        let leaf = |shown: &Shown| shown.ancestor.is_some() && self.is_leaf(shown);
        let following_leaf = |shown: &Shown| leaf(shown) && shown.follows;
        Some(match kind {
            Kind::Branch if self.timelines.len() >= TIMELINES_MAX => {
                Operation::Delete(one(self.branches(any_leaf), rng)?)
            }
            Kind::Branch => self.branch(rng),
            Kind::Follow if followers >= FOLLOWERS_MAX => {
                Operation::Unfollow(one(self.branches(|shown| shown.follows), rng)?)
            }
            Kind::Follow => {
                let mut names = self.branches(|shown| !shown.follows && leaf(shown));
                names.retain(|name| name.starts_with(BRANCH) && self.is_near(name));
                Operation::Follow(one(names, rng)?)
            }
            Kind::Unfollow => match one(self.branches(|shown| shown.follows), rng) {
                Some(name) => Operation::Unfollow(name),
                None => self.of_kind(Kind::Follow, rng)?,
            },
            Kind::Delete => Operation::Delete(one(self.branches(any_leaf), rng)?),
            Kind::DeleteFollower => match one(self.branches(following_leaf), rng) {
                Some(name) => Operation::Delete(name),
                None => self.of_kind(Kind::Follow, rng)?,
            },
            Kind::DeleteImport => {
                let imports = self.timelines.iter().filter(|(name, _)| is_import(name));
                let imports = imports.filter(|(_, shown)| self.is_leaf(shown)).map(|(name, _)| name).collect();
                match one(imports, rng) {
                    Some(name) => Operation::Delete(name),
                    None => Operation::ImportFiles(self.new_name(FILES)),
                }
            }
            Kind::Rename => {
                // What imports are called tells what they are.
                let branches = self.timelines.keys().filter(|name| name.starts_with(BRANCH)).collect();
                Operation::Rename { name: one(branches, rng)?, new_name: self.new_name(BRANCH) }
            }
            Kind::Reset => self.reset(one(self.branches(leaf), rng)?, rng),
            Kind::ResetFollower => match one(self.branches(following_leaf), rng) {
                Some(name) => self.reset(name, rng),
                None => self.of_kind(Kind::Follow, rng)?,
            },
            Kind::Detach => Operation::Detach(one(self.branches(|shown| shown.ancestor.is_some()), rng)?),
            Kind::Lease if self.leases.len() < LEASES_MAX => Operation::Lease(self.any_lsn(MAIN, rng)?),
            Kind::Lease | Kind::EndLease => match self.leases.choose(rng) {
                Some(lease_id) => Operation::EndLease(*lease_id),
                None => Operation::Lease(self.any_lsn(MAIN, rng)?),
            },
            Kind::Import | Kind::ImportFiles => {
                let imports = self.timelines.iter().filter(|(name, _)| is_import(name));
                if imports.count() >= IMPORTS_MAX {
                    return self.of_kind(Kind::DeleteImport, rng);
                }
                match kind {
                    Kind::Import => Operation::Import(self.new_name(IMPORT)),
                    _ => Operation::ImportFiles(self.new_name(FILES)),
                }
            }
            Kind::Backup => Operation::Backup,
        })
    }

    fn reset(&self, name: String, rng: &mut SmallRng) -> Operation {
        let ancestor = self.timelines.get(&name).and_then(|shown| shown.ancestor.clone());
        let is_it = |shown: &&Shown| ancestor.as_ref().is_some_and(|(id, _)| *id == shown.id);
        let ancestor = self.timelines.iter().find(|(_, shown)| is_it(shown)).map(|(name, _)| name.as_str());
        let ancestor = ancestor.unwrap_or(MAIN);
        let known = self.known_lsn(ancestor, rng).filter(|_| rng.random_bool(0.7));
        if name.starts_with(POINT) {
            return Operation::Reset { at: known.or_else(|| self.any_lsn(ancestor, rng)), name };
        }
        if known.is_none() && ancestor.starts_with(POINT) {
            return Operation::Delete(name); // It would begin where no record ends.
        }
        Operation::Reset { name, at: known }
    }
}

impl Operation {
    /// As it goes over the wire. `primary`: its connection string; `directory`: of a stopped server.
    pub fn command(&self, primary: &str, directory: &str) -> String {
        let at = |at: &Option<Lsn>| at.map(|lsn| format!(" AT '{lsn}'")).unwrap_or_default();
        match self {
            Operation::Branch { name, from, at: lsn } => format!("BRANCH CREATE {name} FROM {from}{}", at(lsn)),
            Operation::Follow(name) => format!("TIMELINE FOLLOW {name} FROM '{primary}'"),
            Operation::Unfollow(name) => format!("TIMELINE UNFOLLOW {name}"),
            Operation::Delete(name) => format!("TIMELINE DELETE {name}"),
            Operation::Rename { name, new_name } => format!("BRANCH RENAME {name} TO {new_name}"),
            Operation::Reset { name, at: lsn } => format!("BRANCH RESET {name}{}", at(lsn)),
            Operation::Detach(name) => format!("BRANCH DETACH {name}"),
            Operation::Lease(lsn) => format!("LEASE {MAIN} AT '{lsn}' FOR {LEASE_SECONDS}"),
            Operation::EndLease(lease_id) => format!("LEASE END {lease_id}"),
            Operation::Import(name) => format!("IMPORT {name} FROM '{primary}'"),
            Operation::ImportFiles(name) => format!("IMPORT {name} FROM DIRECTORY '{directory}'"),
            Operation::Backup => format!("BASEBACKUP {MAIN} --no-data"),
        }
    }

    /// True if `now` is what this operation makes of `before`.
    pub fn has_made(&self, before: &Timelines, now: &Timelines) -> bool {
        let mut expected = before.clone();
        let new = |name: &str| now.get(name).filter(|_| !before.contains_key(name)).cloned();
        let changed = match self {
            Operation::Branch { name, .. } => new(name).filter(|shown| shown.ancestor.is_some() && !shown.follows),
            Operation::Import(name) => new(name).filter(|shown| shown.ancestor.is_none() && shown.follows),
            Operation::ImportFiles(name) => new(name).filter(|shown| shown.ancestor.is_none() && !shown.follows),
            Operation::Delete(name) => {
                expected.remove(name);
                None
            }
            Operation::Rename { name, .. } => expected.remove(name),
            Operation::Follow(name) => before.get(name).map(|shown| Shown { follows: true, ..shown.clone() }),
            Operation::Unfollow(name) => before.get(name).map(|shown| Shown { follows: false, ..shown.clone() }),
            Operation::Detach(name) => before.get(name).map(|shown| Shown { ancestor: None, ..shown.clone() }),
            Operation::Reset { name, .. } => before.get(name).map(|shown| Shown {
                follows: false,
                ancestor: now.get(name).and_then(|shown| shown.ancestor.clone()),
                ..shown.clone()
            }),
            Operation::Lease(_) | Operation::EndLease(_) | Operation::Backup => None,
        };
        let name = match self {
            Operation::Rename { new_name, .. } => new_name,
            Operation::Branch { name, .. } | Operation::Reset { name, .. } => name,
            Operation::Follow(name) | Operation::Unfollow(name) | Operation::Detach(name) => name,
            Operation::Import(name) | Operation::ImportFiles(name) => name,
            Operation::Delete(_) | Operation::Lease(_) | Operation::EndLease(_) | Operation::Backup => {
                return expected == *now;
            }
        };
        let Some(changed) = changed else { return false };
        let is_reset = matches!(self, Operation::Reset { .. });
        expected.insert(name.clone(), changed.clone());
        expected == *now && (!is_reset || changed.ancestor.is_some())
    }
}

#[cfg(test)]
mod tests {
    //! Goal: half an operation is seen. Method: each operation, what it makes, and everything that is nearly that.

    use super::*;

    fn shown(id: &str, ancestor: Option<&str>, follows: bool) -> Shown {
        Shown { id: id.to_owned(), ancestor: ancestor.map(|id| (id.to_owned(), Lsn::new(8))), follows }
    }

    fn with(before: &Timelines, name: &str, shown: Option<Shown>) -> Timelines {
        let mut now = before.clone();
        now.remove(name);
        now.extend(shown.map(|shown| (name.to_owned(), shown)));
        now
    }

    #[test]
    fn what_is_not_whole_is_seen() {
        let main = || (MAIN.to_owned(), shown("m", None, true));
        let before: Timelines = [main(), ("b".to_owned(), shown("b", Some("m"), true))].into();
        let cases = [
            (
                Operation::Branch { name: "c".into(), from: "b".into(), at: None },
                with(&before, "c", Some(shown("c", Some("b"), false))),
                vec![with(&before, "c", Some(shown("c", None, false))), with(&before, "b", None)],
            ),
            (
                Operation::Delete("b".into()),
                with(&before, "b", None),
                vec![before.clone(), with(&before, "b", Some(shown("b", Some("m"), false)))],
            ),
            (
                Operation::Reset { name: "b".into(), at: None },
                with(&before, "b", Some(shown("b", Some("m"), false))),
                vec![before.clone(), with(&before, "b", Some(shown("b", None, false))), with(&before, "b", None)],
            ),
            (
                Operation::Detach("b".into()),
                with(&before, "b", Some(shown("b", None, true))),
                vec![before.clone(), with(&before, "b", Some(shown("b", None, false)))],
            ),
            (
                Operation::Rename { name: "b".into(), new_name: "d".into() },
                with(&with(&before, "b", None), "d", Some(shown("b", Some("m"), true))),
                vec![before.clone(), with(&before, "d", Some(shown("b", Some("m"), true))), with(&before, "b", None)],
            ),
            (
                Operation::Unfollow("b".into()),
                with(&before, "b", Some(shown("b", Some("m"), false))),
                vec![before.clone(), with(&before, MAIN, Some(shown("m", None, false)))],
            ),
            (
                Operation::Import("i".into()),
                with(&before, "i", Some(shown("i", None, true))),
                vec![before.clone(), with(&before, "i", Some(shown("i", None, false)))],
            ),
            (Operation::Backup, before.clone(), vec![with(&before, "b", None)]),
        ];
        for (operation, whole, others) in cases {
            assert!(operation.has_made(&before, &whole), "{operation:?}");
            for other in others {
                assert!(!operation.has_made(&before, &other), "{operation:?}: {other:?}");
            }
        }
    }
}
