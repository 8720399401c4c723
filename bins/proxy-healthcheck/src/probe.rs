//! One check of the server: every URL at once, one deadline for all.

use std::future::{Future as _, poll_fn};
use std::io;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use hostkit::health::{HealthReason, ProbeResult};
use hostkit::http::HostPort;
use hostkit::mask;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::LOCATION;
use hyper::{Method, Response};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::exchange::exchange;
use crate::expect::Body;
use crate::settings::Settings;
use crate::target::Target;

/// How much of a body is looked at.
const BODY: usize = 64 << 10;
/// How long a body that nobody wants to see is waited for once the status has decided: most servers complain in their
/// log of a client that leaves before.
const COURTESY: Duration = Duration::from_millis(50);

const REFUSED: HealthReason = HealthReason::word("refused");
const CLOSED: HealthReason = HealthReason::word("closed");
const GARBAGE: HealthReason = HealthReason::word("garbage");
const BAD_BODY: HealthReason = HealthReason::word("badbody");
const NO_NAME: HealthReason = HealthReason::word("noname");

/// Healthy if every URL is; otherwise what the first one to be sick has.
pub(crate) async fn all(settings: &Settings) -> ProbeResult {
    let deadline = Instant::now() + settings.timeout;
    if settings.targets.is_empty() {
        let found = open(&settings.server, settings, deadline).await;
        return found.map_or_else(
            |sick| sick,
            |_| ProbeResult::healthy(format!("{} accepts", settings.server)),
        );
    }
    let probe = |target| Box::pin(one(target, settings, deadline));
    let mut probes: Vec<_> = settings.targets.iter().map(probe).collect();
    let mut seen = Vec::new();
    let ended = poll_fn(|context| {
        let mut sick = None;
        probes.retain_mut(|probe| match probe.as_mut().poll(context) {
            Poll::Ready(found) => {
                found.map_or_else(|verdict| sick = Some(verdict), |what| seen.push(what));
                false
            }
            Poll::Pending => true,
        });
        match sick {
            Some(sick) => Poll::Ready(Err(sick)),
            None if probes.is_empty() => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    });
    match ended.await {
        Ok(()) => ProbeResult::healthy(seen.join("; ")),
        Err(sick) => sick,
    }
}

/// What a healthy target answered, or why it is sick.
async fn one(
    target: &Target,
    settings: &Settings,
    deadline: Instant,
) -> Result<String, ProbeResult> {
    let stream = open(&target.endpoint, settings, deadline).await?;
    let judged = exchange(
        stream,
        Method::GET,
        &target.path,
        &target.host_header,
        |answer| judge(answer, target, settings, deadline),
    );
    match timeout_at(deadline, judged).await {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(error)) => {
            let (reason, what) = if error.is_parse() {
                (GARBAGE, "did not answer in HTTP")
            } else {
                (CLOSED, "closed the connection without an answer")
            };
            Err(ProbeResult::unhealthy(
                reason,
                format!("{target} {what}: {}", causes(&error)),
            ))
        }
        Err(_) => Err(late(
            format!("{target} took the connection, but did not answer"),
            settings,
        )),
    }
}

async fn open(
    endpoint: &HostPort,
    settings: &Settings,
    deadline: Instant,
) -> Result<TcpStream, ProbeResult> {
    match timeout_at(deadline, endpoint.connect()).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                ProbeResult::unhealthy(REFUSED, format!("nobody listens on {endpoint}"))
            }
            io::ErrorKind::NotFound => {
                ProbeResult::unhealthy(NO_NAME, format!("{endpoint} has no address: {error}"))
            }
            _ => ProbeResult::unhealthy(
                HealthReason::ERROR,
                format!("cannot connect to {endpoint}: {error}"),
            ),
        }),
        Err(_) => Err(late(
            format!("{endpoint} did not take the connection"),
            settings,
        )),
    }
}

fn late(what: String, settings: &Settings) -> ProbeResult {
    ProbeResult::unhealthy(
        HealthReason::TIMEOUT,
        format!("{what} within {:?}", settings.timeout),
    )
}

async fn judge(
    answer: Response<Incoming>,
    target: &Target,
    settings: &Settings,
    deadline: Instant,
) -> Result<String, ProbeResult> {
    let (head, body) = answer.into_parts();
    let status = head.status.as_u16();
    let shown = format!("{target} answered {status}");
    let Some(expected) = settings
        .body
        .as_ref()
        .filter(|_| settings.statuses.contains(status))
    else {
        // Whatever becomes of the body, the verdict stands.
        let _ = timeout_at(deadline.min(Instant::now() + COURTESY), read(body)).await;
        if settings.statuses.contains(status) {
            return Ok(shown);
        }
        let location = head
            .headers
            .get(LOCATION)
            .and_then(|location| location.to_str().ok());
        let location = location.map(|location| format!(" to {}", mask::mask_url(location)));
        let detail = format!(
            "{shown}{}, expected {}",
            location.unwrap_or_default(),
            settings.statuses
        );
        return Err(ProbeResult::unhealthy(HealthReason::status(status), detail));
    };
    match timeout_at(deadline, read(body)).await {
        Ok(Ok((body, is_cut))) if expected.accepts(&body, is_cut) => Ok(shown),
        Ok(Ok((body, is_cut))) => Err(bad_body(&shown, expected, &body, is_cut)),
        Ok(Err(error)) => Err(ProbeResult::unhealthy(
            CLOSED,
            format!("{shown}, but its body broke off: {}", causes(&error)),
        )),
        Err(_) => Err(late(format!("{shown}, but its body did not end"), settings)),
    }
}

fn bad_body(shown: &str, expected: &Body, body: &[u8], is_cut: bool) -> ProbeResult {
    let begins: String = String::from_utf8_lossy(body).chars().take(40).collect();
    let long = if is_cut {
        " and is longer than 64 KiB"
    } else {
        ""
    };
    ProbeResult::unhealthy(
        BAD_BODY,
        format!("{shown}, its body begins {begins:?}{long}, expected {expected}"),
    )
}

/// The body, or as much of it as is looked at, and whether there is more.
async fn read(mut body: Incoming) -> hyper::Result<(Vec<u8>, bool)> {
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let data: Bytes = frame?.into_data().unwrap_or_default();
        let room = BODY - read.len();
        read.extend_from_slice(&data[..data.len().min(room)]);
        if data.len() > room {
            return Ok((read, true));
        }
    }
    Ok((read, false))
}

/// The innermost cause, which says most.
fn causes(error: &hyper::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
