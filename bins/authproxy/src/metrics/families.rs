//! Every metric with its current samples, in the order of the operator's page.

use std::time::Duration;

use hostkit::metrics::{self, Counter, MetricFamily, MetricSamples, labelled};

use super::{NO_ROUTE, StatusCounters};
use crate::cache::CacheSnapshot;
use crate::circuit_breaker::BreakerState;
use crate::permissions::{BackendStatus, ServerStatus};
use crate::record::Telemetry;
use crate::request_error::TruncationReason;

/// The sources of one page.
#[derive(Debug)]
pub(crate) struct MetricsSnapshot<'a> {
    pub(crate) telemetry: &'a Telemetry,
    pub(crate) permissions: BackendStatus,
    pub(crate) cache: CacheSnapshot,
    pub(crate) is_draining: bool,
}

impl<'a> MetricsSnapshot<'a> {
    #[cfg(test)]
    pub(crate) fn new(telemetry: &'a Telemetry) -> Self {
        Self {
            telemetry,
            permissions: BackendStatus::default(),
            cache: CacheSnapshot::default(),
            is_draining: false,
        }
    }

    /// The text of `/metrics`.
    pub(crate) fn render(&self) -> String {
        metrics::render(self.families())
    }

    /// All families, in the order of the operator's page.
    pub(crate) fn families(&self) -> Vec<MetricFamily> {
        let mut all = requests(self.telemetry);
        all.extend(connections(self));
        all.extend(permissions(&self.permissions));
        all.extend(cache(&self.cache));
        all
    }
}

fn family(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    samples: impl Into<MetricSamples>,
) -> MetricFamily {
    MetricFamily {
        name,
        labels,
        help,
        samples: samples.into(),
    }
}

fn counters<const N: usize>(
    samples: impl IntoIterator<Item = ([impl Into<String>; N], u64)>,
) -> MetricSamples {
    MetricSamples::Counters(labelled(samples))
}

fn gauges<const N: usize>(
    samples: impl IntoIterator<Item = ([impl Into<String>; N], i64)>,
) -> MetricSamples {
    MetricSamples::Gauges(labelled(samples))
}

