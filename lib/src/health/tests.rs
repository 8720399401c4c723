//! What is said of a check that does as it is told, without a network.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::*;

/// A probe waits until it is let go, and then finds what is written here.
struct Scripted {
    verdict: Arc<std::sync::Mutex<ProbeResult>>,
    gate: Arc<Semaphore>,
    probes: Arc<AtomicUsize>,
    deadline: Duration,
}

impl HealthCheck for Scripted {
    fn deadline(&self) -> Duration {
        self.deadline
    }

    async fn probe(&self) -> ProbeResult {
        self.probes.fetch_add(1, Ordering::SeqCst);
        self.gate.acquire().await.unwrap().forget();
        let verdict = self.verdict.lock().unwrap().clone();
        assert_ne!(verdict.detail(), "panic");
        verdict
    }

    async fn shut_down(&self, _: ShutdownRequest) {}
}

struct Rig {
    monitor: Arc<HealthMonitor<Scripted>>,
    verdict: Arc<std::sync::Mutex<ProbeResult>>,
    gate: Arc<Semaphore>,
    probes: Arc<AtomicUsize>,
    quits: mpsc::Receiver<ShutdownRequest>,
    sandbox: TempDir,
}

impl Rig {
    fn new(grace: Duration) -> Self {
        Self::with(grace, UnhealthyStatus::Unavailable, Duration::from_secs(60))
    }

    fn with(grace: Duration, unhealthy_status: UnhealthyStatus, deadline: Duration) -> Self {
        let verdict = Arc::new(std::sync::Mutex::new(ProbeResult::healthy("fine")));
        let (gate, probes) = (Arc::new(Semaphore::new(0)), Arc::default());
        let check = Scripted {
            verdict: Arc::clone(&verdict),
            gate: Arc::clone(&gate),
            probes: Arc::clone(&probes),
            deadline,
        };
        let flags = HealthFlags {
            unhealthy_status,
            grace,
            admin: AdminFlags::default(),
            drain: DrainFlags {
                drain_timeout: Duration::ZERO,
            },
        };
        let sandbox = tempfile::tempdir().unwrap();
        let (sender, quits) = mpsc::channel(2);
        Self {
            monitor: Arc::new(HealthMonitor::new(check, sandbox.path(), &flags, sender)),
            verdict,
            gate,
            probes,
            quits,
            sandbox,
        }
    }

    fn finds(&self, verdict: ProbeResult) {
        *self.verdict.lock().unwrap() = verdict;
    }

    /// A check that waits for its probe.
    fn ask(&self) -> JoinHandle<RouteResponse> {
        tokio::spawn(Arc::clone(&self.monitor).health())
    }

    async fn health(&self) -> RouteResponse {
        self.gate.add_permits(1);
        let reply = Arc::clone(&self.monitor).health().await;
        self.gate.forget_permits(1);
        reply
    }

    fn probes(&self) -> usize {
        self.probes.load(Ordering::SeqCst)
    }

    fn reasons(&self) -> Vec<String> {
        let history = self.monitor.history();
        let verdicts = history["verdicts"].as_array().unwrap().iter();
        verdicts
            .map(|verdict| verdict["reason"].as_str().unwrap().to_owned())
            .collect()
    }
}

const REFUSED: HealthReason = HealthReason::word("refused");

fn refused() -> ProbeResult {
    ProbeResult::unhealthy(REFUSED, "nobody listens on 127.0.0.1:1")
}

fn ok() -> RouteResponse {
    RouteResponse::text(200, "ok")
}

fn unhealthy(reason: &str) -> RouteResponse {
    RouteResponse::text(503, reason)
}

#[tokio::test]
async fn checks_that_come_together_share_one_probe_and_the_next_has_its_own() {
    let rig = Rig::new(Duration::ZERO);
    let checks: Vec<_> = (0..100).map(|_| rig.ask()).collect();
    while rig.probes() == 0 {
        tokio::task::yield_now().await;
    }
    rig.gate.add_permits(1);
    for check in checks {
        assert_eq!(check.await.unwrap(), ok());
    }
    assert_eq!(rig.probes(), 1);
    assert_eq!(rig.health().await, ok());
    assert_eq!(rig.probes(), 2);
}

#[tokio::test]
async fn a_probe_ends_although_whoever_asked_has_left() {
    let rig = Rig::new(Duration::ZERO);
    let check = rig.ask();
    while rig.probes() == 0 {
        tokio::task::yield_now().await;
    }
    check.abort();
    assert!(check.await.unwrap_err().is_cancelled());
    let second = rig.ask();
    rig.finds(refused());
    rig.gate.add_permits(1);
    assert_eq!(second.await.unwrap(), unhealthy("refused"));
    assert_eq!(rig.probes(), 1);
    assert_eq!(rig.reasons(), ["refused"]);
}

#[tokio::test]
async fn a_probe_that_does_not_end_is_a_timeout() {
    let rig = Rig::with(
        Duration::ZERO,
        UnhealthyStatus::Unavailable,
        Duration::from_millis(5),
    );
    assert_eq!(
        Arc::clone(&rig.monitor).health().await,
        unhealthy("timeout"),
        "nobody opens the gate"
    );
}

