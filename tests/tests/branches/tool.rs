//! `pagectl branch`, `lease`, `timeline`: what people type.

use anyhow::{Context, Result};
use postgres_ffi::PgVersion;
use serde_json::Value;

use super::rig::Rig;

#[test]
fn branches_by_the_tool_and_what_is_not_confirmed_is_not_done() -> Result<()> {
    let rig = Rig::start("branch-tool", PgVersion::V15)?;
    rig.catch_up()?;
    let pagectl = rig.server.pagectl()?;
    let json = |arguments: &[&str]| -> Result<Vec<Value>> {
        let text = pagectl.run(&[&["--json"], arguments].concat())?;
        text.lines().map(|line| serde_json::from_str(line).context("JSON")).collect()
    };
    let made = json(&["branch", "create", "dev", "--from", "main"])?;
    assert_eq!((&made[0]["name"], &made[0]["ancestor"]), (&Value::from("dev"), &Value::from("main")));
    let lsn = made[0]["last_record_lsn"].as_str().context("an LSN")?.to_owned();
    json(&["branch", "create", "test", "--from", "dev", "--lsn", &lsn])?;
    assert!(json(&["branch", "create", "other", "--from", "main", "--time", "1999-01-01 00:00:00"]).is_err());
    json(&["branch", "create", "other", "--from", "main"])?;
    let tree = pagectl.run(&["branch", "list"])?;
    let lines: Vec<&str> = tree.lines().skip(1).map(str::trim).collect();
    for (line, begins) in lines.iter().zip(["main ", "├─ dev ", "│  └─ test ", "└─ other "]) {
        assert!(line.starts_with(begins), "{tree}");
    }
    let listed = json(&["branch", "list"])?;
    let depths: Vec<_> =
        listed.iter().map(|row| (row["name"].as_str().unwrap_or_default(), row["depth"].as_u64())).collect();
    assert_eq!(depths, [("main", Some(0)), ("dev", Some(1)), ("test", Some(2)), ("other", Some(1))]);

    // Only told.
    for arguments in [&["branch", "delete", "test"][..], &["branch", "reset", "test"], &["timeline", "delete", "test"]]
    {
        let report = json(arguments)?;
        assert_eq!((&report[0]["done"], &report[0]["name"]), (&Value::from(false), &Value::from("test")));
        assert!(pagectl.run(arguments)?.contains("--confirm"));
    }
    assert!(pagectl.run(&["branch", "delete", "dev"])?.contains("these branch off: test"));
    assert_eq!(json(&["branch", "list"])?.len(), 4);
    let refused = pagectl.outcome(&["branch", "delete", "dev", "--confirm"])?;
    assert!(refused.exit_code == 2 && refused.stderr.contains("`test`"), "{refused:?}");

    json(&["branch", "rename", "test", "tried"])?;
    let lease = json(&["lease", "create", "tried", "--lsn", &lsn, "--seconds", "60"])?;
    assert_eq!(json(&["lease", "list", "--timeline", "tried"])?, lease);
    json(&["lease", "end", &lease[0]["lease"].to_string()])?;
    json(&["branch", "reset", "tried", "--confirm"])?;
    let detached = pagectl.outcome(&["branch", "detach", "tried"])?;
    assert!(detached.exit_code == 0 && detached.stderr.contains("copied"), "{detached:?}");
    json(&["branch", "delete", "dev", "--confirm"])?;
    json(&["timeline", "delete", "tried", "--confirm"])?;
    let unfollowed = pagectl.outcome(&["timeline", "unfollow", "main"])?;
    assert!(unfollowed.exit_code == 0 && unfollowed.stderr.contains("dropped"), "{unfollowed:?}");
    json(&["timeline", "follow", "main", "--conninfo", &rig.primary.conninfo()])?;
    rig.catch_up()?;
    assert_eq!(rig.slots()?, "1");
    Ok(())
}
