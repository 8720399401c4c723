//! The page of metrics, and what is counted for it.

use std::sync::Arc;

use hyper::Request;
use hyper::header::HeaderValue;

use super::*;
use crate::authorizer::{AllowDecision, DenyDecision};
use crate::grant::Grant;
use crate::headers::PeerAddress;
use crate::record::Telemetry;
use crate::request_error::{RequestError, TruncationReason, UpstreamFailure};
use crate::settings::tests::site;

fn begin(telemetry: &Arc<Telemetry>) -> Record {
    let (parts, ()) = Request::new(()).into_parts();
    let site = site("");
    let client = PeerAddress::new("192.0.2.7:1".parse().unwrap(), &site);
    Record::begin(
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
) -> Record {
    let mut record = begin(telemetry);
    record.pass(&AllowDecision {
        grant: Some(grant(id)),
        route: route.map(Arc::from),
        reason,
    });
    record.answered(StatusCode::OK);
    record
}

#[track_caller]
fn shows(telemetry: &Telemetry, lines: &[&str]) {
    let text = render(&Seen::new(telemetry));
    for line in lines {
        assert!(text.lines().any(|found| found == *line), "{line}\n{text}");
    }
}

#[test]
fn a_request_is_counted_when_it_has_ended() {
    let telemetry = Arc::default();
    let mut first = passed(&telemetry, "alice", Some("/admin"), AllowReason::ValidKey);
    shows(&telemetry, &["authproxy_requests_in_flight 1"]);
    assert!(!render(&Seen::new(&telemetry)).contains("alice"));
    (first.received, first.sent) = (3, 17);
    drop(first);
    drop(passed(&telemetry, "alice", None, AllowReason::StaleGrant));
    let mut refused = begin(&telemetry);
    refused.refuse(&DenyDecision {
        refusal: RequestError::MissingRight,
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
            "authproxy_requests_total{route=\"/admin\",class=\"2xx\"} 1",
            "authproxy_requests_total{route=\"none\",class=\"2xx\"} 1",
            "authproxy_requests_total{route=\"none\",class=\"4xx\"} 1",
            "authproxy_requests_total{route=\"none\",class=\"none\"} 1",
            "authproxy_refusals_total{reason=\"missing_right\"} 1",
            "authproxy_key_requests_total{id=\"alice\",result=\"passed\"} 2",
            "authproxy_key_requests_total{id=\"alice\",result=\"refused\"} 1",
            "authproxy_unjudged_total{why=\"stale\"} 1",
            "authproxy_requests_in_flight 0",
            "authproxy_request_duration_seconds_count 4",
            "authproxy_server_duration_seconds_count 2",
            "authproxy_received_bytes_total 3",
            "authproxy_sent_bytes_total 17",
        ],
    );
    assert!(render(&Seen::new(&telemetry)).ends_with("# EOF\n"));
}

#[test]
fn a_refusal_after_the_door_keeps_the_word_and_the_status() {
    let telemetry = Arc::default();
    let mut record = passed(&telemetry, "alice", None, AllowReason::FailOpen);
    record.end(RequestError::Upstream(UpstreamFailure::Refused));
    record.cut = Some(TruncationReason::UpstreamClosed);
    drop(record);
    shows(
        &telemetry,
        &[
            "authproxy_requests_total{route=\"none\",class=\"5xx\"} 1",
            "authproxy_refusals_total{reason=\"upstream_refused\"} 1",
            "authproxy_answers_cut_total{cause=\"client_closed\"} 0",
            "authproxy_answers_cut_total{cause=\"upstream_closed\"} 1",
            "authproxy_unjudged_total{why=\"fail-open\"} 1",
        ],
    );
}

#[test]
fn ids_are_bounded() {
    let telemetry = Arc::default();
    for number in 0..IDS + 10 {
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
            "authproxy_key_requests_total{id=\"id3\",result=\"passed\"} 2",
            "authproxy_key_requests_total{id=\"other\",result=\"passed\"} 10",
        ],
    );
}

#[test]
fn times_fall_into_buckets() {
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
fn a_name_cannot_break_out_of_its_line() {
    let telemetry = Arc::default();
    drop(passed(
        &telemetry,
        "a\"} 1\nevil 1",
        None,
        AllowReason::ValidKey,
    ));
    let text = render(&Seen::new(&telemetry));
    assert!(!text.lines().any(|line| line.starts_with("evil")), "{text}");
}

#[test]
fn names_follow_the_conventions_and_are_told_on_the_page() {
    let page = markdown();
    for line in page.lines().skip(2) {
        let mut cells = line.split(" | ");
        let name = cells.next().unwrap().trim_matches(['|', ' ', '`']);
        let kind = cells.next().unwrap();
        assert!(name.starts_with("authproxy_"), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        assert!(kind != "histogram" || name.ends_with("_seconds"), "{name}");
        assert!(
            !line.ends_with(". |"),
            "{name}: the page adds the full stop"
        );
    }
}
