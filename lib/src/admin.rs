//! The admin listener of every daemon: `/status` for people and scripts, `/metrics` for collectors, and the routes that
//! the tool adds.
//!
//! Owns the address and the socket; HTTP is `http::server`'s, the content is the tool's. There is no authentication: an
//! address is on this host or in a private network, and a socket file has a mode.

mod address;
#[cfg(feature = "client")]
mod client;
mod exposition;
mod listener;

use serde_json::{Map, Value};

use crate::cli::AT_START;
use crate::http::{RouteResponse, Router};

pub use address::AdminAddress;
#[cfg(feature = "client")]
pub use client::get;
pub use listener::AdminListener;

/// The flag of every daemon.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct AdminFlags {
    /// Address of /status and /metrics: 127.0.0.1:PORT or unix:PATH; off by default
    #[arg(long, value_name = "ADDRESS", help_heading = "Admin", group = AT_START)]
    pub admin: Option<AdminAddress>,
}

/// `GET /status` and `GET /metrics`; the tool adds its own routes. `version` and `uptime_seconds` (from this call on) are
/// added to the status; the metrics are OpenMetrics, converted to Prometheus text for clients that do not ask for it.
#[must_use]
pub fn build_router(
    status: impl Fn() -> Map<String, Value> + Send + Sync + 'static,
    metrics: impl Fn() -> String + Send + Sync + 'static,
) -> Router {
    let start = crate::clock::since_boot();
    Router::default()
        .route("GET", "/status", move |_| {
            let uptime = crate::clock::since_boot().saturating_sub(start);
            let mut members = Map::new();
            members.insert("version".to_owned(), crate::VERSION.into());
            members.insert("uptime_seconds".to_owned(), uptime.as_secs().into());
            members.append(&mut status());
            RouteResponse::json(200, &Value::Object(members))
        })
        .route("GET", "/metrics", move |request| {
            exposition::metrics_response(metrics(), request.accept)
        })
}
