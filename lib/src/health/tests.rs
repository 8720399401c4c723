//! The monitor with a scripted check, without a network.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::*;

/// Each probe waits for a permit, and then returns this result.
struct ScriptedCheck {
    result: Arc<std::sync::Mutex<ProbeResult>>,
    permits: Arc<Semaphore>,
    probes: Arc<AtomicUsize>,
    deadline: Duration,
}

impl HealthCheck for ScriptedCheck {
    fn deadline(&self) -> Duration {
        self.deadline
    }

    async fn probe(&self) -> ProbeResult {
        self.probes.fetch_add(1, Ordering::SeqCst);
        self.permits.acquire().await.unwrap().forget();
        let result = self.result.lock().unwrap().clone();
        assert_ne!(result.detail(), "panic");
        result
    }

    async fn shut_down(&self, _: ShutdownRequest) {}
}

struct MonitorFixture {
    monitor: Arc<HealthMonitor<ScriptedCheck>>,
    result: Arc<std::sync::Mutex<ProbeResult>>,
    permits: Arc<Semaphore>,
    probes: Arc<AtomicUsize>,
    quits: mpsc::Receiver<ShutdownRequest>,
    sandbox: TempDir,
}

impl MonitorFixture {
    fn new(grace: Duration) -> Self {
        Self::with(grace, UnhealthyStatus::Unavailable, Duration::from_secs(60))
    }

    fn with(grace: Duration, unhealthy_status: UnhealthyStatus, deadline: Duration) -> Self {
        let result = Arc::new(std::sync::Mutex::new(ProbeResult::healthy("fine")));
        let (permits, probes) = (Arc::new(Semaphore::new(0)), Arc::default());
        let check = ScriptedCheck {
            result: Arc::clone(&result),
            permits: Arc::clone(&permits),
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
            result,
            permits,
            probes,
            quits,
            sandbox,
        }
    }

    fn set_result(&self, result: ProbeResult) {
        *self.result.lock().unwrap() = result;
    }

    /// A check that waits for its probe.
    fn start_check(&self) -> JoinHandle<RouteResponse> {
        tokio::spawn(Arc::clone(&self.monitor).health_response())
    }

    async fn health(&self) -> RouteResponse {
        self.permits.add_permits(1);
        let reply = Arc::clone(&self.monitor).health_response().await;
        self.permits.forget_permits(1);
        reply
    }

    fn probes(&self) -> usize {
        self.probes.load(Ordering::SeqCst)
    }

    fn reasons(&self) -> Vec<String> {
        let history = self.monitor.history_json();
        let results = history["results"].as_array().unwrap().iter();
        results
            .map(|result| result["reason"].as_str().unwrap().to_owned())
            .collect()
    }
}

const REFUSED: HealthReason = HealthReason::word("refused");

fn refused() -> ProbeResult {
    ProbeResult::unhealthy(REFUSED, "127.0.0.1:1 refuses connections")
}

fn ok() -> RouteResponse {
    RouteResponse::text(200, "ok")
}

fn unhealthy(reason: &str) -> RouteResponse {
    RouteResponse::text(503, reason)
}

#[tokio::test]
async fn checks_at_once_share_one_probe_and_the_next_check_has_its_own() {
    let fixture = MonitorFixture::new(Duration::ZERO);
    let checks: Vec<_> = (0..100).map(|_| fixture.start_check()).collect();
    while fixture.probes() == 0 {
        tokio::task::yield_now().await;
    }
    fixture.permits.add_permits(1);
    for check in checks {
        assert_eq!(check.await.unwrap(), ok());
    }
    assert_eq!(fixture.probes(), 1);
    assert_eq!(fixture.health().await, ok());
    assert_eq!(fixture.probes(), 2);
}

#[tokio::test]
async fn probe_ends_after_its_client_has_left() {
    let fixture = MonitorFixture::new(Duration::ZERO);
    let check = fixture.start_check();
    while fixture.probes() == 0 {
        tokio::task::yield_now().await;
    }
    check.abort();
    assert!(check.await.unwrap_err().is_cancelled());
    let second = fixture.start_check();
    fixture.set_result(refused());
    fixture.permits.add_permits(1);
    assert_eq!(second.await.unwrap(), unhealthy("refused"));
    assert_eq!(fixture.probes(), 1);
    assert_eq!(fixture.reasons(), ["refused"]);
}

#[tokio::test]
async fn probe_over_its_deadline_is_a_timeout() {
    let fixture = MonitorFixture::with(
        Duration::ZERO,
        UnhealthyStatus::Unavailable,
        Duration::from_millis(5),
    );
    assert_eq!(
        Arc::clone(&fixture.monitor).health_response().await,
        unhealthy("timeout"),
        "no permit"
    );
}

#[tokio::test]
async fn probe_that_panics_is_unhealthy_and_the_next_check_probes_again() {
    let fixture = MonitorFixture::new(Duration::ZERO);
    fixture.set_result(ProbeResult::unhealthy(HealthReason::ERROR, "panic"));
    assert_eq!(fixture.health().await, unhealthy("error"));
    fixture.set_result(ProbeResult::healthy("fine"));
    assert_eq!(fixture.health().await, ok());
}

