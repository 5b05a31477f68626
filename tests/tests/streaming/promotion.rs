//! Another server becomes the primary.

use anyhow::{Context, Result};
use pageserver::wal::WalLog;
use pageserver::wal_receiver::{Divergence, ReceiverState};
use postgres_ffi::{Lsn, PgVersion};
use tests::standby::start_standby;
use tests::{Postgres, Stop, TestDir, wait_until};

use super::follower::{Follower, LIMIT, Load, flush_lsn, main_versions};

#[test]
fn a_promotion_is_followed_while_wal_flows() -> Result<()> {
    for version in main_versions() {
        let dir = TestDir::new("promote-live")?;
        let mut primary = Postgres::builder(version).wal_segment_mb(1).start(&dir)?;
        Load::init(&primary)?;
        let mut standby = start_standby(&primary)?;
        // We follow the standby, which follows the primary.
        let mut follower = Follower::prepare(&dir, &primary, &standby.conninfo())?;
        follower.resume(follower.start_lsn)?;
        let load = Load::start(&primary.conninfo(), 4);
        load.wait_for(200)?;
        load.stop();
        primary.stop(Stop::Fast)?;
        standby.promote()?;
        let load = Load::start(&standby.conninfo(), 4);
        load.wait_for(200)?;
        load.stop();
        let end_lsn = follower.catch_up(&standby)?;
        let status = follower.status()?;
        assert_eq!(status.pg_timeline_id, 2);
        assert!(follower.compare(&standby, follower.start_lsn, end_lsn)? > 0);
        let history = follower.config.layout.history(2)?.context("no history file")?;
        assert_eq!(history.ancestors().len(), 1);

        // Again, and our own restart on the second timeline.
        follower.stop()?;
        follower.resume(end_lsn)?;
        standby.execute("CREATE TABLE later AS SELECT generate_series(1, 1000)")?;
        follower.catch_up(&standby)?;
    }
    Ok(())
}

#[test]
fn the_next_host_of_the_list_takes_over() -> Result<()> {
    let dir = TestDir::new("promote-list")?;
    let mut primary = Postgres::builder(PgVersion::V15).wal_segment_mb(1).start(&dir)?;
    Load::init(&primary)?;
    let mut standby = start_standby(&primary)?;
    let conninfo = format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=postgres target_session_attrs=primary",
        primary.port(),
        standby.port()
    );
    let follower = Follower::start(&dir, &primary, &conninfo)?;
    let load = Load::start(&primary.conninfo(), 2);
    load.wait_for(100)?;
    load.stop();
    // A clean stop sends everything to both.
    primary.stop(Stop::Fast)?;
    standby.promote()?;
    let load = Load::start(&standby.conninfo(), 2);
    load.wait_for(100)?;
    load.stop();
    let end_lsn = follower.catch_up(&standby)?;
    assert!(follower.compare(&standby, follower.start_lsn, end_lsn)? > 0);
    assert_eq!(follower.status()?.pg_timeline_id, 2);
    Ok(())
}

#[test]
fn a_server_that_left_before_our_last_record_is_refused_with_both_positions() -> Result<()> {
    let dir = TestDir::new("promote-diverged")?;
    let mut primary = Postgres::builder(PgVersion::V15).wal_segment_mb(1).start(&dir)?;
    let mut standby = start_standby(&primary)?;
    let mut follower = Follower::start(&dir, &primary, &primary.conninfo())?;
    let known_lsn = follower.catch_up(&primary)?;
    wait_until("the standby", LIMIT, || Ok(standby.current_lsn()? >= known_lsn))?;
    // The standby hears no more of the primary; we do.
    standby.execute("ALTER SYSTEM SET primary_conninfo = ''; ")?;
    standby.restart(Stop::Fast)?;
    primary.execute("CREATE TABLE only_here AS SELECT generate_series(1, 1000)")?;
    let last_lsn = follower.catch_up(&primary)?;
    primary.kill()?;
    standby.promote()?;
    standby.execute("CREATE TABLE only_there AS SELECT generate_series(1, 5000)")?;
    flush_lsn(&standby)?;
    follower.stop()?;
    // Whatever the primary has written by itself until it was killed.
    let end_lsn = WalLog::open(follower.config.layout.clone(), Lsn::ZERO)?.context("no WAL")?.written_lsn();
    follower.config.conninfo = standby.conninfo().parse()?;
    follower.resume(last_lsn)?;
    let status = follower.wait_for_state("the refusal", |state| matches!(state, ReceiverState::Diverged { .. }))?;
    let ReceiverState::Diverged { divergence: Divergence::LeftEarlier { timeline_id, switch_lsn, last_record_lsn } } =
        status.state
    else {
        panic!("{:?}", status.state)
    };
    assert_eq!(timeline_id, 1);
    assert!(Lsn::ZERO < switch_lsn && switch_lsn < last_record_lsn);
    assert!(last_lsn <= last_record_lsn);
    let error = status.last_error.context("no error")?;
    assert!(error.contains(&switch_lsn.to_string()) && error.contains(&last_record_lsn.to_string()), "{error}");
    // Nothing of the other history came in.
    let seen_lsn = follower.seen.last_record_lsn();
    assert!(last_lsn <= seen_lsn && seen_lsn <= end_lsn, "{last_lsn}, {seen_lsn}, {end_lsn}");
    Ok(())
}
