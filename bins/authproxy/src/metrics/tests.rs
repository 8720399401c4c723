//! What a finished request adds to `/metrics`.

use std::sync::Arc;

use hostkit::metrics::MetricSamples;
use hyper::Request;
use hyper::header::HeaderValue;

use super::*;
use crate::authorizer::{AllowDecision, DenyDecision};
use crate::grant::Grant;
use crate::headers::PeerAddress;
use crate::record::Telemetry;
use crate::request_error::{RequestError, TruncationReason, UpstreamFailure};
use crate::settings::tests::site;

fn begin(telemetry: &Arc<Telemetry>) -> RequestRecord {
    let (parts, ()) = Request::new(()).into_parts();
    let site = site("");
    let client = PeerAddress::new("192.0.2.7:1".parse().unwrap(), &site);
    RequestRecord::begin(
        telemetry,
        &site,
        &parts,
        &client,
        HeaderValue::from_static("id7"),
    )
}

fn grant(id: &str) -> Arc<Grant> {
    Arc::new(Grant {
        id: id.to_owned(),
        rights: Vec::new(),
        hosts: Vec::new(),
        paths: Vec::new(),
        methods: Vec::new(),
        expires: None,
    })
}

fn passed(
    telemetry: &Arc<Telemetry>,
    id: &str,
    route: Option<&str>,
    reason: AllowReason,
) -> RequestRecord {
    let mut record = begin(telemetry);
    record.allow(&AllowDecision {
        grant: Some(grant(id)),
        route: route.map(Arc::from),
        reason,
    });
    record.respond(StatusCode::OK);
    record
}

#[track_caller]
fn shows(telemetry: &Telemetry, lines: &[&str]) {
    let text = MetricsSnapshot::new(telemetry).render();
    for line in lines {
        assert!(text.lines().any(|found| found == *line), "{line}\n{text}");
    }
}

#[test]
fn request_is_counted_once_it_has_ended() {
    let telemetry = Arc::default();
    let mut first = passed(&telemetry, "alice", Some("/admin"), AllowReason::ValidKey);
    shows(&telemetry, &["authproxy_requests_in_flight 1"]);
    assert!(!MetricsSnapshot::new(&telemetry).render().contains("alice"));
    (first.bytes_in, first.bytes_out) = (3, 17);
    drop(first);
    drop(passed(&telemetry, "alice", None, AllowReason::StaleGrant));
    let mut refused = begin(&telemetry);
    refused.deny(&DenyDecision {
        error: RequestError::MissingRight,
        detail: None,
        grant: Some(grant("alice")),
        key: None,
        route: None,
        required_rights: Box::default(),
    });
    drop(refused);
    drop(begin(&telemetry));
    shows(
        &telemetry,
        &[
            "# TYPE authproxy_requests counter",
            "authproxy_requests_total{route=\"/admin\",code=\"2xx\"} 1",
            "authproxy_requests_total{route=\"none\",code=\"2xx\"} 1",
            "authproxy_requests_total{route=\"none\",code=\"4xx\"} 1",
            "authproxy_requests_total{route=\"none\",code=\"none\"} 1",
            "authproxy_error_responses_total{reason=\"missing_right\"} 1",
            "authproxy_key_requests_total{id=\"alice\",result=\"allowed\"} 2",
            "authproxy_key_requests_total{id=\"alice\",result=\"denied\"} 1",
            "authproxy_unauthenticated_requests_total{reason=\"stale\"} 1",
            "authproxy_requests_in_flight 0",
            "authproxy_request_duration_seconds_count 4",
            "authproxy_upstream_response_duration_seconds_count 2",
            "authproxy_request_body_bytes_total 3",
            "authproxy_response_body_bytes_total 17",
        ],
    );
    assert!(
        MetricsSnapshot::new(&telemetry)
            .render()
            .ends_with("# EOF\n")
    );
}

#[test]
fn failure_after_authorization_is_counted_by_its_reason_and_status() {
    let telemetry = Arc::default();
    let mut record = passed(&telemetry, "alice", None, AllowReason::FailOpen);
    record.fail(RequestError::Upstream(UpstreamFailure::Refused));
    record.truncation = Some(TruncationReason::UpstreamClosed);
    drop(record);
    shows(
        &telemetry,
        &[
            "authproxy_requests_total{route=\"none\",code=\"5xx\"} 1",
            "authproxy_error_responses_total{reason=\"upstream_refused\"} 1",
            "authproxy_truncated_responses_total{reason=\"client_closed\"} 0",
            "authproxy_truncated_responses_total{reason=\"upstream_closed\"} 1",
            "authproxy_unauthenticated_requests_total{reason=\"fail_open\"} 1",
        ],
    );
}

#[test]
fn key_ids_beyond_the_limit_are_counted_as_other() {
    let telemetry = Arc::default();
    for number in 0..MAX_KEY_IDS + 10 {
        drop(passed(
            &telemetry,
            &format!("id{number}"),
            None,
            AllowReason::ValidKey,
        ));
    }
    drop(passed(&telemetry, "id3", None, AllowReason::ValidKey));
    shows(
        &telemetry,
        &[
            "authproxy_key_requests_total{id=\"id3\",result=\"allowed\"} 2",
            "authproxy_key_requests_total{id=\"other\",result=\"allowed\"} 10",
        ],
    );
}

#[test]
fn durations_are_counted_in_every_bucket_above_them() {
    let telemetry = Telemetry::default();
    for micros in [1, 250, 251, 20_000, 90_000_000] {
        telemetry
            .metrics
            .duration
            .observe(Duration::from_micros(micros));
    }
    shows(
        &telemetry,
        &[
            "authproxy_request_duration_seconds_bucket{le=\"0.00025\"} 2",
            "authproxy_request_duration_seconds_bucket{le=\"0.0005\"} 3",
            "authproxy_request_duration_seconds_bucket{le=\"0.025\"} 4",
            "authproxy_request_duration_seconds_bucket{le=\"15.0\"} 4",
            "authproxy_request_duration_seconds_bucket{le=\"+Inf\"} 5",
        ],
    );
}

#[test]
fn names_follow_the_conventions_and_help_is_a_sentence() {
    let telemetry = Telemetry::default();
    for family in MetricsSnapshot::new(&telemetry).families() {
        let (name, help) = (family.name, family.help);
        assert!(name.starts_with("authproxy_"), "{name}");
        let is_counter = matches!(family.samples, MetricSamples::Counters(_));
        assert_eq!(name.ends_with("_total"), is_counter, "{name}");
        let is_time = matches!(
            family.samples,
            MetricSamples::Histogram(..) | MetricSamples::Seconds(_)
        );
        assert_eq!(name.ends_with("_seconds"), is_time, "{name}");
        assert!(help.ends_with('.'), "{name}: {help}");
    }
}
