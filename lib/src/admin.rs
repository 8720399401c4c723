//! The admin listener that every daemon has: `/status` for people and scripts, `/metrics` for collectors, and what few
//! routes the tool adds.
//!
//! Owns the address and the socket; HTTP is `server`'s. What is told, and the text of the metrics, are the tool's. There
//! is no authentication: an address is on this host or in a private network, and a socket file has a mode.

mod address;
mod client;
mod listener;

use serde_json::{Map, Value};

pub use address::Address;
pub use client::get;
pub use listener::Listener;

pub use crate::server::{Call, Reply, Routes};

/// OpenMetrics 1.0, section 4.1: the text ends with `# EOF`, and no Prometheus text of format 0.0.4 does.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The Prometheus text format before OpenMetrics.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The flag of every daemon.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct AdminFlags {
    /// Where /status and /metrics are served: 127.0.0.1:PORT or unix:PATH; nowhere by default
    #[arg(long, value_name = "ADDRESS", help_heading = "Admin")]
    pub admin: Option<Address>,
}

fn metrics_reply(body: String) -> Reply {
    let open = body.ends_with("# EOF\n");
    Reply::new(200, if open { OPEN_METRICS } else { PROMETHEUS }, body)
}

impl Routes {
    /// `GET /status` and `GET /metrics`. `version` and `uptime_seconds` (from this call on) are added to the status;
    /// the metrics are Prometheus text of format 0.0.4, or OpenMetrics, which ends with `# EOF`.
    #[must_use]
    pub fn new(
        status: impl Fn() -> Map<String, Value> + Send + Sync + 'static,
        metrics: impl Fn() -> String + Send + Sync + 'static,
    ) -> Self {
        let start = crate::clock::since_boot();
        Self::default()
            .route("GET", "/status", move |_| {
                let uptime = crate::clock::since_boot().saturating_sub(start);
                let mut members = Map::new();
                members.insert("version".to_owned(), crate::VERSION.into());
                members.insert("uptime_seconds".to_owned(), uptime.as_secs().into());
                members.append(&mut status());
                Reply::json(200, &Value::Object(members))
            })
            .route("GET", "/metrics", move |_| metrics_reply(metrics()))
    }
}
