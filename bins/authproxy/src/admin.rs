//! What operators ask: `/status`, `/metrics`, `/health`, and what they order: `/purge`, `/drain`.
//!
//! Owns the shapes. The listener is `hostkit::admin`'s; the numbers are those of the parts.

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

/// All routes of the admin listener.
#[must_use]
pub fn routes(proxy: &Arc<Proxy>, reload: &Arc<ConfigReloader>) -> Router {
    let (seen, configured) = (Arc::clone(proxy), Arc::clone(reload));
    let counted = Arc::clone(proxy);
    let (health, purged, drained) = (Arc::clone(proxy), Arc::clone(proxy), Arc::clone(proxy));
    admin::build_router(
        move || status(&seen, &configured),
        move || {
            let snapshot = MetricsSnapshot {
                telemetry: &counted.telemetry,
                permissions: counted.authorizer.status(),
                cache: counted.authorizer.snapshot().unwrap_or_default(),
                is_draining: counted.lifecycle.phase() != LifecyclePhase::Serving,
            };
            snapshot.render()
        },
    )
    .route("GET", "/health", move |_| match health.lifecycle.phase() {
        LifecyclePhase::Serving => RouteResponse::text(200, "ok"),
        phase => RouteResponse::text(503, phase.as_str()),
    })
    .route("POST", "/purge", move |call| purge(&purged, call))
    .route("POST", "/drain", move |_| {
        drained.lifecycle.begin_shutdown();
        RouteResponse::text(202, drained.lifecycle.phase().as_str())
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
        "engine": proxy.authorizer.status(),
        "cache": proxy.authorizer.snapshot().map(|cache| cached(&cache)),
    });
    match status {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

fn cached(cache: &CacheSnapshot) -> Value {
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

/// `?key_sha256=HEX`, `?id=ID` or `?all`: one of them.
fn purge(proxy: &Proxy, call: &RouteRequest<'_>) -> RouteResponse {
    let remedy = "give one of ?key_sha256=HEX, ?id=ID and ?all";
    let mut asked = form_urlencoded::parse(call.query.as_bytes());
    let (Some((name, value)), None) = (asked.next(), asked.next()) else {
        return RouteResponse::error(400, remedy);
    };
    let what = match (&*name, &*value) {
        ("all", _) => PurgeTarget::All,
        ("id", id) if !id.is_empty() => PurgeTarget::Id(id.to_owned()),
        ("key_sha256", hash) => match hash.parse() {
            Ok(hash) => PurgeTarget::Key(hash),
            Err(error) => return RouteResponse::error(400, &error),
        },
        _ => return RouteResponse::error(400, remedy),
    };
    let count = proxy.authorizer.purge(&what);
    tracing::info!(keys = count, "purged");
    RouteResponse::json(200, &json!({ "purged": count }))
}
