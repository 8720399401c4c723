//! How far the process is on its way to its end.
//!
//! Owns the phases and who hears of them. What each phase means for connections is `serve`'s and `conn`'s; signals are
//! the program's.

use std::sync::Arc;

use tokio::sync::watch;

/// A phase. It only ever moves on, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Everything is as it should be.
    Serving,
    /// Told to end: still accepting, because not everybody who sends requests here knows yet; the health path fails,
    /// and every answer says `Connection: close`.
    LameDuck,
    /// Nothing new is accepted; what is under way is finished.
    Draining,
    /// What is still under way is broken off: the time for it is over.
    Ending,
}

impl Phase {
    /// What the status page and the health path call it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::LameDuck => "lame duck",
            Self::Draining => "draining",
            Self::Ending => "ending",
        }
    }
}

/// The phase of this process, for all who hold a clone.
#[derive(Debug, Clone)]
pub struct Lifecycle(Arc<watch::Sender<Phase>>);

impl Default for Lifecycle {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Phase::Serving)))
    }
}

impl Lifecycle {
    /// Where it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Begins the end. Once begun, this changes nothing.
    pub fn drain(&self) {
        self.advance(Phase::LameDuck);
    }

    /// Moves on to a phase; nothing when it is there or further already.
    pub(crate) fn advance(&self, to: Phase) {
        self.0.send_if_modified(|phase| {
            let moves = *phase < to;
            if moves {
                *phase = to;
            }
            moves
        });
    }

    /// Ready once it is at a phase or further.
    pub async fn reached(&self, phase: Phase) {
        // The sender lives as long as `self`: there is no error.
        let _ = self.0.subscribe().wait_for(|now| *now >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_moves_on_and_never_back() {
        let lifecycle = Lifecycle::default();
        let seen = lifecycle.clone();
        lifecycle.reached(Phase::Serving).await;
        let waiting = tokio::spawn(async move {
            seen.reached(Phase::Draining).await;
            seen.phase()
        });
        lifecycle.drain();
        assert_eq!(lifecycle.phase(), Phase::LameDuck);
        lifecycle.advance(Phase::Draining);
        lifecycle.drain();
        assert_eq!(lifecycle.phase(), Phase::Draining);
        assert_eq!(waiting.await.unwrap(), Phase::Draining);
    }
}
