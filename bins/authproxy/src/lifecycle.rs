//! How far the process is on its way to its end.
//!
//! Owns the phases and who hears of them. What each phase means for connections is `serve`'s and `conn`'s; signals are
//! the program's.

use std::sync::Arc;

use tokio::sync::watch;

/// A phase. It only ever moves on, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LifecyclePhase {
    /// Everything is as it should be.
    Serving,
    /// Told to end: still accepting, because not everybody who sends requests here knows yet; the health path fails,
    /// and every answer says `Connection: close`.
    LameDuck,
    /// Nothing new is accepted; what is under way is finished.
    Draining,
    /// What is still under way is broken off: the time for it is over.
    Aborting,
}

impl LifecyclePhase {
    /// What the status page and the health path call it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::LameDuck => "lame duck",
            Self::Draining => "draining",
            Self::Aborting => "aborting",
        }
    }
}

/// The phase of this process, for all who hold a clone.
#[derive(Debug, Clone)]
pub struct ProcessLifecycle(Arc<watch::Sender<LifecyclePhase>>);

impl Default for ProcessLifecycle {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(LifecyclePhase::Serving)))
    }
}

impl ProcessLifecycle {
    /// Where it is.
    #[must_use]
    pub fn phase(&self) -> LifecyclePhase {
        *self.0.borrow()
    }

    /// Begins the end. Once begun, this changes nothing.
    pub fn begin_shutdown(&self) {
        self.advance(LifecyclePhase::LameDuck);
    }

    /// Moves on to a phase; nothing when it is there or further already.
    pub(crate) fn advance(&self, to: LifecyclePhase) {
        self.0.send_if_modified(|phase| {
            let moves = *phase < to;
            if moves {
                *phase = to;
            }
            moves
        });
    }

    /// Ready once it is at a phase or further.
    pub async fn wait_for(&self, phase: LifecyclePhase) {
        // The sender lives as long as `self`: there is no error.
        let _ = self.0.subscribe().wait_for(|now| *now >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_moves_on_and_never_back() {
        let lifecycle = ProcessLifecycle::default();
        let seen = lifecycle.clone();
        lifecycle.wait_for(LifecyclePhase::Serving).await;
        let waiting = tokio::spawn(async move {
            seen.wait_for(LifecyclePhase::Draining).await;
            seen.phase()
        });
        lifecycle.begin_shutdown();
        assert_eq!(lifecycle.phase(), LifecyclePhase::LameDuck);
        lifecycle.advance(LifecyclePhase::Draining);
        lifecycle.begin_shutdown();
        assert_eq!(lifecycle.phase(), LifecyclePhase::Draining);
        assert_eq!(waiting.await.unwrap(), LifecyclePhase::Draining);
    }
}
