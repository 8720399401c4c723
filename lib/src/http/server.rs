//! The small HTTP/1.1 server of the admin listener and of the health port: one exchange per connection, everything
//! bounded, on whatever thread polls it. A connection that waits for its answer holds one kilobyte, where hyper's would
//! hold fifteen: a thousand health checks at once must not make a small process a large one.
//!
//! Owns requests, replies and which handler gets which. What is served, and where, is its users'.

mod connection;
mod head;
mod listener;

use std::future::{Future, ready};
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use serde_json::Value;

pub(crate) use connection::{ServerLimits, serve};
pub(crate) use listener::ListeningSocket;

/// How long a peer may take to send a request's head, to send its body, and to read the answer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);

/// A request as a handler sees it.
#[derive(Debug, Clone, Copy)]
pub struct RouteRequest<'a> {
    /// What stood behind `?`, as it was sent; empty when nothing did.
    pub query: &'a str,
    /// The body, at most 64 KiB.
    pub body: &'a [u8],
    /// Which media types the client takes: the `Accept` headers as one; empty when there is none.
    pub accept: &'a str,
}

/// What a handler answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteResponse {
    status: u16,
    content_type: &'static str,
    body: String,
    /// The methods of a path that does not have the one asked for.
    allow: String,
}

impl RouteResponse {
    pub(crate) fn new(status: u16, content_type: &'static str, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type,
            body: body.into(),
            allow: String::new(),
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

    /// The bytes of the answer, which ends the connection.
    fn bytes(&self, with_body: bool) -> Vec<u8> {
        let Self {
            status,
            content_type,
            body,
            allow,
        } = self;
        let phrase = phrase(*status);
        let length = body.len();
        let date = httpdate::fmt_http_date(crate::clock::now().max(SystemTime::UNIX_EPOCH));
        let mut text = format!(
            "HTTP/1.1 {status} {phrase}\r\n\
             content-type: {content_type}\r\n\
             content-length: {length}\r\n\
             cache-control: no-store\r\n\
             connection: close\r\n\
             date: {date}\r\n"
        );
        if !allow.is_empty() {
            text.push_str(&format!("allow: {allow}\r\n"));
        }
        text.push_str("\r\n");
        if with_body {
            text.push_str(body);
        }
        text.into_bytes()
    }
}

type ResponseFuture = Pin<Box<dyn Future<Output = RouteResponse> + Send>>;
type RouteHandler = Box<dyn Fn(&RouteRequest<'_>) -> ResponseFuture + Send + Sync>;

struct Route {
    method: &'static str,
    path: &'static str,
    handler: RouteHandler,
}

/// What a listener answers, by method and exact path. Handlers run where the listener does: they must not block, and
/// must end.
#[derive(Default)]
pub struct Router(Vec<Route>);

impl Router {
    /// One more route. A path that has `GET` answers `HEAD` too.
    #[must_use]
    pub fn route(
        self,
        method: &'static str,
        path: &'static str,
        handler: impl Fn(&RouteRequest<'_>) -> RouteResponse + Send + Sync + 'static,
    ) -> Self {
        self.route_async(method, path, move |call| ready(handler(call)))
    }

    /// One more route, whose answer has to be waited for. Whether the peer is still there shows when it is sent.
    #[must_use]
    pub(crate) fn route_async<F: Future<Output = RouteResponse> + Send + 'static>(
        mut self,
        method: &'static str,
        path: &'static str,
        handler: impl Fn(&RouteRequest<'_>) -> F + Send + Sync + 'static,
    ) -> Self {
        self.0.push(Route {
            method,
            path,
            handler: Box::new(move |call| Box::pin(handler(call))),
        });
        self
    }

    /// The handler, or what is answered where there is none.
    fn find(&self, method: &str, path: &str) -> Result<&RouteHandler, RouteResponse> {
        let wanted = if method == "HEAD" { "GET" } else { method };
        let here = || self.0.iter().filter(|route| route.path == path);
        if let Some(route) = here().find(|route| route.method == wanted) {
            return Ok(&route.handler);
        }
        let methods: Vec<&str> = here().map(|route| route.method).collect();
        if methods.is_empty() {
            return Err(RouteResponse::error(404, "there is nothing here"));
        }
        let mut refused = RouteResponse::error(405, "this path has other methods");
        refused.allow = methods.join(", ").replace("GET", "GET, HEAD");
        Err(refused)
    }
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|route| (route.method, route.path)))
            .finish()
    }
}

/// What a status is called. A client needs only the number.
const fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "",
    }
}
