//! What a pagestream request's two LSNs ask for: refuse, wait, or read, and at which LSN. No I/O: a table of cases tests all of it.

use postgres_ffi::Lsn;

use super::wire::Header;

/// How the timeline stands, as far as this decision needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// End of the last record that is readable.
    pub last_record_lsn: Lsn,
    /// Nothing below is readable, unless leased.
    pub first_readable_lsn: Lsn,
}

/// What to do with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Read at this LSN.
    ReadAt(Lsn),
    /// Wait until `last_record_lsn` has reached this LSN, then read at it.
    WaitThenReadAt(Lsn),
    /// Answer with an error.
    Refuse(Refusal),
}

/// Why a request is refused. The texts stand behind `Bad request: `; clients of the reference system look for the third one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The two contradict each other.
    #[error("request LSN {request_lsn} is before not_modified_since LSN {not_modified_since}")]
    Contradiction {
        /// As requested.
        request_lsn: Lsn,
        /// As requested.
        not_modified_since: Lsn,
    },
    /// LSN 0 is none.
    #[error("invalid LSN(0) in request")]
    Zero,
    /// History below is gone, or was never there.
    #[error(
        "tried to request a page version that was garbage collected. requested at {request_lsn} gc cutoff {first_readable_lsn}"
    )]
    GarbageCollected {
        /// As requested.
        request_lsn: Lsn,
        /// The lowest readable one.
        first_readable_lsn: Lsn,
    },
}

/// The decision, in the reference system's order. `is_leased` is asked only when the answer depends on it.
pub fn decide(header: &Header, standing: Standing, is_leased: impl FnOnce(Lsn) -> bool) -> Decision {
    let Header { request_lsn, not_modified_since, .. } = *header;
    let Standing { last_record_lsn, first_readable_lsn } = standing;
    if request_lsn < not_modified_since {
        return Decision::Refuse(Refusal::Contradiction { request_lsn, not_modified_since });
    }
    if request_lsn == Lsn::ZERO {
        return Decision::Refuse(Refusal::Zero);
    }
    if request_lsn < first_readable_lsn && !is_leased(request_lsn) {
        return Decision::Refuse(Refusal::GarbageCollected { request_lsn, first_readable_lsn });
    }
    if not_modified_since > last_record_lsn {
        // The client says that nothing changed between this LSN and the request's: the page as of here is the page as of there.
        return Decision::WaitThenReadAt(not_modified_since);
    }
    // A request LSN in the future is no reason to wait: the object has not changed since `not_modified_since`, and that has arrived.
    Decision::ReadAt(request_lsn.min(last_record_lsn))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(request_lsn: u64, not_modified_since: u64, leased: bool, expect: Decision) {
        let header = Header {
            request_id: 0,
            request_lsn: Lsn::new(request_lsn),
            not_modified_since: Lsn::new(not_modified_since),
        };
        let standing = Standing { last_record_lsn: Lsn::new(200), first_readable_lsn: Lsn::new(100) };
        assert_eq!(decide(&header, standing, |_| leased), expect, "{header:?} leased={leased}");
    }

    fn gone(request_lsn: u64) -> Decision {
        let (request_lsn, first_readable_lsn) = (Lsn::new(request_lsn), Lsn::new(100));
        Decision::Refuse(Refusal::GarbageCollected { request_lsn, first_readable_lsn })
    }

    #[test]
    fn every_rule_in_its_order() {
        let read_at = |lsn| Decision::ReadAt(Lsn::new(lsn));
        let wait_at = |lsn| Decision::WaitThenReadAt(Lsn::new(lsn));
        let contradiction = |request_lsn, not_modified_since| {
            let (request_lsn, not_modified_since) = (Lsn::new(request_lsn), Lsn::new(not_modified_since));
            Decision::Refuse(Refusal::Contradiction { request_lsn, not_modified_since })
        };
        for (request_lsn, not_modified_since, leased, expect) in [
            // Contradictions come first, whatever else is wrong.
            (149, 150, true, contradiction(149, 150)),
            (0, 1, true, contradiction(0, 1)),
            (50, 51, true, contradiction(50, 51)),
            (0, 0, true, Decision::Refuse(Refusal::Zero)),
            // The horizon: itself is readable, one below is not, unless leased.
            (99, 99, false, gone(99)),
            (99, 0, false, gone(99)),
            (99, 99, true, read_at(99)),
            (100, 100, false, read_at(100)),
            // Waits only for not_modified_since.
            (200, 200, false, read_at(200)),
            (201, 200, false, read_at(200)),
            (201, 201, false, wait_at(201)),
            (300, 250, false, wait_at(250)),
            (u64::MAX, 0, false, read_at(200)),
            (u64::MAX, 200, false, read_at(200)),
            (u64::MAX, 201, false, wait_at(201)),
            (u64::MAX, u64::MAX, false, wait_at(u64::MAX)),
            // A past LSN is read as asked.
            (150, 0, false, read_at(150)),
            (150, 150, false, read_at(150)),
        ] {
            check(request_lsn, not_modified_since, leased, expect);
        }
    }

    #[test]
    fn texts_that_clients_look_for() {
        let Decision::Refuse(refusal) = gone(99) else { panic!("not refused") };
        assert_eq!(
            refusal.to_string(),
            "tried to request a page version that was garbage collected. requested at 0/63 gc cutoff 0/64"
        );
        assert_eq!(Refusal::Zero.to_string(), "invalid LSN(0) in request");
    }
}
