//! The admin listener that every daemon has: `/status` for people and scripts, `/metrics` for collectors, and what few
//! routes the tool adds.
//!
//! Owns the address, the socket, HTTP and its bounds. What is told, and the text of the metrics, are the tool's. There
//! is no authentication: an address is on this host or in a private network, and a socket file has a mode.

mod address;
mod client;
mod listener;
mod serve;

use std::time::Duration;

use serde_json::{Map, Value};

pub use address::Address;
pub use client::get;
pub use listener::Listener;

/// How long a peer may take for a request's head, for its body, and for anything [`get`] asks for.
const DEADLINE: Duration = Duration::from_secs(5);
/// OpenMetrics 1.0, section 4.1: the text ends with `# EOF`, and no Prometheus text of format 0.0.4 does.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The Prometheus text format before OpenMetrics.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The flag of every daemon.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Admin")]
pub struct AdminFlags {
    /// Where /status and /metrics are served: 127.0.0.1:PORT or unix:PATH; nowhere by default
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<Address>,
}

/// A request as a handler sees it.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// What stood behind `?`, as it was sent; empty when nothing did.
    pub query: &'a str,
    /// The body, at most 64 KiB.
    pub body: &'a [u8],
}

/// What a handler answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    status: u16,
    content_type: &'static str,
    body: String,
}

impl Reply {
    /// A value, with an HTTP status.
    #[must_use]
    pub fn json(status: u16, value: &Value) -> Self {
        Self {
            status,
            content_type: "application/json",
            body: format!("{value}\n"),
        }
    }

    /// `{"error": message}`, with an HTTP status.
    #[must_use]
    pub fn error(status: u16, message: &str) -> Self {
        Self::json(status, &serde_json::json!({ "error": message }))
    }

    fn metrics(body: String) -> Self {
        let open = body.ends_with("# EOF\n");
        Self {
            status: 200,
            content_type: if open { OPEN_METRICS } else { PROMETHEUS },
            body,
        }
    }
}

type Handler = Box<dyn Fn(&Call<'_>) -> Reply + Send + Sync>;

struct Route {
    method: &'static str,
    path: &'static str,
    handler: Handler,
}

/// What a listener answers, by method and exact path. Handlers run where the listener does and must not block.
pub struct Routes(Vec<Route>);

impl Routes {
    /// `GET /status` and `GET /metrics`. `version` and `uptime_seconds` (from this call on) are added to the status;
    /// the metrics are Prometheus text of format 0.0.4, or OpenMetrics, which ends with `# EOF`.
    #[must_use]
    pub fn new(
        status: impl Fn() -> Map<String, Value> + Send + Sync + 'static,
        metrics: impl Fn() -> String + Send + Sync + 'static,
    ) -> Self {
        let start = crate::clock::since_boot();
        Self(Vec::new())
            .route("GET", "/status", move |_| {
                let uptime = crate::clock::since_boot().saturating_sub(start);
                let mut members = Map::new();
                members.insert("version".to_owned(), crate::VERSION.into());
                members.insert("uptime_seconds".to_owned(), uptime.as_secs().into());
                members.append(&mut status());
                Reply::json(200, &Value::Object(members))
            })
            .route("GET", "/metrics", move |_| Reply::metrics(metrics()))
    }

    /// One more route. A path that has `GET` answers `HEAD` too.
    #[must_use]
    pub fn route(
        mut self,
        method: &'static str,
        path: &'static str,
        handler: impl Fn(&Call<'_>) -> Reply + Send + Sync + 'static,
    ) -> Self {
        self.0.push(Route {
            method,
            path,
            handler: Box::new(handler),
        });
        self
    }

    /// The handler, or the methods that the path does have.
    fn find(&self, method: &str, path: &str) -> Result<&Handler, Vec<&'static str>> {
        let wanted = if method == "HEAD" { "GET" } else { method };
        let here = || self.0.iter().filter(|route| route.path == path);
        here()
            .find(|route| route.method == wanted)
            .map(|route| &route.handler)
            .ok_or_else(|| here().map(|route| route.method).collect())
    }
}

impl std::fmt::Debug for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|route| (route.method, route.path)))
            .finish()
    }
}
