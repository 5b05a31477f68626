//! Bank accounts after TPC-B, with the tables of `pgbench`, which can run on them as well: many small transactions that
//! change few pages each, most of them in place.

use anyhow::{Context, Result};
use postgres::Client;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{Target, is_transient};

/// Accounts per unit of scale.
const ACCOUNTS: i32 = 100_000;
/// Tellers per unit of scale.
const TELLERS: i32 = 10;

/// Makes and fills the tables in the current schema, `scale` branches. Requires: they are not there.
pub fn init(client: &mut Client, scale: i32) -> Result<()> {
    client.batch_execute(&format!(
        "CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
         CREATE TABLE pgbench_tellers (tid int PRIMARY KEY, bid int, tbalance int, filler char(84)) WITH (fillfactor = 100);
         CREATE TABLE pgbench_branches (bid int PRIMARY KEY, bbalance int, filler char(88)) WITH (fillfactor = 100);
         CREATE TABLE pgbench_accounts (aid int, bid int, abalance int, filler char(84)) WITH (fillfactor = 100);
         INSERT INTO pgbench_branches SELECT b, 0 FROM generate_series(1, {scale}) b;
         INSERT INTO pgbench_tellers SELECT t, (t - 1) / {TELLERS} + 1, 0 FROM generate_series(1, {scale} * {TELLERS}) t;
         INSERT INTO pgbench_accounts SELECT a, (a - 1) / {ACCOUNTS} + 1, 0, '' FROM generate_series(1, {scale} * {ACCOUNTS}) a;
         ALTER TABLE pgbench_accounts ADD PRIMARY KEY (aid);"
    ))
    .context("make the tables of TPC-B")?;
    client.batch_execute("VACUUM ANALYZE pgbench_accounts").context("vacuum the accounts")
}

/// One transaction: an account, its teller and its branch get `delta`, and history a row.
pub fn transaction(client: &mut Client, rng: &mut SmallRng, scale: i32) -> Result<(), postgres::Error> {
    let (aid, tid) = (rng.random_range(1..=scale * ACCOUNTS), rng.random_range(1..=scale * TELLERS));
    let (bid, delta) = (rng.random_range(1..=scale), rng.random_range(-5000..=5000));
    let mut transaction = client.transaction()?;
    transaction.execute("UPDATE pgbench_accounts SET abalance = abalance + $1 WHERE aid = $2", &[&delta, &aid])?;
    transaction.query_one("SELECT abalance FROM pgbench_accounts WHERE aid = $1", &[&aid])?;
    transaction.execute("UPDATE pgbench_tellers SET tbalance = tbalance + $1 WHERE tid = $2", &[&delta, &tid])?;
    transaction.execute("UPDATE pgbench_branches SET bbalance = bbalance + $1 WHERE bid = $2", &[&delta, &bid])?;
    let history =
        "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES ($1, $2, $3, $4, CURRENT_TIMESTAMP)";
    transaction.execute(history, &[&tid, &bid, &aid, &delta])?;
    transaction.commit()
}

/// One client in database `postgres`, schema `public`: transactions until the target is stopping, sessions renewed when the server goes
/// away. How many were committed.
pub fn client(target: &Target, scale: i32, seed: u64) -> Result<u64> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut committed = 0;
    let mut session = None;
    while !target.is_stopping() {
        let busy = target.enter();
        match step(&mut session, target, &mut rng, scale) {
            Ok(()) => committed += 1,
            Err(error) if is_transient(&error) => {
                session = None;
                drop(busy);
                std::thread::sleep(std::time::Duration::from_millis(100)); // It is restarting; ask again, gently.
            }
            Err(error) => return Err(error.context("a transaction of TPC-B")),
        }
    }
    Ok(committed)
}

fn step(session: &mut Option<Client>, target: &Target, rng: &mut SmallRng, scale: i32) -> Result<()> {
    if session.is_none() {
        *session = Some(target.connect("postgres")?);
    }
    let client = session.as_mut().context("opened above")?;
    Ok(transaction(client, rng, scale)?)
}
