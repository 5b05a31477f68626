//! What must hold of a primary before its WAL is taken: cluster, version, `wal_level`, history.

use bytes::Bytes;
use postgres_ffi::{Lsn, PgVersion, TimeLineId};

use super::error::{Divergence, ReceiverError};
use crate::replication::error::SQLSTATE_TOO_MANY_CONNECTIONS;
use crate::replication::{ConnInfo, Connection, Mode, ReplicationError, SystemIdentity};
use crate::wal::history::TimelineHistory;

/// Refuses a primary whose WAL does not describe every change of a page.
pub fn check_wal_level(connection: &mut Connection) -> Result<(), ReceiverError> {
    let wal_level = connection.show("wal_level")?;
    match wal_level.as_str() {
        "replica" | "logical" => Ok(()),
        _ => Err(ReceiverError::WalLevel { wal_level }),
    }
}

/// Refuses a primary whose data checksums were switched on or off, which `pg_checksums` does without a word in the WAL: from then on hint bits are logged, or not any more, and what a
/// record does to a page depends on that.
pub(super) fn check_data_checksums(connection: &mut Connection, expected: bool) -> Result<(), ReceiverError> {
    let found = connection.show("data_checksums")? == "on";
    if found == expected { Ok(()) } else { Err(ReceiverError::DataChecksums { found }) }
}

/// With `wal_level = minimal` a primary cannot have WAL senders and refuses us for their number: asks over an ordinary connection whether that
/// is the reason.
pub fn explain_refused_connection(conninfo: &ConnInfo, error: ReplicationError) -> ReceiverError {
    if error.sqlstate() != Some(SQLSTATE_TOO_MANY_CONNECTIONS) {
        return error.into();
    }
    let asked = Connection::connect(conninfo, Mode::Sql)
        .and_then(|mut connection| Ok((connection.show("wal_level")?, connection.show("max_wal_senders")?)));
    match asked {
        Ok((wal_level, _)) if wal_level == "minimal" => ReceiverError::WalLevel { wal_level },
        Ok((_, senders)) => ReceiverError::Explained {
            explanation: format!("the primary has no WAL sender left for us; max_wal_senders is {senders}"),
            source: error,
        },
        Err(_) => error.into(),
    }
}

/// Refuses another cluster or version.
pub(super) fn check_identity(
    connection: &mut Connection,
    system_id: u64,
    version: PgVersion,
) -> Result<SystemIdentity, ReceiverError> {
    let identity = connection.identify_system()?;
    if identity.system_id != system_id {
        return Err(ReceiverError::OtherCluster { found: identity.system_id, expected: system_id });
    }
    if connection.version() != version {
        return Err(ReceiverError::OtherVersion { found: connection.version(), expected: version });
    }
    Ok(identity)
}

/// The primary's history, as far as it is on another timeline than 1.
pub(super) struct PrimaryHistory {
    pub(super) timeline_id: TimeLineId,
    pub(super) history: TimelineHistory,
    pub(super) content: Bytes,
}

pub(super) fn fetch_history(
    connection: &mut Connection,
    timeline_id: TimeLineId,
) -> Result<PrimaryHistory, ReceiverError> {
    if timeline_id <= 1 {
        return Ok(PrimaryHistory { timeline_id, history: TimelineHistory::default(), content: Bytes::new() });
    }
    let file = connection.timeline_history(timeline_id)?;
    let history = TimelineHistory::parse(timeline_id, &file.content)?;
    Ok(PrimaryHistory { timeline_id, history, content: file.content })
}

