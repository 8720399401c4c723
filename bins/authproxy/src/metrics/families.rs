//! The list of all metrics, in the order of the operator's page, with their numbers as they are now.

use std::time::Duration;

use super::page::{Family, Samples, labelled};
use super::{Classes, Count, NO_ROUTE};
use crate::cache::Snapshot;
use crate::permissions::{BackendStatus, BreakerState, ServerStatus};
use crate::record::Telemetry;
use crate::request_error::TruncationReason;

/// What is looked at for one page.
#[derive(Debug)]
pub struct Seen<'a> {
    /// What requests have left.
    pub telemetry: &'a Telemetry,
    /// What the permissions engine tells of itself.
    pub engine: BackendStatus,
    /// What the cache has done.
    pub cache: Snapshot,
    /// Told to end.
    pub draining: bool,
}

impl<'a> Seen<'a> {
    /// With nothing but what requests have left.
    #[must_use]
    pub fn new(telemetry: &'a Telemetry) -> Self {
        Self {
            telemetry,
            engine: BackendStatus::default(),
            cache: Snapshot::default(),
            draining: false,
        }
    }
}

fn family(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    samples: impl Into<Samples>,
) -> Family {
    Family {
        name,
        labels,
        help,
        samples: samples.into(),
    }
}

/// Every metric.
pub(super) fn families(seen: &Seen<'_>) -> Vec<Family> {
    let mut all = requests(seen.telemetry);
    all.extend(connections(seen));
    all.extend(engine(&seen.engine));
    all.extend(cache(&seen.cache));
    all
}

fn requests(
    Telemetry {
        metrics, access, ..
    }: &Telemetry,
) -> Vec<Family> {
    let class = |digit: usize| match digit {
        0 => "none".to_owned(),
        digit => format!("{digit}xx"),
    };
    let counts = |Classes(classes): &Classes| classes.each_ref().map(Count::get);
    let no_route = [(NO_ROUTE.into(), counts(&metrics.no_route))];
    let routes = metrics.routes.get(counts).into_iter().chain(no_route);
    let routes = routes.flat_map(|(route, classes)| {
        let counts = classes.into_iter().enumerate();
        counts
            .filter(|(_, count)| *count > 0)
            .map(|(digit, count)| ([route.to_string(), class(digit)], count))
            .collect::<Vec<_>>()
    });
    let keys = metrics
        .keys
        .get(|used| (used.passed.get(), used.refused.get()));
    let keys = keys.into_iter().flat_map(|(id, (passed, refused))| {
        [
            ([id.to_string(), "passed".to_owned()], passed),
            ([id.into_string(), "refused".to_owned()], refused),
        ]
    });
    let cut =
        TruncationReason::ALL.map(|cause| ([cause.as_str()], metrics.cut[cause as usize].get()));
    let refusals = metrics.refusals.get(Count::get);
    let refusals = refusals.into_iter().map(|(word, count)| ([word], count));
    vec![
        family(
            "authproxy_requests_total",
            &["route", "class"],
            "Requests by the route that decided and the class of their status; class none: the client went before there was one",
            Samples::Counts(labelled(routes)),
        ),
        family(
            "authproxy_refusals_total",
            &["reason"],
            "Requests that were answered here, by the cause in the access log",
            Samples::Counts(labelled(refusals)),
        ),
        family(
            "authproxy_key_requests_total",
            &["id", "result"],
            "Requests with a known key: passed or refused; ids beyond 1,000 are other",
            Samples::Counts(labelled(keys)),
        ),
        family(
            "authproxy_unjudged_total",
            &["why"],
            "Requests that passed without a word of the engine that is still good: fail-open, stale, open (the path needs no key) or preflight",
            Samples::Counts(labelled([
                (["fail-open"], metrics.fail_open.get()),
                (["open"], metrics.open.get()),
                (["preflight"], metrics.preflights.get()),
                (["stale"], metrics.stale.get()),
            ])),
        ),
        family(
            "authproxy_request_duration_seconds",
            &[],
            "From a request's head being here to the last byte of the answer being handed over",
            &metrics.duration,
        ),
        family(
            "authproxy_server_duration_seconds",
            &[],
            "From a request's head being here to the head of the server's answer",
            &metrics.server,
        ),
        family(
            "authproxy_requests_in_flight",
            &[],
            "Requests under way",
            &metrics.in_flight,
        ),
        family(
            "authproxy_answers_cut_total",
            &["cause"],
            "Answers that ended before their end, by the cause in the access log",
            Samples::Counts(labelled(cut)),
        ),
        family(
            "authproxy_received_bytes_total",
            &[],
            "Bytes of requests' bodies",
            &metrics.received,
        ),
        family(
            "authproxy_sent_bytes_total",
            &[],
            "Bytes of answers' bodies",
            &metrics.sent,
        ),
        family(
            "authproxy_access_lines_dropped_total",
            &[],
            "Lines of the access log that nobody took from stderr in time",
            access
                .as_ref()
                .map_or(0, crate::access_log::AccessLog::dropped),
        ),
    ]
}

