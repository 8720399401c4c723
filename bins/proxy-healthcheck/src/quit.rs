//! The end of the task: siblings stop taking requests, the server is told as Aurora would have told it, and its port is
//! watched until nobody listens there.

use std::error::Error;
use std::future::ready;
use std::io;
use std::time::Duration;

use hostkit::backoff::Backoff;
use hostkit::health::ShutdownRequest;
use hostkit::http::HostPort;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Response, StatusCode};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::exchange::exchange;
use crate::settings::Settings;
use crate::target::{Notify, Target};

/// How long one of them may take to say that it has heard.
const DEADLINE: Duration = Duration::from_millis(800);
/// What the admin listener behind a socket file is told.
const DRAIN: &str = "/drain";
/// Between two looks at the server's port, at least and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// Ends when the server's port refuses.
pub(crate) async fn quit(settings: &Settings, how: ShutdownRequest) {
    // The siblings first: what they have taken still needs the server.
    let mut siblings = JoinSet::new();
    for notify in settings.notify.clone() {
        siblings.spawn(async move { notify_of_the_end(&notify).await });
    }
    while siblings.join_next().await.is_some() {}
    // A server that does not speak HTTP has no such path.
    if let Some(first) = settings.targets.first() {
        let server = Notify::Http(Target {
            endpoint: settings.server.clone(),
            path: PathAndQuery::from_static(how.path()),
            host_header: first.host_header.clone(),
        });
        notify_of_the_end(&server).await;
    }
    let mut backoff = Backoff::new(LOOK.0, LOOK.1);
    while is_there(&settings.server).await {
        sleep(backoff.next_delay()).await;
    }
    tracing::info!("nobody listens on {} any more", settings.server);
}

/// Whether anybody listens there: whoever does not even refuse is there.
async fn is_there(server: &HostPort) -> bool {
    let connected = timeout(DEADLINE, server.connect()).await;
    !matches!(connected, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Posts, and logs what came of it: nothing follows from that.
async fn notify_of_the_end(whom: &Notify) {
    match timeout(DEADLINE, post(whom)).await {
        Ok(Ok(status)) if status.is_success() => tracing::info!("told {whom}"),
        Ok(Ok(status)) => tracing::info!("{whom} cannot be told: it answered {}", status.as_u16()),
        Ok(Err(error)) => tracing::warn!(error, "could not tell {whom}"),
        Err(_) => tracing::warn!("{whom} did not say within {DEADLINE:?} that it has heard"),
    }
}

async fn post(whom: &Notify) -> Result<StatusCode, Box<dyn Error + Send + Sync>> {
    let status = |answer: Response<Incoming>| ready(answer.status());
    let answered = match whom {
        Notify::Http(target) => {
            let stream = target.endpoint.connect().await?;
            exchange(
                stream,
                Method::POST,
                &target.path,
                &target.host_header,
                status,
            )
            .await
        }
        Notify::Unix(path) => {
            let stream = UnixStream::connect(path).await?;
            let (path, host) = (
                PathAndQuery::from_static(DRAIN),
                HeaderValue::from_static("localhost"),
            );
            exchange(stream, Method::POST, &path, &host, status).await
        }
    };
    Ok(answered?)
}
