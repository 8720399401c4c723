//! One health check of the server: all URLs at once, one deadline for all.

use std::future::{Future as _, poll_fn};
use std::io;
use std::task::Poll;
use std::time::Duration;

use hostkit::health::{HealthReason, ProbeResult};
use hostkit::http::client::{
    self, ClientError, ClientResponse, ExchangePhase, ResponseParsing, exchange,
};
use hostkit::mask;
use hyper::Method;
use hyper::header::LOCATION;
use tokio::time::{Instant, timeout};

use crate::expectation::ExpectedBody;
use crate::settings::CheckSettings;
use crate::target::HttpTarget;

/// The part of a body that is read.
const MAX_BODY: usize = 64 << 10;
/// How long a body that decides nothing is still read: most servers log an error when a client closes before its end.
const UNUSED_BODY_TIMEOUT: Duration = Duration::from_millis(50);

const REFUSED: HealthReason = HealthReason::word("refused");
const CLOSED: HealthReason = HealthReason::word("closed");
const INVALID: HealthReason = HealthReason::word("invalid");
const BAD_BODY: HealthReason = HealthReason::word("badbody");
const DNS_FAILURE: HealthReason = HealthReason::word("dnsfail");

/// Healthy if every URL is; otherwise the result of the first one that is not.
pub(crate) async fn probe_all(settings: &CheckSettings) -> ProbeResult {
    let deadline = Instant::now() + settings.timeout;
    if settings.targets.is_empty() {
        let server = &settings.server;
        return match client::connect(server, deadline).await {
            Ok(_) => ProbeResult::healthy(format!("{server} accepts connections")),
            Err(error) => explain_failure(&error, &server.to_string(), settings),
        };
    }
    let probe = |target| Box::pin(probe_target(target, settings, deadline));
    let mut probes: Vec<_> = settings.targets.iter().map(probe).collect();
    let mut details = Vec::new();
    let all = poll_fn(|context| {
        let mut unhealthy = None;
        probes.retain_mut(|probe| match probe.as_mut().poll(context) {
            Poll::Ready(Ok(detail)) => {
                details.push(detail);
                false
            }
            Poll::Ready(Err(result)) => {
                unhealthy = Some(result);
                false
            }
            Poll::Pending => true,
        });
        match unhealthy {
            Some(result) => Poll::Ready(Err(result)),
            None if probes.is_empty() => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    });
    match all.await {
        Ok(()) => ProbeResult::healthy(details.join("; ")),
        Err(unhealthy) => unhealthy,
    }
}

/// The detail of a healthy target, or the result of an unhealthy one.
async fn probe_target(
    target: &HttpTarget,
    settings: &CheckSettings,
    deadline: Instant,
) -> Result<String, ProbeResult> {
    let request = target.request(Method::GET);
    let response = exchange(&target.address, request, ResponseParsing::Lenient, deadline);
    let shown = target.to_string();
    match response.await {
        Ok(response) => check_response(response, &shown, settings).await,
        Err(error) => Err(explain_failure(&error, &shown, settings)),
    }
}

async fn check_response(
    mut response: ClientResponse,
    shown: &str,
    settings: &CheckSettings,
) -> Result<String, ProbeResult> {
    let status = response.status.as_u16();
    let is_expected = settings.statuses.contains(status);
    let shown = format!("{shown} returned {status}");
    let Some(expected) = settings.body.as_ref().filter(|_| is_expected) else {
        let unused = response.read_body_prefix(MAX_BODY);
        let _ = timeout(UNUSED_BODY_TIMEOUT, unused).await;
        return match is_expected {
            true => Ok(shown),
            false => Err(unexpected_status(&response, &shown, settings)),
        };
    };
    match response.read_body_prefix(MAX_BODY).await {
        Ok((body, is_truncated)) if expected.accepts(&body, is_truncated) => Ok(shown),
        Ok((body, is_truncated)) => Err(unexpected_body(&shown, expected, &body, is_truncated)),
        Err(error) => Err(explain_failure(&error, &shown, settings)),
    }
}

fn unexpected_status(
    response: &ClientResponse,
    shown: &str,
    settings: &CheckSettings,
) -> ProbeResult {
    let location = response.headers.get(LOCATION);
    let location = location.and_then(|location| location.to_str().ok());
    let location = location.map(|location| format!(" to {}", mask::mask_url(location)));
    let detail = format!(
        "{shown}{}, expected {}",
        location.unwrap_or_default(),
        settings.statuses
    );
    ProbeResult::unhealthy(HealthReason::status(response.status.as_u16()), detail)
}

fn unexpected_body(
    shown: &str,
    expected: &ExpectedBody,
    body: &[u8],
    is_truncated: bool,
) -> ProbeResult {
    let start: String = String::from_utf8_lossy(body).chars().take(40).collect();
    let length = match is_truncated {
        true => " and is longer than 64 KiB",
        false => "",
    };
    let detail = format!("{shown}, its body begins {start:?}{length}, expected {expected}");
    ProbeResult::unhealthy(BAD_BODY, detail)
}

/// The result of a failed exchange with `shown`.
fn explain_failure(error: &ClientError, shown: &str, settings: &CheckSettings) -> ProbeResult {
    let limit = settings.timeout;
    let cause = error.root_cause();
    let (reason, detail) = match error {
        ClientError::Connect(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => (REFUSED, format!("{shown} refuses connections")),
            io::ErrorKind::NotFound => (DNS_FAILURE, format!("cannot resolve {shown}: {cause}")),
            _ => (
                HealthReason::ERROR,
                format!("cannot connect to {shown}: {cause}"),
            ),
        },
        ClientError::Closed(_) => (
            CLOSED,
            format!("{shown} closed the connection without a response: {cause}"),
        ),
        ClientError::InvalidResponse(_) => (
            INVALID,
            format!("{shown} sent an invalid HTTP response: {cause}"),
        ),
        ClientError::TruncatedBody(_) | ClientError::BodyTooLong(_) => {
            (CLOSED, format!("{shown}, but a truncated body: {cause}"))
        }
        ClientError::Timeout(phase) => {
            let missing = match phase {
                ExchangePhase::Connect => "did not accept the connection",
                ExchangePhase::ResponseHead => "accepted the connection, but sent no response",
                ExchangePhase::ResponseBody => "but not the whole body",
            };
            let comma = match phase {
                ExchangePhase::ResponseBody => ", ",
                _ => " ",
            };
            let detail = format!("{shown}{comma}{missing} within {limit:?}");
            (HealthReason::TIMEOUT, detail)
        }
    };
    ProbeResult::unhealthy(reason, detail)
}
