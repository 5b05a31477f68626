//! Writers that remember what was acknowledged to them.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::Compute;

/// The table that writers write to.
pub const TABLE: &str = "CREATE TABLE written (writer text, n int)";

/// A session that inserts rows, each in a transaction of its own, and goes on when the server comes back.
pub struct Writer {
    name: String,
    acknowledged: Mutex<BTreeSet<i32>>,
    pub stop: AtomicBool,
}

impl Writer {
    pub fn new(name: &str) -> Self {
        Writer { name: name.to_owned(), acknowledged: Mutex::default(), stop: AtomicBool::new(false) }
    }

    /// Writes to `compute` until it is told to stop.
    pub fn run(&self, compute: &Compute) {
        let mut n = self.count();
        let mut session = None;
        while !self.stop.load(Ordering::SeqCst) {
            let Some(client) = &mut session else {
                session = compute.connect().ok();
                if session.is_none() {
                    std::thread::sleep(Duration::from_millis(50));
                }
                continue;
            };
            n += 1;
            match client.execute("INSERT INTO written VALUES ($1, $2)", &[&self.name, &n]) {
                Ok(_) => _ = self.acknowledged.lock().expect("no panic").insert(n),
                Err(_) => session = None, // Perhaps committed, but nobody was told so.
            }
        }
    }

    /// Rows that were acknowledged so far.
    pub fn count(&self) -> i32 {
        self.acknowledged.lock().expect("no panic").len() as i32
    }

    /// Every acknowledged row is in `compute`. Rows that nobody was told of may be there as well.
    pub fn check(&self, compute: &Compute) -> Result<()> {
        let rows = compute.connect()?.query("SELECT n FROM written WHERE writer = $1", &[&self.name])?;
        let found: BTreeSet<i32> = rows.iter().map(|row| row.get(0)).collect();
        ensure!(found.len() == rows.len(), "rows of {} are there twice", self.name);
        let acknowledged = self.acknowledged.lock().expect("no panic");
        let lost: Vec<&i32> = acknowledged.difference(&found).collect();
        ensure!(lost.is_empty(), "{} of {}'s {} rows are lost: {lost:?}", lost.len(), self.name, acknowledged.len());
        ensure!(!acknowledged.is_empty(), "{} has written nothing", self.name);
        Ok(())
    }
}
