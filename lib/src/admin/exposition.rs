//! The two formats of `/metrics`: OpenMetrics 1.0, which every daemon writes, and Prometheus' text format 0.0.4, into
//! which it is converted for clients that do not accept OpenMetrics.
//!
//! Owns the choice by the `Accept` header, and the conversion: the samples are the same, names and types of families
//! differ.

use std::collections::HashMap;

use crate::http::server::RouteResponse;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The response to `GET /metrics`.
pub(super) fn metrics_response(open_metrics: String, accept: &str) -> RouteResponse {
    match prefers_open_metrics(accept) {
        true => RouteResponse::new(200, OPEN_METRICS, open_metrics),
        false => RouteResponse::new(200, PROMETHEUS, to_prometheus(&open_metrics)),
    }
}

/// Whether OpenMetrics is accepted, and plain text not preferred to it (RFC 9110 section 12.5.1).
fn prefers_open_metrics(accept: &str) -> bool {
    let mut open = 0.0;
    // The most specific range decides about plain text: those of one kind in the order of their weight.
    let mut plain = [None, None, None];
    for range in accept.split(',') {
        let mut parts = range
            .split(';')
            .map(|part| part.trim().to_ascii_lowercase());
        let name = parts.next().unwrap_or_default();
        let parameters: HashMap<String, String> = parts
            .filter_map(|part| {
                let (name, value) = part.split_once('=')?;
                Some((
                    name.trim().to_owned(),
                    value.trim().trim_matches('"').to_owned(),
                ))
            })
            .collect();
        let weight: f32 = match parameters.get("q") {
            Some(weight) => weight.parse().unwrap_or(0.0),
            None => 1.0,
        };
        let version = parameters.get("version").map(String::as_str);
        let kind = match (name.as_str(), version) {
            ("application/openmetrics-text", None | Some("1.0.0")) => {
                open = weight.max(open);
                continue;
            }
            ("text/plain", None | Some("0.0.4")) => 0,
            ("text/*", _) => 1,
            ("*/*", _) => 2,
            _ => continue,
        };
        plain[kind] = Some(weight.max(plain[kind].unwrap_or(0.0)));
    }
    let plain = plain.into_iter().flatten().next().unwrap_or(0.0);
    open > 0.0 && open >= plain
}

/// Converts to Prometheus text of format 0.0.4, where a family has the name of its samples.
fn to_prometheus(open_metrics: &str) -> String {
    let parse_type = |line: &str| -> Option<(String, String)> {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        Some((name.to_owned(), kind.to_owned()))
    };
    let kinds: HashMap<String, String> = open_metrics.lines().filter_map(parse_type).collect();
    let family = |name: &str| match kinds.get(name).map(String::as_str) {
        Some("counter") => format!("{name}_total"),
        Some("info") => format!("{name}_info"),
        _ => name.to_owned(),
    };
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("EOF" | "UNIT"), ..) => continue,
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let kind = match kind {
                    "info" | "stateset" => "gauge",
                    "unknown" => "untyped",
                    kind => kind,
                };
                text.push_str(&format!("# TYPE {} {kind}", family(name)));
            }
            (Some("#"), Some("HELP"), Some(name), help) => {
                let help = help.unwrap_or_default();
                text.push_str(&format!("# HELP {} {help}", family(name)));
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_served_if_it_is_accepted_and_preferred() {
        for (accept, open) in [
            ("", false),
            ("*/*", false),
            ("text/html,application/xml;q=0.9,*/*;q=0.8", false),
            ("application/openmetrics-text", true),
            (
                "Application/OpenMetrics-Text; Version=\"1.0.0\"; charset=utf-8",
                true,
            ),
            ("application/openmetrics-text;version=2.0.0", false),
            ("application/openmetrics-text;q=0, text/plain", false),
            ("application/openmetrics-text;q=x", false),
            ("text/plain;version=0.0.4", false),
            (
                "text/plain;version=0.0.4;q=1,application/openmetrics-text;q=0.5",
                false,
            ),
            (
                "application/openmetrics-text;q=0.5,text/plain;q=0.4,*/*;q=0.9",
                true,
            ),
            (
                "application/openmetrics-text;q=0.5,text/*;q=0.6,*/*;q=0.1",
                false,
            ),
            // Prometheus 2.42 and 3.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                 text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                true,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                 application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
                 text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                true,
            ),
        ] {
            assert_eq!(prefers_open_metrics(accept), open, "{accept}");
        }
    }

    #[test]
    fn families_get_the_names_of_their_samples() {
        let open = "\
# HELP jobs Jobs # TYPE of all kinds.
# TYPE jobs counter
# UNIT wait_seconds seconds
jobs_total{kind=\"# EOF\"} 3
# TYPE wait_seconds histogram
# HELP wait_seconds Waiting.
wait_seconds_bucket{le=\"+Inf\"} 1
# TYPE up gauge
up 1
# TYPE build info
build_info{v=\"1\"} 1
# TYPE odd unknown
odd 7
# EOF
";
        let prometheus = "\
# HELP jobs_total Jobs # TYPE of all kinds.
# TYPE jobs_total counter
jobs_total{kind=\"# EOF\"} 3
# TYPE wait_seconds histogram
# HELP wait_seconds Waiting.
wait_seconds_bucket{le=\"+Inf\"} 1
# TYPE up gauge
up 1
# TYPE build_info gauge
build_info{v=\"1\"} 1
# TYPE odd untyped
odd 7
";
        assert_eq!(to_prometheus(open), prometheus);
    }
}
