//! The phases of a graceful shutdown.
//!
//! Owns the current phase and its watchers. `server` and `connection` act on it.

use std::sync::Arc;

use tokio::sync::watch;

/// In the order in which they follow; no phase is ever left for an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LifecyclePhase {
    Serving,
    /// Connections are still accepted, because load balancers notice the failing health path later. Every response has
    /// `Connection: close`.
    LameDuck,
    /// No connection is accepted; requests in flight continue.
    Draining,
    /// The drain timeout has expired: requests in flight are aborted.
    Aborting,
}

impl LifecyclePhase {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::LameDuck => "lame duck",
            Self::Draining => "draining",
            Self::Aborting => "aborting",
        }
    }
}

/// The phase of this process, shared by all clones.
#[derive(Debug, Clone)]
pub(crate) struct ProcessLifecycle(Arc<watch::Sender<LifecyclePhase>>);

impl Default for ProcessLifecycle {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(LifecyclePhase::Serving)))
    }
}

impl ProcessLifecycle {
    pub(crate) fn phase(&self) -> LifecyclePhase {
        *self.0.borrow()
    }

    /// Starts a graceful shutdown, if it has not started yet.
    pub(crate) fn begin_shutdown(&self) {
        self.advance(LifecyclePhase::LameDuck);
    }

    /// Enters a phase, unless it was reached before.
    pub(crate) fn advance(&self, to: LifecyclePhase) {
        self.0.send_if_modified(|phase| {
            let advances = *phase < to;
            if advances {
                *phase = to;
            }
            advances
        });
    }

    /// Completes once a phase or a later one is reached.
    pub(crate) async fn wait_for(&self, phase: LifecyclePhase) {
        // An error means that the sender is gone; it lives as long as `self`.
        let _ = self.0.subscribe().wait_for(|now| *now >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phase_advances_and_never_returns() {
        let lifecycle = ProcessLifecycle::default();
        let clone = lifecycle.clone();
        lifecycle.wait_for(LifecyclePhase::Serving).await;
        let waiting = tokio::spawn(async move {
            clone.wait_for(LifecyclePhase::Draining).await;
            clone.phase()
        });
        lifecycle.begin_shutdown();
        assert_eq!(lifecycle.phase(), LifecyclePhase::LameDuck);
        lifecycle.advance(LifecyclePhase::Draining);
        lifecycle.begin_shutdown();
        assert_eq!(lifecycle.phase(), LifecyclePhase::Draining);
        assert_eq!(waiting.await.unwrap(), LifecyclePhase::Draining);
    }
}
