//! What cannot be is refused with its reason, and nothing is left behind.

use anyhow::{Context, Result};
use postgres_ffi::{Lsn, PgVersion};

use super::rig::Rig;

#[test]
fn what_cannot_be_is_refused_with_its_reason() -> Result<()> {
    let mut rig = Rig::start("branch-refusals", PgVersion::V15)?;
    rig.catch_up()?;
    rig.change("BRANCH CREATE taken FROM main")?;
    rig.change("BRANCH CREATE leaf FROM taken")?;
    let (first, last) = (rig.lsn_of("main", "first_readable_lsn")?, rig.lsn_of("taken", "last_record_lsn")?);
    let (too_low, too_high) = (Lsn::new(first.as_u64() - 8), Lsn::new(last.as_u64() + (1 << 30)));
    let id = "3aa8fcc61f6d357410b7de754b1d9001";
    let long = "x".repeat(64);
    for (command, sqlstate, parts) in [
        ("BRANCH CREATE taken FROM main".to_owned(), "22023", vec!["taken", "exists"]),
        ("BRANCH CREATE main FROM main".to_owned(), "22023", vec!["main", "exists"]),
        ("BRANCH CREATE new FROM nowhere".to_owned(), "42704", vec!["nowhere"]),
        ("BRANCH CREATE 'a b' FROM main".to_owned(), "22023", vec!["not a name"]),
        ("BRANCH CREATE '../up' FROM main".to_owned(), "22023", vec!["not a name"]),
        (format!("BRANCH CREATE {id} FROM main"), "22023", vec!["not a name"]),
        (format!("BRANCH CREATE {long} FROM main"), "22023", vec!["not a name"]),
        (format!("BRANCH CREATE new FROM main AT '{too_low}'"), "22023", vec!["branch_lsn", "first_readable_lsn"]),
        (format!("BRANCH CREATE new FROM main AT '{too_high}'"), "55000", vec!["branch_lsn", "last_record_lsn"]),
        (format!("BRANCH CREATE new FROM taken AT '{too_high}'"), "55000", vec!["last_record_lsn"]),
        ("BRANCH CREATE new FROM main AT '0/0'".to_owned(), "22023", vec!["first_readable_lsn"]),
        ("BRANCH CREATE new FROM main AT 'FFFFFFFF/FFFFFFFF'".to_owned(), "55000", vec!["last_record_lsn"]),
        ("BRANCH CREATE new FROM main AT 'x'".to_owned(), "22023", vec!["not an LSN"]),
        ("BRANCH DELETE taken".to_owned(), "22023", vec!["`leaf`"]),
        ("TIMELINE DELETE main".to_owned(), "22023", vec!["`taken`"]),
        ("BRANCH RESET taken".to_owned(), "22023", vec!["`leaf`"]),
        ("BRANCH RESET main".to_owned(), "22023", vec!["not a branch"]),
        ("BRANCH DETACH main".to_owned(), "22023", vec!["not a branch"]),
        (format!("BRANCH RESET leaf AT '{too_high}'"), "55000", vec!["last_record_lsn"]),
        ("BRANCH RENAME leaf TO taken".to_owned(), "22023", vec!["exists"]),
        ("BRANCH RENAME nowhere TO somewhere".to_owned(), "42704", vec!["nowhere"]),
        ("TIMELINE FOLLOW leaf FROM 'nonsense'".to_owned(), "22023", vec!["connection string"]),
        ("TIMELINE FOLLOW nowhere FROM 'host=/tmp'".to_owned(), "42704", vec!["nowhere"]),
        (format!("LEASE main AT '{too_low}'"), "22023", vec!["first_readable_lsn"]),
        (format!("LEASE main AT '{too_high}'"), "55000", vec!["last_record_lsn"]),
        (format!("LEASE main AT '{last}' FOR 0"), "22023", vec!["1 to"]),
        ("LEASE END 77".to_owned(), "42704", vec!["77"]),
    ] {
        let (found, text) = rig.refusal(&command).with_context(|| command.clone())?;
        assert_eq!(found, sqlstate, "{command}: {text}");
        parts.iter().for_each(|part| assert!(text.contains(part), "{command}: `{part}` is not in {text}"));
    }
    let (_, text) = rig.refusal(&format!("BRANCH CREATE new FROM main AT '{too_low}'"))?;
    assert!(text.contains(&too_low.to_string()) && text.contains(&first.to_string()), "{text}");

    let lease = rig.server.query(&format!("LEASE leaf AT '{last}' FOR 100"))?;
    assert_eq!(lease[0][..3], ["1".to_owned(), "leaf".to_owned(), last.to_string()]);
    let (_, text) = rig.refusal("BRANCH DELETE leaf")?;
    assert!(text.contains("leases=[1]"), "{text}");
    rig.server.kill()?;
    rig.server.start()?;
    assert_eq!(rig.server.query("LEASE LIST leaf")?, lease);
    rig.server.query("LEASE END 1")?;
    rig.server.query("BRANCH DELETE leaf")?;
    // Nothing of what was refused is there.
    let names: Vec<String> = rig.server.query("SHOW TIMELINES")?.into_iter().map(|row| row[0].clone()).collect();
    assert_eq!(names, ["main", "taken"]);
    assert_eq!(std::fs::read_dir(rig.server.data_dir().join("timelines"))?.count(), 2);
    Ok(())
}

