//! A thread that goes on until it is told to stop, whatever happens to the servers meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};

/// One such thread. Dropped: it is told to stop, and not waited for.
pub struct Background<T> {
    what: &'static str,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<T>>>,
}

impl<T: Send + 'static> Background<T> {
    /// Starts `body`, which is to look at its flag all the time and to end once that is true. `what` it is, for errors.
    pub fn start(what: &'static str, body: impl FnOnce(&AtomicBool) -> Result<T> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || body(&stop)
        });
        Background { what, stop, thread: Some(thread) }
    }

    /// An error if it has ended by itself: its own, if it has one.
    pub fn check(&mut self) -> Result<()> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            self.join()?;
            bail!("{} ended by itself", self.what);
        }
        Ok(())
    }

    /// Ends it. What it gives; `None` when it has been ended before.
    pub fn stop(&mut self) -> Result<Option<T>> {
        self.stop.store(true, Ordering::SeqCst);
        self.join()
    }

    fn join(&mut self) -> Result<Option<T>> {
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(None),
            Some(Ok(result)) => result.map(Some).context(self.what),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}