#[tokio::test]
async fn a_probe_that_panics_is_sick_and_the_next_one_looks_again() {
    let rig = Rig::new(Duration::ZERO);
    rig.finds(ProbeResult::unhealthy(HealthReason::ERROR, "panic"));
    assert_eq!(rig.health().await, unhealthy("error"));
    rig.finds(ProbeResult::healthy("fine"));
    assert_eq!(rig.health().await, ok());
}

#[tokio::test]
async fn the_reason_is_the_whole_body_and_its_status_is_chosen() {
    let deadline = Duration::from_secs(60);
    let rig = Rig::with(Duration::ZERO, UnhealthyStatus::Ok, deadline);
    rig.finds(refused());
    assert_eq!(rig.health().await, RouteResponse::text(200, "refused"));
    rig.finds(ProbeResult::unhealthy(
        HealthReason::status(302),
        "to /login",
    ));
    assert_eq!(rig.health().await, RouteResponse::text(200, "http302"));
}

#[tokio::test]
async fn grace_lasts_until_the_first_success_or_its_end() {
    let rig = Rig::new(Duration::from_secs(3600));
    rig.finds(refused());
    assert_eq!(rig.health().await, ok());
    rig.finds(ProbeResult::healthy("fine"));
    assert_eq!(rig.health().await, ok());
    rig.finds(refused());
    assert_eq!(
        rig.health().await,
        unhealthy("refused"),
        "it was healthy once"
    );
    assert_eq!(rig.reasons(), ["refused", "ok", "refused"]);
    let verdicts = rig.monitor.history()["verdicts"].take();
    assert_eq!(
        (&verdicts[0]["ok"], &verdicts[2]["ok"]),
        (&json!(false), &json!(true))
    );

    let rig = Rig::new(Duration::from_nanos(1));
    rig.finds(refused());
    assert_eq!(
        rig.health().await,
        unhealthy("refused"),
        "the grace is over"
    );
}

#[tokio::test]
async fn a_snoozed_task_is_not_probed() {
    let rig = Rig::new(Duration::ZERO);
    let file = rig.sandbox.path().join(SNOOZE_FILE);
    std::fs::write(&file, "").unwrap();
    rig.finds(refused());
    for _ in 0..3 {
        assert_eq!(rig.health().await, ok());
    }
    assert_eq!(rig.probes(), 0);
    assert_eq!(
        rig.reasons(),
        ["snoozed"],
        "it does not push out the others"
    );
    std::fs::remove_file(file).unwrap();
    assert_eq!(rig.health().await, unhealthy("refused"));
}

#[tokio::test]
async fn after_quit_nothing_is_probed_and_each_kind_is_passed_on_once() {
    let (mut rig, mut told) = (Rig::new(Duration::from_secs(3600)), Vec::new());
    std::fs::write(rig.sandbox.path().join(SNOOZE_FILE), "").unwrap();
    for how in [
        ShutdownRequest::Quit,
        ShutdownRequest::Quit,
        ShutdownRequest::Abort,
        ShutdownRequest::Quit,
        ShutdownRequest::Abort,
    ] {
        rig.monitor.shut_down(how);
        told.extend(rig.quits.try_recv());
    }
    assert_eq!(told, [ShutdownRequest::Quit, ShutdownRequest::Abort]);
    assert_eq!(rig.health().await, unhealthy("quit"), "not even if snoozed");
    assert_eq!(rig.probes(), 0);
}

#[tokio::test]
async fn a_probe_under_way_when_told_to_quit_says_quit() {
    let rig = Rig::new(Duration::ZERO);
    let check = rig.ask();
    while rig.probes() == 0 {
        tokio::task::yield_now().await;
    }
    rig.monitor.shut_down(ShutdownRequest::Quit);
    rig.gate.add_permits(1);
    assert_eq!(check.await.unwrap(), unhealthy("quit"));
}

#[tokio::test]
async fn counts_add_up() {
    let rig = Rig::new(Duration::ZERO);
    rig.health().await;
    rig.finds(refused());
    rig.health().await;
    rig.health().await;
    let counts = rig.monitor.state().counts;
    assert_eq!((counts.checks, counts.healthy, counts.sick), (3, 1, 2));
    assert!(counts.success.is_some());
}

#[tokio::test]
async fn both_families_are_bound_to_one_port_and_a_taken_one_is_named() {
    let (sockets, addresses) = socket::bind(0).await.unwrap();
    assert!(addresses[0].starts_with("127.0.0.1:"), "{addresses:?}");
    assert_eq!(sockets.len(), addresses.len());
    let port = addresses[0].rsplit_once(':').unwrap().1;
    if let Some(v6) = addresses.get(1) {
        assert_eq!(*v6, format!("[::1]:{port}"));
    }
    let failure = socket::bind(port.parse().unwrap()).await.unwrap_err();
    assert_eq!(failure.exit(), Exit::CANNOT_CREATE);
    let said = failure.to_string();
    assert!(
        said.contains(&addresses[0]) && said.contains("stop the process that listens there"),
        "{said}"
    );
}
