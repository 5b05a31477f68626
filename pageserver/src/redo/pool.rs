//! The walredo threads: many requesters, few threads, each page made once.

use std::sync::Arc;

use bytes::Bytes;

use super::{Chain, Engine, RedoError};

/// How many threads, and how much may wait for them.
#[derive(Clone, Debug)]
pub struct RedoConfig {
    /// Walredo threads.
    pub threads: usize,
}

impl Default for RedoConfig {
    fn default() -> Self {
        RedoConfig { threads: 2 }
    }
}

/// What the threads have done since they started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RedoStats {}

/// The walredo threads of one cluster and the engine behind them.
pub struct WalRedo {
    _engine: Arc<dyn Engine>,
}

impl WalRedo {
    /// Takes requests from now on.
    pub fn start(_config: &RedoConfig, engine: Arc<dyn Engine>) -> Arc<Self> {
        Arc::new(WalRedo { _engine: engine })
    }

    /// Asks for the page that `chain` makes.
    pub fn submit(&self, _chain: Chain) -> PendingPage {
        PendingPage {}
    }
}

/// A page that has been asked for.
#[must_use]
pub struct PendingPage {}

impl PendingPage {
    /// The page. Blocks until it is made or has failed.
    pub fn wait(self) -> Result<Bytes, RedoError> {
        Err(RedoError::ShuttingDown)
    }
}