/// Where records start and end, by `pagectl wal dump` of the primary's own files.
fn records(rig: &Rig, from: Lsn, to: Lsn) -> Result<Vec<Lsn>> {
    let wal = rig.primary.data_dir().join("pg_wal");
    let wal = wal.to_str().context("a path in UTF-8")?;
    let (start, end) = (from.to_string(), to.to_string());
    let lines = rig.server.pagectl()?.run(&["--json", "wal", "dump", wal, "--start", &start, "--end", &end])?;
    let lsn = |line: &str| {
        let record: serde_json::Value = serde_json::from_str(line)?;
        Ok(record["lsn"].as_str().context("an LSN")?.parse()?)
    };
    lines.lines().map(lsn).collect()
}

#[test]
fn an_lsn_inside_a_record_becomes_the_end_of_that_record() -> Result<()> {
    let rig = Rig::start("branch-inside", PgVersion::V15)?;
    rig.catch_up()?;
    let from = rig.lsn_of("main", "last_record_lsn")?;
    rig.primary.execute("CREATE TABLE t AS SELECT i, repeat('x', 500) FROM generate_series(1, 3000) i")?;
    rig.catch_up()?;
    let to = rig.lsn_of("main", "last_record_lsn")?;
    let starts = records(&rig, from, to)?;
    assert!(starts.len() > 1000, "{}", starts.len());
    // Records that lie within a page end where the next one starts.
    let is_within_page = |pair: &&[Lsn]| pair[0].as_u64() / 8192 == pair[1].as_u64() / 8192;
    let pairs: Vec<&[Lsn]> = starts.windows(2).filter(is_within_page).step_by(starts.len() / 12).collect();
    assert!(pairs.len() > 5);
    for (n, pair) in pairs.iter().enumerate() {
        let (inside, end) = (Lsn::new(pair[0].as_u64() + 9 + n as u64), pair[1]);
        let (row, notices) = rig.change(&format!("BRANCH CREATE inside{n} FROM main AT '{inside}'"))?;
        assert_eq!(row[4], end.to_string(), "{inside}");
        assert!(notices[0].contains(&end.to_string()) && notices[0].contains(&inside.to_string()), "{notices:?}");
        let (row, notices) = rig.change(&format!("BRANCH CREATE end{n} FROM main AT '{end}'"))?;
        assert_eq!((&row[4], notices.len()), (&end.to_string(), 0));
    }
    Ok(())
}
