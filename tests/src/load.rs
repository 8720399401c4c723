//! A paced load generator, which decides whether a change is hitless. Every attempt is classified and none is retried,
//! as a browser or another job would see it.
//!
//! It shares the host with the servers under test, so it is one thread with one runtime, and paced: a refused
//! connection is one failure, not the start of a busy loop.
//!
//! A kept connection is written to without checking whether it was closed meanwhile. A client on the same host could
//! check; across a network the request and the close cross, and that user-visible error is counted as `eof-reused`. A
//! response with `Connection: close` is honoured.

mod exchange;
pub(crate) mod head;
mod report;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::{wait_limit, wait_until};
pub use exchange::FailureKind;
use report::LoadTally;
pub use report::{LatencySummary, LoadFailure, LoadReport, SuccessGap};

#[derive(Debug, Clone)]
pub struct LoadPlan {
    pub target: SocketAddr,
    /// The service that must answer: the first word of every body, as [`crate::tasks`] writes it.
    pub service: String,
    pub path: String,
    pub host: String,
    pub clients: u32,
    /// Requests per second of each client.
    pub rate: f64,
    pub connections: ConnectionReuse,
    /// The timeout of a whole attempt.
    pub timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionReuse {
    /// One request per connection, with `Connection: close`.
    Fresh,
    /// As many requests as the server allows.
    KeepAlive,
}

impl LoadPlan {
    /// 16 clients with 60 requests a second each for `/`, with a timeout of 5 s.
    #[must_use]
    pub fn new(target: SocketAddr, service: &str, connections: ConnectionReuse) -> Self {
        Self {
            target,
            service: service.to_owned(),
            path: "/".to_owned(),
            host: service.to_owned(),
            clients: 16,
            rate: 60.0,
            connections,
            timeout: Duration::from_secs(5),
        }
    }

    fn request(&self) -> Vec<u8> {
        let close = match self.connections {
            ConnectionReuse::Fresh => "Connection: close\r\n",
            ConnectionReuse::KeepAlive => "",
        };
        format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\n{close}\r\n",
            self.path, self.host
        )
        .into_bytes()
    }
}

/// A running load, stopped on drop.
#[derive(Debug)]
pub struct LoadGenerator {
    start: Instant,
    rate: f64,
    tally: Arc<Mutex<LoadTally>>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl LoadGenerator {
    /// Starts all clients, spread over one request period.
    #[must_use]
    pub fn start(plan: LoadPlan) -> Self {
        let start = Instant::now();
        let rate = plan.rate * f64::from(plan.clients);
        let tally = Arc::new(Mutex::new(LoadTally::default()));
        let (stop, stopped) = watch::channel(false);
        let shared = tally.clone();
        let thread = std::thread::Builder::new()
            .name("load".to_owned())
            .spawn(move || run(Arc::new(plan), start, shared, stopped))
            .expect("a thread");
        Self {
            start,
            rate,
            tally,
            stop,
            thread: Some(thread),
        }
    }

    #[must_use]
    pub fn report(&self) -> LoadReport {
        let tally = self.tally.lock().unwrap();
        tally.report(self.start.elapsed())
    }

    /// Waits until `count` more attempts have ended.
    ///
    /// # Panics
    /// They take longer than twice their time plus [`wait_limit`].
    pub fn await_attempts(&self, count: u64) {
        let ended = || self.tally.lock().unwrap().attempts();
        let goal = ended() + count;
        let limit = Duration::from_secs_f64(2.0 * count as f64 / self.rate) + wait_limit();
        let began = Instant::now();
        while ended() < goal {
            assert!(
                began.elapsed() < limit,
                "the load makes no progress:\n{}",
                self.report()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Lets the attempts under way end, and returns the report.
    #[must_use]
    pub fn stop(mut self) -> LoadReport {
        self.stop.send_replace(true);
        let thread = self.thread.take().expect("it is stopped once");
        wait_until("the load ends", || thread.is_finished());
        thread.join().expect("the load did not panic");
        self.report()
    }
}

impl Drop for LoadGenerator {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed already; a second one here would hide the test's own.
            let _ = thread.join();
        }
    }
}

fn run(
    plan: Arc<LoadPlan>,
    start: Instant,
    tally: Arc<Mutex<LoadTally>>,
    stopped: watch::Receiver<bool>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..plan.clients {
            let client = LoadClient {
                plan: plan.clone(),
                start,
                tally: tally.clone(),
                stopped: stopped.clone(),
            };
            clients.spawn(client.run(number));
        }
        while let Some(ended) = clients.join_next().await {
            ended.expect("a client does not panic");
        }
    });
}

struct LoadClient {
    plan: Arc<LoadPlan>,
    start: Instant,
    tally: Arc<Mutex<LoadTally>>,
    stopped: watch::Receiver<bool>,
}

impl LoadClient {
    async fn run(mut self, number: u32) {
        let request = self.plan.request();
        let period = Duration::from_secs_f64(1.0 / self.plan.rate);
        let first = self.start + period * number / self.plan.clients;
        let mut due = tokio::time::interval_at(first.into(), period);
        due.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut before = None;
        let mut kept = None;
        loop {
            let tick = tokio::select! {
                biased;
                _ = self.stopped.wait_for(|&stop| stop) => return,
                tick = due.tick() => tick,
            };
            let missed = before.map_or(0, |before| periods(tick - before, period) - 1);
            before = Some(tick);
            let fresh = kept.is_none();
            let began = self.start.elapsed();
            let came = exchange::attempt(&self.plan, &request, &mut kept).await;
            let ended = self.start.elapsed();
            let mut tally = self.tally.lock().unwrap();
            tally.missed(missed);
            if fresh {
                tally.opened();
            }
            tally.add(began, ended, came);
        }
    }
}

/// How many periods passed between two ticks, at least one.
fn periods(passed: Duration, period: Duration) -> u64 {
    (passed.as_secs_f64() / period.as_secs_f64())
        .round()
        .max(1.0) as u64
}