fn connections(seen: &Seen<'_>) -> Vec<Family> {
    let metrics = &seen.telemetry.metrics;
    vec![
        family(
            "authproxy_connections",
            &[],
            "Connections of clients",
            &metrics.connections,
        ),
        family(
            "authproxy_connections_accepted_total",
            &[],
            "Connections of clients since the start",
            &metrics.accepted,
        ),
        family(
            "authproxy_server_connections",
            &[],
            "Connections to the server, idle ones too",
            &metrics.server_connections,
        ),
        family(
            "authproxy_server_waiting",
            &[],
            "Requests that wait for a connection to the server",
            &metrics.server_waiting,
        ),
        family(
            "authproxy_server_retries_total",
            &[],
            "Requests sent a second time, since the server had closed an idle connection",
            &metrics.retries,
        ),
        family(
            "authproxy_config_reloads_total",
            &["result"],
            "Times that the configuration was read again: ok or refused",
            Samples::Counts(labelled([
                (["ok"], metrics.reloaded.get()),
                (["refused"], metrics.reload_refused.get()),
            ])),
        ),
        family(
            "authproxy_draining",
            &[],
            "Whether it was told to end: 1 or 0",
            seen.draining,
        ),
    ]
}

fn engine(engine: &BackendStatus) -> Vec<Family> {
    let servers = |number: fn(&ServerStatus) -> u64| {
        let each = engine.servers.iter();
        Samples::Counts(labelled(
            each.map(|server| ([server.url.as_str()], number(server))),
        ))
    };
    let up = engine.servers.iter().map(|server| {
        let closed = server.breaker == BreakerState::Closed;
        ([server.url.as_str()], i64::from(closed))
    });
    let ages = engine.servers.iter().filter_map(|server| {
        let age = server.last_success.as_ref().map(Duration::as_secs_f64)?;
        Some(([server.url.as_str()], age))
    });
    let files = || engine.file.iter();
    let entries = files().map(|file| {
        let entries = i64::try_from(file.entries).unwrap_or(i64::MAX);
        ([file.path.as_str()], entries)
    });
    let texts = files().flat_map(|file| {
        [
            ([file.path.as_str(), "ok"], file.loaded),
            ([file.path.as_str(), "refused"], file.refused),
        ]
    });
    vec![
        family(
            "authproxy_engine_answers_total",
            &["server"],
            "Answers of permissions engines",
            servers(|server| server.answered),
        ),
        family(
            "authproxy_engine_failures_total",
            &["server"],
            "Questions to permissions engines that got no answer that makes sense",
            servers(|server| server.failed),
        ),
        family(
            "authproxy_engine_up",
            &["server"],
            "Whether a permissions engine is asked: 0 while it fails",
            Samples::Gauges(labelled(up)),
        ),
        family(
            "authproxy_engine_last_success_seconds",
            &["server"],
            "Time since a permissions engine last answered",
            Samples::Seconds(labelled(ages)),
        ),
        family(
            "authproxy_engine_file_entries",
            &["file"],
            "Keys, or servers, in the followed file that is in force",
            Samples::Gauges(labelled(entries)),
        ),
        family(
            "authproxy_engine_file_reads_total",
            &["file", "result"],
            "New texts of the followed file: ok or refused",
            Samples::Counts(labelled(texts)),
        ),
    ]
}

fn cache(cache: &Snapshot) -> Vec<Family> {
    let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let lookups = cache.servers.iter().flat_map(|server| {
        [
            ([server.name.as_str(), "failure"], server.failures),
            ([server.name.as_str(), "hit"], server.hits),
            ([server.name.as_str(), "miss"], server.misses),
        ]
    });
    let up = cache
        .servers
        .iter()
        .map(|server| ([server.name.as_str()], i64::from(server.up)));
    vec![
        family(
            "authproxy_cache_lookups_total",
            &["result"],
            "Look-ups of keys: hit, stale (good for longer, since the engine fails), miss (had to wait), resting (the engine had failed a moment ago) or crowded (too many questions under way)",
            Samples::Counts(labelled([
                (["crowded"], cache.crowded),
                (["hit"], cache.hits),
                (["miss"], cache.misses),
                (["resting"], cache.resting),
                (["stale"], cache.stale),
            ])),
        ),
        family(
            "authproxy_cache_questions_total",
            &["answer"],
            "Questions about keys: memcached had the answer, the engine had it, or failed",
            Samples::Counts(labelled([
                (["engine"], cache.questions.saturating_sub(cache.failures)),
                (["failed"], cache.failures),
                (["memcached"], cache.shared_hits),
            ])),
        ),
        family(
            "authproxy_cache_keys",
            &["kind"],
            "Keys remembered in the process: known or unknown",
            Samples::Gauges(labelled([
                (["known"], gauge(cache.known)),
                (["unknown"], gauge(cache.unknown)),
            ])),
        ),
        family(
            "authproxy_cache_flights",
            &[],
            "Questions about keys under way",
            Samples::Gauges(vec![(Vec::new(), gauge(cache.flights))]),
        ),
        family("authproxy_cache_purges_total", &[], "Purges", cache.purges),
        family(
            "authproxy_memcached_lookups_total",
            &["server", "result"],
            "Look-ups in memcached: hit, miss or failure",
            Samples::Counts(labelled(lookups)),
        ),
        family(
            "authproxy_memcached_up",
            &["server"],
            "Whether a memcached server is asked: 0 while it fails",
            Samples::Gauges(labelled(up)),
        ),
        family(
            "authproxy_memcached_refused_total",
            &[],
            "Entries that were over, or signed by nobody who has the secret",
            cache.shared_refused,
        ),
    ]
}