#[tokio::test]
async fn reason_is_the_whole_body_under_the_chosen_status() {
    let deadline = Duration::from_secs(60);
    let fixture = MonitorFixture::with(Duration::ZERO, UnhealthyStatus::Ok, deadline);
    fixture.set_result(refused());
    assert_eq!(fixture.health().await, RouteResponse::text(200, "refused"));
    fixture.set_result(ProbeResult::unhealthy(
        HealthReason::status(302),
        "to /login",
    ));
    assert_eq!(fixture.health().await, RouteResponse::text(200, "http302"));
}

#[tokio::test]
async fn grace_lasts_until_the_first_success_or_its_end() {
    let fixture = MonitorFixture::new(Duration::from_secs(3600));
    fixture.set_result(refused());
    assert_eq!(fixture.health().await, ok());
    fixture.set_result(ProbeResult::healthy("fine"));
    assert_eq!(fixture.health().await, ok());
    fixture.set_result(refused());
    assert_eq!(
        fixture.health().await,
        unhealthy("refused"),
        "it was healthy once"
    );
    assert_eq!(fixture.reasons(), ["refused", "ok", "refused"]);
    let results = fixture.monitor.history_json()["results"].take();
    assert_eq!(
        (&results[0]["ok"], &results[2]["ok"]),
        (&json!(false), &json!(true))
    );

    let fixture = MonitorFixture::new(Duration::from_nanos(1));
    fixture.set_result(refused());
    assert_eq!(
        fixture.health().await,
        unhealthy("refused"),
        "the grace is over"
    );
}

#[tokio::test]
async fn snoozed_task_is_not_probed() {
    let fixture = MonitorFixture::new(Duration::ZERO);
    let file = fixture.sandbox.path().join(SNOOZE_FILE);
    std::fs::write(&file, "").unwrap();
    fixture.set_result(refused());
    for _ in 0..3 {
        assert_eq!(fixture.health().await, ok());
    }
    assert_eq!(fixture.probes(), 0);
    assert_eq!(
        fixture.reasons(),
        ["snoozed"],
        "it does not push out the others"
    );
    std::fs::remove_file(file).unwrap();
    assert_eq!(fixture.health().await, unhealthy("refused"));
}

#[tokio::test]
async fn no_probe_runs_after_a_shutdown_request_and_each_kind_is_forwarded_once() {
    let (mut fixture, mut forwarded) = (MonitorFixture::new(Duration::from_secs(3600)), Vec::new());
    std::fs::write(fixture.sandbox.path().join(SNOOZE_FILE), "").unwrap();
    for request in [
        ShutdownRequest::Quit,
        ShutdownRequest::Quit,
        ShutdownRequest::Abort,
        ShutdownRequest::Quit,
        ShutdownRequest::Abort,
    ] {
        fixture.monitor.accept_shutdown(request);
        forwarded.extend(fixture.quits.try_recv());
    }
    assert_eq!(forwarded, [ShutdownRequest::Quit, ShutdownRequest::Abort]);
    assert_eq!(
        fixture.health().await,
        unhealthy("quit"),
        "not even if snoozed"
    );
    assert_eq!(fixture.probes(), 0);
}

#[tokio::test]
async fn probe_under_way_at_a_shutdown_request_returns_quit() {
    let fixture = MonitorFixture::new(Duration::ZERO);
    let check = fixture.start_check();
    while fixture.probes() == 0 {
        tokio::task::yield_now().await;
    }
    fixture.monitor.accept_shutdown(ShutdownRequest::Quit);
    fixture.permits.add_permits(1);
    assert_eq!(check.await.unwrap(), unhealthy("quit"));
}

#[tokio::test]
async fn counters_add_up() {
    let fixture = MonitorFixture::new(Duration::ZERO);
    fixture.health().await;
    fixture.set_result(refused());
    fixture.health().await;
    fixture.health().await;
    let counters = fixture.monitor.state().counters;
    assert_eq!(
        (counters.checks, counters.healthy, counters.unhealthy),
        (3, 1, 2)
    );
    assert!(counters.last_success.is_some());
}

#[tokio::test]
async fn both_address_families_have_one_port_and_a_port_in_use_is_named() {
    let (sockets, addresses) = listeners::bind(0).unwrap();
    assert!(addresses[0].starts_with("127.0.0.1:"), "{addresses:?}");
    assert_eq!(sockets.len(), addresses.len());
    let port = addresses[0].rsplit_once(':').unwrap().1;
    if let Some(v6) = addresses.get(1) {
        assert_eq!(*v6, format!("[::1]:{port}"));
    }
    let failure = listeners::bind(port.parse().unwrap()).unwrap_err();
    assert_eq!(failure.exit(), Exit::CANNOT_CREATE);
    let message = failure.to_string();
    assert!(
        message.contains(&addresses[0]) && message.contains("stop the process that listens there"),
        "{message}"
    );
}
