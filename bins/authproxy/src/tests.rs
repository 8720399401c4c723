//! The tables of the README are generated from the code, or compared with it.

use std::path::Path;

use crate::metrics::MetricsSnapshot;
use crate::record::Telemetry;
use crate::request_error::{PermissionsFailure, RequestError, TruncationReason, UpstreamFailure};

const REQUEST_ERRORS: [RequestError; 21] = [
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
fn readme_explains_every_reason_of_gateway_error_and_truncated_response() {
    let page = include_str!("../README.md");
    let upstream =
        UpstreamFailure::ALL.map(|failure| (RequestError::Upstream(failure), failure.warning()));
    let permissions = PermissionsFailure::ALL.map(|failure| {
        (
            RequestError::PermissionsUnavailable(failure),
            failure.warning(),
        )
    });
    let errors = upstream.into_iter().chain(permissions);
    let errors = errors.map(|(error, warning)| {
        let (reason, status) = (error.reason(), error.status().as_u16());
        format!("| `{reason}` | {status} | {warning}")
    });
    let truncations = TruncationReason::ALL.map(|reason| {
        let warning = reason.warning().unwrap_or("none");
        format!("| `{}` | truncated | {warning}", reason.as_str())
    });
    for row in errors.chain(truncations) {
        assert!(page.contains(&row), "{row}");
    }
}

/// Replaces the table between the markers of `name` in `page`.
fn replace_table(page: &str, name: &str, table: &str) -> String {
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
fn readme_has_table_of_all_metrics() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let page = std::fs::read_to_string(&file).unwrap();
    let expected = replace_table(&page, "metrics", &metrics_table());
    if std::env::var("HOSTKIT_BLESS").is_ok_and(|value| value == "1") {
        std::fs::write(&file, expected).unwrap();
    } else {
        assert!(
            page == expected,
            "the tables of {} differ from the code: HOSTKIT_BLESS=1 writes them",
            file.display()
        );
    }
}

#[test]
fn readme_explains_every_error_response_with_its_status() {
    let page = include_str!("../README.md");
    for error in REQUEST_ERRORS {
        let row = format!("| {} | `{}` | ", error.status().as_u16(), error.code());
        assert!(page.contains(&row), "{row}");
    }
    let rows = page
        .lines()
        .filter(|line| line.starts_with("| 4") || line.starts_with("| 5"));
    assert_eq!(
        rows.count(),
        REQUEST_ERRORS.len(),
        "no row without an error"
    );
}
