//! The HTTP requests by which Aurora's executor asks a task to quit before it kills it:
//! `apache/aurora/executor/http_lifecycle.py`. Thermos sends SIGTERM and SIGKILL afterwards.

use std::time::Duration;

use super::{AuroraRelease, HttpSignaler};

/// How often the executor checks whether the task has ended.
const WAIT_POLL: Duration = Duration::from_secs(1);

/// The endpoints of the lifecycle, and the wait after each.
#[derive(Debug, Clone)]
pub struct HttpLifecycle {
    pub(super) port: String,
    stages: [(String, Duration); 2],
}

impl Default for HttpLifecycle {
    /// `/quitquitquit` and `/abortabortabort` of the port `health`, 5 s each.
    fn default() -> Self {
        let wait = Duration::from_secs(5);
        Self {
            port: "health".to_owned(),
            stages: ["/quitquitquit", "/abortabortabort"].map(|path| (path.to_owned(), wait)),
        }
    }
}

impl HttpLifecycle {
    /// Sets the name of the port. (`health`)
    #[must_use]
    pub fn port(mut self, name: &str) -> Self {
        name.clone_into(&mut self.port);
        self
    }

    /// Sets the waits after each request. (5 s, 5 s)
    #[must_use]
    pub const fn waits(mut self, graceful: Duration, shutdown: Duration) -> Self {
        self.stages[0].1 = graceful;
        self.stages[1].1 = shutdown;
        self
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LifecycleMessage {
    pub endpoint: String,
    /// Whether the task answered.
    pub handled: bool,
    /// How often the executor checked the task afterwards, once per second of waiting.
    pub looks: u32,
}

impl HttpLifecycle {
    /// Sends the requests one after the other until the task has ended. `scaled` converts Aurora's times.
    pub(super) fn escalate(
        &self,
        contract: AuroraRelease,
        signaler: &HttpSignaler,
        scaled: impl Fn(Duration) -> Duration,
        ended: impl Fn() -> bool,
        mut note: impl FnMut(LifecycleMessage),
    ) {
        for (endpoint, wait) in &self.stages {
            let handled = signaler.post(endpoint).is_ok();
            let (looks, gone) = match contract {
                _ if !handled => (0, false),
                AuroraRelease::V0_15 => {
                    std::thread::sleep(scaled(*wait));
                    (1, ended())
                }
                AuroraRelease::Last => polled(*wait, &scaled, &ended),
            };
            note(LifecycleMessage {
                endpoint: endpoint.clone(),
                handled,
                looks,
            });
            if gone {
                return;
            }
        }
    }
}

/// Polls until the task has ended or the time is over; returns the number of polls and whether it has ended.
fn polled(
    wait: Duration,
    scaled: impl Fn(Duration) -> Duration,
    ended: impl Fn() -> bool,
) -> (u32, bool) {
    let (mut waited, mut looks) = (Duration::ZERO, 1);
    loop {
        if ended() {
            return (looks, true);
        }
        if waited >= wait {
            return (looks, false);
        }
        std::thread::sleep(scaled(WAIT_POLL));
        waited += WAIT_POLL;
        looks += 1;
    }
}
