//! The operator's page says what the program does: its tables are made from the code, or compared with it.

use std::path::Path;

use crate::metrics::MetricsSnapshot;
use crate::record::Telemetry;
use crate::request_error::{PermissionsFailure, RequestError, TruncationReason, UpstreamFailure};

/// Every reason for a refusal.
const REFUSALS: [RequestError; 21] = [
    RequestError::InvalidRequest("x"),
    RequestError::AmbiguousKey,
    RequestError::AmbiguousPath,
    RequestError::AmbiguousHost,
    RequestError::MissingKey,
    RequestError::UnknownKey,
    RequestError::ExpiredKey,
    RequestError::MissingRight,
    RequestError::HostNotAllowed,
    RequestError::PathNotAllowed,
    RequestError::MethodNotAllowed,
    RequestError::RequestTimeout,
    RequestError::BodyTooLarge,
    RequestError::UnsupportedExpectation,
    RequestError::TooManyRequests,
    RequestError::HeadTooLarge,
    RequestError::NotImplemented,
    RequestError::Upstream(UpstreamFailure::Refused),
    RequestError::PermissionsUnavailable(PermissionsFailure::Failed),
    RequestError::Upstream(UpstreamFailure::QueueFull),
    RequestError::Upstream(UpstreamFailure::ResponseTimeout),
];

#[test]
fn page_explains_every_cause_of_a_gateway_error_and_of_a_truncated_response() {
    let page = include_str!("../README.md");
    let upstream =
        UpstreamFailure::ALL.map(|failure| (RequestError::Upstream(failure), failure.warning()));
    let engine = PermissionsFailure::ALL.map(|failure| {
        (
            RequestError::PermissionsUnavailable(failure),
            failure.warning(),
        )
    });
    let refusals = upstream.into_iter().chain(engine);
    let refusals = refusals.map(|(refusal, event)| {
        let (cause, status) = (refusal.reason(), refusal.status().as_u16());
        format!("| `{cause}` | {status} | {event}")
    });
    let cuts = TruncationReason::ALL.map(|cause| {
        let event = cause.warning().unwrap_or("none");
        format!("| `{}` | truncated | {event}", cause.as_str())
    });
    for row in refusals.chain(cuts) {
        assert!(page.contains(&row), "{row}");
    }
}

/// Puts `table` between the markers of `name` in `page`.
fn with(page: &str, name: &str, table: &str) -> String {
    let start = format!("<!-- {name}: generated, see CONTRIBUTING.md -->\n");
    let end = format!("<!-- end of {name} -->");
    let (before, rest) = page.split_once(&start).unwrap();
    let (_, after) = rest.split_once(&end).unwrap();
    format!("{before}{start}\n{}\n\n{end}{after}", table.trim())
}

fn metrics_table() -> String {
    let telemetry = Telemetry::default();
    hostkit::metrics::markdown(&MetricsSnapshot::new(&telemetry).families())
}

#[test]
fn page_has_the_metrics_that_there_are() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let page = std::fs::read_to_string(&file).unwrap();
    let wanted = with(&page, "metrics", &metrics_table());
    if std::env::var("HOSTKIT_BLESS").is_ok_and(|value| value == "1") {
        std::fs::write(&file, wanted).unwrap();
    } else {
        assert!(
            page == wanted,
            "the tables of {} differ from the code: HOSTKIT_BLESS=1 writes them",
            file.display()
        );
    }
}

#[test]
fn the_page_explains_every_refusal_with_its_status() {
    let page = include_str!("../README.md");
    for refusal in REFUSALS {
        let row = format!("| {} | `{}` | ", refusal.status().as_u16(), refusal.code());
        assert!(page.contains(&row), "{row}");
    }
    let rows = page
        .lines()
        .filter(|line| line.starts_with("| 4") || line.starts_with("| 5"));
    assert_eq!(
        rows.count(),
        REFUSALS.len(),
        "no row of a refusal that there is not"
    );
}
