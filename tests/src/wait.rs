//! Waiting for a condition instead of sleeping and hoping.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long between two looks: short against what is waited for (a server start, a replayed record), long against a look.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Returns once `condition` says true. An error of the condition, or `limit` passing, is an error that names `what`.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_until_some(what, limit, || Ok(condition()?.then_some(())))
}

/// As [`wait_until`], for a condition that comes with a value.
pub fn wait_until_some<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if started.elapsed() >= limit {
            bail!("gave up after {limit:?} waiting for {what}");
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_the_value_of_the_first_look_that_has_one() {
        let mut looks = 0;
        let value = wait_until_some("third look", Duration::from_secs(5), || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn gives_up_and_says_on_what() {
        let error = wait_until("rain", Duration::from_millis(1), || Ok(false)).unwrap_err();
        assert!(error.to_string().contains("rain"));
    }

    #[test]
    fn an_error_of_the_condition_ends_the_wait() {
        let error = wait_until("x", Duration::from_secs(60), || bail!("server is gone")).unwrap_err();
        assert_eq!(error.to_string(), "server is gone");
    }
}
