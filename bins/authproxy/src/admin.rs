//! The routes of the admin listener: `/status`, `/metrics` and `/health`, and for operators `/purge` and `/drain`.
//!
//! Owns the shape of the JSON. The listener is `hostkit::admin`'s; each number is its module's.

use std::sync::Arc;

use hostkit::admin;
use hostkit::http::{RouteRequest, RouteResponse, Router};
use serde_json::{Map, Value, json};
use url::form_urlencoded;

use crate::cache::{CacheSnapshot, PurgeTarget};
use crate::lifecycle::LifecyclePhase;
use crate::metrics::MetricsSnapshot;
use crate::proxy::Proxy;
use crate::reload::ConfigReloader;

pub(crate) fn build_router(proxy: &Arc<Proxy>, reload: &Arc<ConfigReloader>) -> Router {
    let proxy = || Arc::clone(proxy);
    let (for_status, reload) = (proxy(), Arc::clone(reload));
    let (for_metrics, for_health, for_purge, for_drain) = (proxy(), proxy(), proxy(), proxy());
    admin::build_router(
        move || status(&for_status, &reload),
        move || {
            let snapshot = MetricsSnapshot {
                telemetry: &for_metrics.telemetry,
                permissions: for_metrics.authorizer.status(),
                cache: for_metrics.authorizer.snapshot().unwrap_or_default(),
                is_draining: for_metrics.lifecycle.phase() != LifecyclePhase::Serving,
            };
            snapshot.render()
        },
    )
    .route("GET", "/health", move |_| {
        match for_health.lifecycle.phase() {
            LifecyclePhase::Serving => RouteResponse::text(200, "ok"),
            phase => RouteResponse::text(503, phase.as_str()),
        }
    })
    .route("POST", "/purge", move |request| purge(&for_purge, request))
    .route("POST", "/drain", move |_| {
        for_drain.lifecycle.begin_shutdown();
        RouteResponse::text(202, for_drain.lifecycle.phase().as_str())
    })
}

fn status(proxy: &Proxy, reload: &ConfigReloader) -> Map<String, Value> {
    let settings = &proxy.settings;
    let metrics = &proxy.telemetry.metrics;
    let listen: Vec<String> = settings.listen.iter().map(ToString::to_string).collect();
    let status = json!({
        "phase": proxy.lifecycle.phase().as_str(),
        "listen": listen,
        "server": settings.server.to_string(),
        "config": reload.status(),
        "fail_open": proxy.site.get().fail_open,
        "connections": metrics.client_connections.get(),
        "requests_in_flight": metrics.requests_in_flight.get(),
        "permissions": proxy.authorizer.status(),
        "cache": proxy.authorizer.snapshot().map(|cache| cache_json(&cache)),
    });
    match status {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

fn cache_json(cache: &CacheSnapshot) -> Value {
    let servers: Vec<Value> = cache
        .servers
        .iter()
        .map(|server| {
            json!({
                "server": server.name,
                "up": server.up,
                "hits": server.hits,
                "misses": server.misses,
                "failures": server.failures,
            })
        })
        .collect();
    json!({
        "positive_entries": cache.positive_entries,
        "negative_entries": cache.negative_entries,
        "hits": cache.hits,
        "stale": cache.stale,
        "misses": cache.misses,
        "coalesced": cache.coalesced,
        "backend_queries": cache.backend_queries,
        "failed_queries": cache.failed_queries,
        "memcached": servers,
    })
}

/// One of `?key_sha256=HEX`, `?id=ID` and `?all`.
fn purge(proxy: &Proxy, request: &RouteRequest<'_>) -> RouteResponse {
    let remedy = "give one of ?key_sha256=HEX, ?id=ID and ?all";
    let mut parameters = form_urlencoded::parse(request.query.as_bytes());
    let (Some((name, value)), None) = (parameters.next(), parameters.next()) else {
        return RouteResponse::error(400, remedy);
    };
    let target = match (&*name, &*value) {
        ("all", _) => PurgeTarget::All,
        ("id", id) if !id.is_empty() => PurgeTarget::Id(id.to_owned()),
        ("key_sha256", hash) => match hash.parse() {
            Ok(hash) => PurgeTarget::Key(hash),
            Err(error) => return RouteResponse::error(400, &error),
        },
        _ => return RouteResponse::error(400, remedy),
    };
    let count = proxy.authorizer.purge(&target);
    tracing::info!(keys = count, "cache purged");
    RouteResponse::json(200, &json!({ "purged": count }))
}
