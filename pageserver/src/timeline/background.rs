//! One thread in the background that ends when it is told to.

use std::convert::Infallible;
use std::io;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

/// A thread that runs, or none.
#[derive(Default)]
pub(super) struct Background(Mutex<Option<Running>>);

struct Running {
    /// Nothing is ever sent: the thread ends when this is dropped.
    alive: Sender<Infallible>,
    thread: JoinHandle<()>,
}

impl Background {
    /// Runs `body` on a thread called `name`. It is to return soon after its channel is disconnected. Requires: none runs.
    pub fn start(&self, name: &str, body: impl FnOnce(Receiver<Infallible>) + Send + 'static) -> io::Result<()> {
        let (alive, stop) = bounded(0);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || body(stop))?;
        *self.0.lock() = Some(Running { alive, thread });
        Ok(())
    }

    /// Returns when the thread has ended, if one runs. Not to be called from it.
    pub fn stop(&self) {
        let running = self.0.lock().take();
        if let Some(Running { alive, thread }) = running {
            drop(alive);
            let _ = thread.join(); // A panic was logged where it happened.
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn it_runs_until_it_is_stopped() {
        let has_ended = Arc::new(AtomicBool::new(false));
        let background = Background::default();
        background.stop();
        let ended = Arc::clone(&has_ended);
        let body = move |stop: Receiver<Infallible>| {
            assert!(stop.recv().is_err());
            ended.store(true, Ordering::SeqCst);
        };
        background.start("test", body).unwrap();
        assert!(!has_ended.load(Ordering::SeqCst));
        background.stop();
        assert!(has_ended.load(Ordering::SeqCst));
        background.stop();
    }
}
