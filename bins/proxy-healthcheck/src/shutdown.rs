//! The end of the task: siblings stop accepting requests, the server gets Aurora's request, and its port is polled until
//! it refuses connections.

use std::io;
use std::time::Duration;

use hostkit::backoff::Backoff;
use hostkit::health::ShutdownRequest;
use hostkit::http::ServerAddress;
use hostkit::http::client::{ResponseParsing, exchange};
use hyper::Method;
use hyper::http::uri::PathAndQuery;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::settings::CheckSettings;
use crate::target::HttpTarget;

/// The deadline of one notification, and of one look at the server's port.
const TIMEOUT: Duration = Duration::from_millis(800);
/// The shortest and the longest delay between two looks at the server's port.
const POLL_DELAY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// Ends when the server's port refuses connections.
pub(crate) async fn shut_down(settings: &CheckSettings, request: ShutdownRequest) {
    // Siblings first: the requests that they have accepted still need the server.
    let mut siblings = JoinSet::new();
    for target in settings.notify.clone() {
        siblings.spawn(async move { notify(&target).await });
    }
    while siblings.join_next().await.is_some() {}
    // A server without HTTP, which is only connected to, has no such endpoint.
    if let Some(first) = settings.targets.first() {
        let server = HttpTarget {
            address: settings.server.clone(),
            path: PathAndQuery::from_static(request.path()),
            host_header: first.host_header.clone(),
        };
        notify(&server).await;
    }
    let mut backoff = Backoff::new(POLL_DELAY.0, POLL_DELAY.1);
    while is_listening(&settings.server).await {
        sleep(backoff.next_delay()).await;
    }
    tracing::info!(server = %settings.server, "server port closed");
}

/// A server that neither accepts nor refuses is listening: its backlog is full.
async fn is_listening(server: &ServerAddress) -> bool {
    let connected = timeout(TIMEOUT, server.connect()).await;
    !matches!(connected, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Posts, and logs the outcome: nothing depends on it.
async fn notify(target: &HttpTarget) {
    let request = target.request(Method::POST);
    let deadline = Instant::now() + TIMEOUT;
    let response = exchange(&target.address, request, ResponseParsing::Lenient, deadline);
    let url = target.to_string();
    match response.await {
        Ok(response) if response.status.is_success() => {
            tracing::info!(url, "shutdown notification accepted");
        }
        Ok(response) => {
            let status = response.status.as_u16();
            tracing::info!(url, status, "shutdown notification rejected");
        }
        Err(error) => tracing::warn!(url, %error, "shutdown notification failed"),
    }
}
