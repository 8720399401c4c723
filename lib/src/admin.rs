//! The admin listener that every daemon has: `/status` for people and scripts, `/metrics` for collectors, and what few
//! routes the tool adds.
//!
//! Owns the address and the socket; HTTP is `server`'s. What is told, and the text of the metrics, are the tool's. There
//! is no authentication: an address is on this host or in a private network, and a socket file has a mode.

mod address;
mod client;
mod exposition;
mod listener;

use serde_json::{Map, Value};

pub use address::Address;
pub use client::get;
pub use listener::Listener;

pub use crate::server::{Call, Reply, Routes};

/// The flag of every daemon.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct AdminFlags {
    /// Where /status and /metrics are served: 127.0.0.1:PORT or unix:PATH; nowhere by default
    #[arg(long, value_name = "ADDRESS", help_heading = "Admin")]
    pub admin: Option<Address>,
}

impl Routes {
    /// `GET /status` and `GET /metrics`. `version` and `uptime_seconds` (from this call on) are added to the status;
    /// the metrics are OpenMetrics, served as they are to clients that ask for it, to others as Prometheus text.
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
            .route("GET", "/metrics", move |call| {
                exposition::reply(metrics(), call.accept)
            })
    }
}