/// Refuses a primary whose WAL does not contain ours up to `last_record_lsn`, the end of our last record, on `timeline_id`.
pub(super) fn check_history(
    primary: &PrimaryHistory,
    primary_lsn: Lsn,
    timeline_id: TimeLineId,
    ours: Option<&TimelineHistory>,
    last_record_lsn: Lsn,
) -> Result<(), Divergence> {
    let not_an_ancestor =
        Divergence::NotAnAncestor { timeline_id, primary_timeline_id: primary.timeline_id, last_record_lsn };
    // The same number is no proof: two standbys promoted apart both count one up. How they came there is.
    if ours.is_some_and(|ours| ours.ancestors() != primary.history.before(timeline_id)) {
        return Err(not_an_ancestor);
    }
    if primary.timeline_id == timeline_id {
        if primary_lsn < last_record_lsn {
            return Err(Divergence::Behind { primary_lsn, last_record_lsn });
        }
        return Ok(());
    }
    let switch_lsn = primary.history.left_at(timeline_id).ok_or(not_an_ancestor)?;
    if switch_lsn < last_record_lsn {
        return Err(Divergence::LeftEarlier { timeline_id, switch_lsn, last_record_lsn });
    }
    // Nor one whose origin was a clone that began later.
    let mut left = primary.history.ancestors().iter().filter(|(left_id, _)| timeline_id <= *left_id);
    let began_later =
        left.find(|(left_id, left_lsn)| last_record_lsn < *left_lsn && primary.history.is_left_by_clone(*left_id));
    match began_later {
        Some((_, began_lsn)) => Err(Divergence::BeganLater { began_lsn: *began_lsn, last_record_lsn }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    //! Goal: only a primary that contains what we hold is accepted. Method: one case per way to part.

    use super::*;
    use crate::wal::history::CLONE_REASON;

    fn history(timeline_id: TimeLineId, content: &str) -> PrimaryHistory {
        let history = TimelineHistory::parse(timeline_id, content.as_bytes()).unwrap();
        PrimaryHistory { timeline_id, history, content: Bytes::new() }
    }

    const LAST: Lsn = Lsn::new(0x500);

    #[test]
    fn descendants_are_accepted() {
        let check =
            |primary: PrimaryHistory, timeline_id| check_history(&primary, Lsn::new(0x900), timeline_id, None, LAST);
        assert_eq!(check(history(1, ""), 1), Ok(()));
        assert_eq!(check(history(2, "1\t0/500\tx"), 1), Ok(()));
        assert_eq!(check(history(5, "1\t0/300\tx\n3\t0/600\tx"), 3), Ok(()));
        let ours = TimelineHistory::parse(3, b"1\t0/300\ty").unwrap();
        let primary = history(5, "1\t0/300\tx\n3\t0/600\tx");
        assert_eq!(check_history(&primary, Lsn::new(0x900), 3, Some(&ours), LAST), Ok(()));
    }

    #[test]
    fn a_clone_is_followed_from_where_it_began_on_alone() {
        let check = |content: &str, primary_id, ours| {
            let content = content.replace("cloned", &format!("{CLONE_REASON}main"));
            check_history(&history(primary_id, &content), Lsn::new(0x900), ours, None, LAST)
        };
        assert_eq!(check("1\t0/500\tcloned", 0x1000, 1), Ok(()));
        let began_later = Err(Divergence::BeganLater { began_lsn: Lsn::new(0x508), last_record_lsn: LAST });
        assert_eq!(check("1\t0/508\tcloned", 0x1000, 1), began_later);
        assert_eq!(check("1\t0/508\tcloned\n4096\t0/600\tcloned", 0x1001, 1), began_later);
        assert_eq!(check("1\t0/100\tcloned\n4096\t0/508\tcloned", 0x1001, 0x1000), began_later);
        // A standby of it was promoted.
        assert_eq!(check("1\t0/100\tcloned\n4096\t0/508\tno recovery target specified", 0x1001, 0x1000), Ok(()));
        let later = Err(Divergence::BeganLater { began_lsn: Lsn::new(0x600), last_record_lsn: LAST });
        assert_eq!(check("1\t0/508\tpromoted\n2\t0/600\tcloned", 0x1000, 1), later);
        assert_eq!(check("1\t0/500\tcloned\n4096\t0/600\tcloned", 0x1001, 1), later);
        assert_eq!(check("1\t0/400\tcloned\n4096\t0/500\tcloned", 0x1001, 0x1000), Ok(()));
    }

    #[test]
    fn others_are_refused_with_both_positions() {
        let primary = history(2, "1\t0/4F8\tx");
        let (switch_lsn, last_record_lsn) = (Lsn::new(0x4F8), LAST);
        let left = Divergence::LeftEarlier { timeline_id: 1, switch_lsn, last_record_lsn };
        assert_eq!(check_history(&primary, Lsn::new(0x900), 1, None, LAST), Err(left));
        let text = left.to_string();
        assert!(text.contains("0/4F8") && text.contains("0/500"), "{text}");

        let sideways = check_history(&history(3, "1\t0/400\tx"), Lsn::new(0x900), 2, None, LAST);
        assert!(matches!(sideways, Err(Divergence::NotAnAncestor { .. })));
        let older = check_history(&history(1, ""), Lsn::new(0x900), 2, None, LAST);
        assert!(matches!(older, Err(Divergence::NotAnAncestor { .. })));
        let behind = check_history(&history(1, ""), Lsn::new(0x4F8), 1, None, LAST);
        assert!(matches!(behind, Err(Divergence::Behind { .. })));
    }

    #[test]
    fn the_same_number_reached_elsewhere_is_another_timeline() {
        let ours = TimelineHistory::parse(2, b"1\t0/300\tx").unwrap();
        let twin = history(2, "1\t0/308\tx");
        let refused = check_history(&twin, Lsn::new(0x900), 2, Some(&ours), LAST);
        assert!(matches!(refused, Err(Divergence::NotAnAncestor { .. })));
    }
}
