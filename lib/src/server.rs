//! The small HTTP/1.1 server of the admin listener and of the health port: one exchange per connection, everything
//! bounded, on whatever thread polls it.
//!
//! Owns requests, replies and which handler gets which. What is served, and where, is its users'.

mod serve;
mod socket;

use std::future::{Future, ready};
use std::pin::Pin;
use std::time::Duration;

use serde_json::Value;

pub(crate) use serve::{Bounds, serve};
pub(crate) use socket::{Socket, Stream};

/// How long a peer may take for a request's head, and again for its body.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);

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
    pub(crate) fn new(status: u16, content_type: &'static str, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type,
            body: body.into(),
        }
    }

    /// A value, with an HTTP status.
    #[must_use]
    pub fn json(status: u16, value: &Value) -> Self {
        Self::new(status, "application/json", format!("{value}\n"))
    }

    /// A plain text, with an HTTP status.
    #[must_use]
    pub fn text(status: u16, text: &str) -> Self {
        Self::new(status, "text/plain; charset=utf-8", text)
    }

    /// `{"error": message}`, with an HTTP status.
    #[must_use]
    pub fn error(status: u16, message: &str) -> Self {
        Self::json(status, &serde_json::json!({ "error": message }))
    }
}

type Answer = Pin<Box<dyn Future<Output = Reply> + Send>>;
type Handler = Box<dyn Fn(&Call<'_>) -> Answer + Send + Sync>;

struct Route {
    method: &'static str,
    path: &'static str,
    handler: Handler,
}

/// What a listener answers, by method and exact path. Handlers run where the listener does and must not block.
#[derive(Default)]
pub struct Routes(Vec<Route>);

impl Routes {
    /// One more route. A path that has `GET` answers `HEAD` too.
    #[must_use]
    pub fn route(
        self,
        method: &'static str,
        path: &'static str,
        handler: impl Fn(&Call<'_>) -> Reply + Send + Sync + 'static,
    ) -> Self {
        self.route_later(method, path, move |call| ready(handler(call)))
    }

    /// One more route, whose answer has to be waited for. The future is dropped when the peer goes away.
    #[must_use]
    pub(crate) fn route_later<F: Future<Output = Reply> + Send + 'static>(
        mut self,
        method: &'static str,
        path: &'static str,
        handler: impl Fn(&Call<'_>) -> F + Send + Sync + 'static,
    ) -> Self {
        self.0.push(Route {
            method,
            path,
            handler: Box::new(move |call| Box::pin(handler(call))),
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