/// A count that only its memory bounds.
fn gauge(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn requests(telemetry: &Telemetry) -> Vec<MetricFamily> {
    let (metrics, access) = (&telemetry.metrics, &telemetry.access);
    let code = |digit: usize| match digit {
        0 => "none".to_owned(),
        digit => format!("{digit}xx"),
    };
    let counts = |StatusCounters(classes): &StatusCounters| classes.each_ref().map(Counter::get);
    let no_route = [(NO_ROUTE.into(), counts(&metrics.no_route))];
    let routes = metrics.routes.get(counts).into_iter().chain(no_route);
    let routes = routes.flat_map(|(route, classes)| {
        let counts = classes.into_iter().enumerate();
        counts
            .filter(|(_, count)| *count > 0)
            .map(|(digit, count)| ([route.to_string(), code(digit)], count))
            .collect::<Vec<_>>()
    });
    let keys = metrics
        .keys
        .get(|key| (key.allowed.get(), key.denied.get()));
    let keys = keys.into_iter().flat_map(|(id, (allowed, denied))| {
        [
            ([id.to_string(), "allowed".to_owned()], allowed),
            ([id.into_string(), "denied".to_owned()], denied),
        ]
    });
    let truncated = TruncationReason::ALL
        .map(|reason| ([reason.as_str()], metrics.truncated[reason as usize].get()));
    let errors = metrics.error_responses.get(Counter::get);
    let errors = errors.into_iter().map(|(reason, count)| ([reason], count));
    vec![
        family(
            "authproxy_requests_total",
            &["route", "code"],
            "Requests by matched route and class of the response status; code none: the client left before a response.",
            counters(routes),
        ),
        family(
            "authproxy_error_responses_total",
            &["reason"],
            "Error responses of authproxy itself, by the reason in the access log.",
            counters(errors),
        ),
        family(
            "authproxy_key_requests_total",
            &["id", "result"],
            "Requests with a known key: allowed or denied; ids beyond 1,000 are counted as other.",
            counters(keys),
        ),
        family(
            "authproxy_unauthenticated_requests_total",
            &["reason"],
            "Requests allowed without a current grant: fail_open, open_path (no key needed), preflight or stale.",
            counters([
                (["fail_open"], metrics.fail_open.get()),
                (["open_path"], metrics.open_path.get()),
                (["preflight"], metrics.preflights.get()),
                (["stale"], metrics.stale.get()),
            ]),
        ),
        family(
            "authproxy_request_duration_seconds",
            &[],
            "Time from the request head to the last byte of the response.",
            metrics.duration.samples(),
        ),
        family(
            "authproxy_upstream_response_duration_seconds",
            &[],
            "Time from the request head to the response head of the upstream.",
            metrics.upstream_duration.samples(),
        ),
        family(
            "authproxy_requests_in_flight",
            &[],
            "Requests in progress.",
            metrics.requests_in_flight.get(),
        ),
        family(
            "authproxy_truncated_responses_total",
            &["reason"],
            "Responses that ended early, by the reason in the access log.",
            counters(truncated),
        ),
        family(
            "authproxy_request_body_bytes_total",
            &[],
            "Bytes of request bodies received.",
            metrics.request_bytes.get(),
        ),
        family(
            "authproxy_response_body_bytes_total",
            &[],
            "Bytes of response bodies sent.",
            metrics.response_bytes.get(),
        ),
        family(
            "authproxy_access_log_dropped_lines_total",
            &[],
            "Access log lines dropped because stderr was not read in time.",
            access
                .as_ref()
                .map_or(0, crate::access_log::AccessLog::dropped),
        ),
    ]
}

fn connections(snapshot: &MetricsSnapshot<'_>) -> Vec<MetricFamily> {
    let metrics = &snapshot.telemetry.metrics;
    vec![
        family(
            "authproxy_client_connections",
            &[],
            "Open client connections.",
            metrics.client_connections.get(),
        ),
        family(
            "authproxy_client_connections_accepted_total",
            &[],
            "Client connections accepted since the start.",
            metrics.accepted_connections.get(),
        ),
        family(
            "authproxy_upstream_connections",
            &[],
            "Open upstream connections, idle ones included.",
            metrics.upstream_connections.get(),
        ),
        family(
            "authproxy_upstream_queued_requests",
            &[],
            "Requests waiting for an upstream connection.",
            metrics.upstream_queued.get(),
        ),
        family(
            "authproxy_upstream_retries_total",
            &[],
            "Requests sent a second time because the upstream had closed an idle connection.",
            metrics.upstream_retries.get(),
        ),
        family(
            "authproxy_config_reloads_total",
            &["result"],
            "Configuration reloads: success, or failure (the previous configuration stays in force).",
            counters([
                (["failure"], metrics.failed_reloads.get()),
                (["success"], metrics.reloads.get()),
            ]),
        ),
        family(
            "authproxy_draining",
            &[],
            "Whether graceful shutdown has begun: 1 or 0.",
            snapshot.is_draining,
        ),
    ]
}

fn permissions(permissions: &BackendStatus) -> Vec<MetricFamily> {
    fn label(server: &ServerStatus) -> &str {
        &server.url
    }
    let servers = || permissions.servers.iter();
    let queries = servers().flat_map(|server| {
        [
            ([label(server), "failure"], server.failed),
            ([label(server), "success"], server.answered),
        ]
    });
    let up = servers().map(|server| {
        let is_closed = server.breaker == BreakerState::Closed;
        ([label(server)], i64::from(is_closed))
    });
    let ages = servers().filter_map(|server| {
        let age = server.last_success.as_ref().map(Duration::as_secs_f64)?;
        Some(([label(server)], age))
    });
    let files = || permissions.file.iter();
    let entries = files().map(|file| ([file.path.as_str()], gauge(file.entries)));
    let reloads = files().flat_map(|file| {
        [
            ([file.path.as_str(), "failure"], file.rejected),
            ([file.path.as_str(), "success"], file.loaded),
        ]
    });
    vec![
        family(
            "authproxy_permissions_queries_total",
            &["backend", "result"],
            "Queries to permissions backends: success, or failure (no valid response).",
            counters(queries),
        ),
        family(
            "authproxy_permissions_backend_up",
            &["backend"],
            "Whether the circuit breaker of the permissions backend is closed: 1 or 0.",
            gauges(up),
        ),
        family(
            "authproxy_permissions_backend_last_success_age_seconds",
            &["backend"],
            "Time since the last valid response of the permissions backend.",
            MetricSamples::Seconds(labelled(ages)),
        ),
        family(
            "authproxy_permissions_file_entries",
            &["file"],
            "Keys, or backends, in the version of the file that is in force.",
            gauges(entries),
        ),
        family(
            "authproxy_permissions_file_reloads_total",
            &["file", "result"],
            "Changes of the file: success, or failure (the previous version stays in force).",
            counters(reloads),
        ),
    ]
}

fn cache(cache: &CacheSnapshot) -> Vec<MetricFamily> {
    let memcached = cache.servers.iter().flat_map(|server| {
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
            "Lookups of keys: hit, stale (the backend fails), coalesced (waited for a query in progress), miss (started one) or error (the backend failed a moment ago).",
            counters([
                (["coalesced"], cache.coalesced),
                (["error"], cache.cached_errors),
                (["hit"], cache.hits),
                (["miss"], cache.misses),
                (["stale"], cache.stale),
            ]),
        ),
        family(
            "authproxy_cache_queries_total",
            &["result"],
            "Queries about keys: answered by memcached or a backend, failure, or rejected (too many in progress).",
            counters([
                (
                    ["backend"],
                    cache.backend_queries.saturating_sub(cache.failed_queries),
                ),
                (["failure"], cache.failed_queries),
                (["memcached"], cache.memcached_hits),
                (["rejected"], cache.rejected_queries),
            ]),
        ),
        family(
            "authproxy_cache_entries",
            &["kind"],
            "Keys cached in the process: positive, or negative (unknown keys and errors).",
            gauges([
                (["negative"], gauge(cache.negative_entries)),
                (["positive"], gauge(cache.positive_entries)),
            ]),
        ),
        family(
            "authproxy_cache_queries_in_flight",
            &[],
            "Queries about keys in progress.",
            gauge(cache.queries_in_flight),
        ),
        family(
            "authproxy_cache_purges_total",
            &[],
            "Purges of the cache.",
            cache.purges,
        ),
        family(
            "authproxy_memcached_lookups_total",
            &["server", "result"],
            "Lookups in memcached: hit, miss or failure.",
            counters(memcached),
        ),
        family(
            "authproxy_memcached_up",
            &["server"],
            "Whether the circuit breaker of the memcached server is closed: 1 or 0.",
            gauges(up),
        ),
        family(
            "authproxy_memcached_invalid_entries_total",
            &[],
            "Entries of memcached that were expired or not signed with the cache secret.",
            cache.invalid_entries,
        ),
    ]
}
