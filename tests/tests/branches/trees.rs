//! What branches show, three levels deep, while the primary writes and whatever the page server goes through.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use postgres_ffi::Lsn;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tests::workload::tpcb;

use super::rig::{Rig, check_equal, versions};

fn write(rig: &Rig, round: u64) -> Result<Lsn> {
    rig.primary.execute(&format!(
        "CREATE TABLE round{round} AS SELECT i, md5(i::text) v FROM generate_series(1, 3000) i; CREATE INDEX ON round{round} (v);
         UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid % 7 = {round}; DELETE FROM round{round} WHERE i % 3 = 0"
    ))?;
    rig.primary.execute(&format!("VACUUM round{round}"))?;
    rig.catch_up()?;
    rig.lsn_of("main", "last_record_lsn")
}

/// Runs `then` while sessions write.
fn under_load<T>(rig: &Rig, then: impl FnOnce() -> Result<T>) -> Result<T> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let stop = &stop;
            scope.spawn(move || {
                let mut client = rig.primary.connect().expect("connect");
                let mut rng = SmallRng::seed_from_u64(seed);
                while !stop.load(Ordering::SeqCst) {
                    tpcb::transaction(&mut client, &mut rng, 1).expect("a transaction");
                }
            });
        }
        let outcome = then();
        stop.store(true, Ordering::SeqCst);
        outcome
    })
}

#[test]
fn branches_show_what_their_ancestors_showed_three_levels_deep() -> Result<()> {
    for version in versions() {
        let mut rig = Rig::start("branch-trees", version)?;
        let lsns = [write(&rig, 1)?, write(&rig, 2)?, write(&rig, 3)?];
        let at_each: Vec<_> = lsns.iter().map(|lsn| rig.everything("main", *lsn)).collect::<Result<_>>()?;
        for pair in at_each.windows(2) {
            assert!(check_equal(&pair[0], &pair[1]).is_err(), "the rounds change something");
        }
        under_load(&rig, || {
            let (row, notices) = rig.change(&format!("BRANCH CREATE one FROM main AT '{}'", lsns[2]))?;
            assert_eq!((&row[0][..], &row[3][..], &row[4]), ("one", "main", &lsns[2].to_string()));
            assert!(notices.is_empty(), "{notices:?}");
            // Of an LSN that it shares with its ancestor it is the ancestor's branch.
            let (row, notices) = rig.change(&format!("BRANCH CREATE two FROM one AT '{}'", lsns[1]))?;
            assert_eq!(row[3], "main");
            assert!(notices[0].contains("`main`"), "{notices:?}");
            rig.change("BRANCH CREATE three FROM one")?;
            rig.change("BRANCH CREATE four FROM three")?;
            // At the last record, of which not everything is durable yet.
            rig.change("BRANCH CREATE now FROM main")?;
            Ok(())
        })?;
        let now = rig.lsn_of("now", "last_record_lsn")?;
        rig.catch_up()?;
        let at_now = rig.everything("main", now)?;
        let check = |rig: &Rig| -> Result<()> {
            for (name, lsns_shown) in [("one", 3), ("two", 2), ("three", 3), ("four", 3)] {
                for at in 0..lsns_shown {
                    check_equal(&rig.everything(name, lsns[at])?, &at_each[at])?;
                }
                assert_eq!(rig.lsn_of(name, "last_record_lsn")?, lsns[lsns_shown - 1]);
            }
            check_equal(&rig.everything("now", now)?, &at_now)
        };
        check(&rig)?;
        // Killed right after a branch of the newest record was made: what it shows must not depend on WAL that is to be ingested again.
        let last = under_load(&rig, || {
            rig.change("BRANCH CREATE last FROM main")?;
            rig.lsn_of("last", "last_record_lsn")
        })?;
        rig.server.kill()?;
        rig.server.start()?;
        check(&rig)?;
        rig.catch_up()?;
        rig.check_same("last", "main", last)?;
        // And once more, ended well.
        rig.server.stop()?;
        rig.server.start()?;
        check(&rig)?;
    }
    Ok(())
}

#[test]
fn a_detached_branch_shows_the_same_without_its_ancestor() -> Result<()> {
    for version in versions() {
        let mut rig = Rig::start("branch-detach", version)?;
        let lsn = write(&rig, 1)?;
        rig.change(&format!("BRANCH CREATE kept FROM main AT '{lsn}'"))?;
        rig.change("BRANCH CREATE leaf FROM kept")?;
        let later = write(&rig, 2)?;
        let expect = rig.everything("main", lsn)?;
        let (row, notices) = under_load(&rig, || rig.change("BRANCH DETACH kept"))?;
        assert_eq!((&row[3][..], &row[5]), ("", &lsn.to_string()));
        assert!(notices.iter().any(|notice| notice.contains("copied")), "{notices:?}");
        let (sqlstate, text) = rig.refusal(&format!("PAGE GET kept 1664/0/1262/main/0 AT '{}'", lsns_before(lsn)))?;
        ensure!(sqlstate == "22023" && text.contains(&lsn.to_string()), "{sqlstate} {text}");
        assert!(rig.everything("main", later)?.len() > 500);

        let before = rig.slots()?;
        let (_, notices) = rig.change("TIMELINE DELETE main")?;
        assert!(notices[0].contains("dropped"), "{notices:?}");
        assert_eq!((&before[..], &rig.slots()?[..]), ("1", "0"));
        for _ in 0..2 {
            check_equal(&rig.everything("kept", lsn)?, &expect)?;
            check_equal(&rig.everything("leaf", lsn)?, &expect)?;
            assert_eq!(rig.server.query("SHOW TIMELINES")?.len(), 2);
            rig.server.kill()?;
            rig.server.start()?;
        }
        // What it took comes back.
        rig.change("BRANCH DELETE leaf")?;
        rig.change("BRANCH DELETE kept")?;
        assert!(rig.server.query("SHOW TIMELINES")?.is_empty());
        assert!(!std::fs::read_dir(rig.server.data_dir().join("timelines"))?.any(|_| true));
    }
    Ok(())
}

fn lsns_before(lsn: Lsn) -> Lsn {
    Lsn::new(lsn.as_u64() - 8)
}
