//! Free TCP ports on 127.0.0.1 for servers that want to be told theirs.

use std::collections::HashSet;
use std::net::TcpListener;
use std::sync::Mutex;

use anyhow::{Result, bail};
use rand::Rng;

/// Below Linux's range for outgoing connections (from 32768), so that no client takes a port between our look and the
/// server's `listen`.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Ports that this process has handed out: two tests at once must not get the same one.
static HANDED_OUT: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A port on which nobody listened a moment ago and that this process gives to nobody else.
pub fn free_port() -> Result<u16> {
    let mut guard = HANDED_OUT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let handed_out = guard.get_or_insert_default();
    for _ in 0..1_000 {
        let port = rand::rng().random_range(PORTS);
        if !handed_out.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            handed_out.insert(port);
            return Ok(port);
        }
    }
    bail!("no free port in {PORTS:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once() {
        let ports: HashSet<u16> = (0..50).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 50);
    }
}
