//! The small HTTP/1.1 server of all tools: the admin listener, the health port and `authproxy serve-acl`. Everything is
//! bounded, and it runs on the thread that polls it.
//!
//! It is not hyper's because a connection that waits takes 2 KB here and 16 to 21 KB there: a thousand health checks at
//! once grow a checker to 5 MB instead of 19 to 24 MB, which glibc never gives back.
//!
//! Owns requests, responses and routing.

mod connection;
mod listener;
mod request_head;
#[cfg(test)]
mod tests;

use std::future::{Future, ready};
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use serde_json::Value;

pub use connection::{ServerLimits, serve};
pub use listener::ListeningSocket;

/// Time for a client to send the head of a request, to send its body, and to read the response.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);
/// The path of a route that gets the requests to all paths that no other route has.
pub const ANY_PATH: &str = "*";

/// A request as a handler gets it.
#[derive(Debug, Clone, Copy)]
pub struct RouteRequest<'a> {
    /// The query, not decoded; empty without one.
    pub query: &'a str,
    /// The body.
    pub body: &'a [u8],
    /// The `Accept` headers, joined by commas; empty without one.
    pub accept: &'a str,
}

/// The response of a handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteResponse {
    status: u16,
    content_type: &'static str,
    body: Vec<u8>,
    /// With 405, the methods that the path has.
    allow: String,
}

impl RouteResponse {
    /// A response with a body of any type.
    #[must_use]
    pub fn new(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            content_type,
            body: body.into(),
            allow: String::new(),
        }
    }

    /// A response with a JSON value.
    #[must_use]
    pub fn json(status: u16, value: &Value) -> Self {
        Self::new(status, "application/json", format!("{value}\n"))
    }

    /// A response with plain text.
    #[must_use]
    pub fn text(status: u16, text: &str) -> Self {
        Self::new(status, "text/plain; charset=utf-8", text)
    }

    /// A response with `{"error": message}`.
    #[must_use]
    pub fn error(status: u16, message: &str) -> Self {
        Self::json(status, &serde_json::json!({ "error": message }))
    }

    fn encode(&self, with_body: bool, is_persistent: bool) -> Vec<u8> {
        let Self {
            status,
            content_type,
            body,
            allow,
        } = self;
        let phrase = reason_phrase(*status);
        let length = body.len();
        let date = httpdate::fmt_http_date(crate::clock::now().max(SystemTime::UNIX_EPOCH));
        let mut head = format!(
            "HTTP/1.1 {status} {phrase}\r\n\
             content-type: {content_type}\r\n\
             content-length: {length}\r\n\
             cache-control: no-store\r\n\
             date: {date}\r\n"
        );
        if !is_persistent {
            head.push_str("connection: close\r\n");
        }
        if !allow.is_empty() {
            head.push_str(&format!("allow: {allow}\r\n"));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        if with_body {
            bytes.extend_from_slice(body);
        }
        bytes
    }
}

type ResponseFuture = Pin<Box<dyn Future<Output = RouteResponse> + Send>>;
type RouteHandler = Box<dyn Fn(&RouteRequest<'_>) -> ResponseFuture + Send + Sync>;

struct Route {
    method: &'static str,
    path: &'static str,
    handler: RouteHandler,
}

/// The handlers of a server, by method and exact path. They run on the server's thread: they must not block, and must
/// end.
#[derive(Default)]
pub struct Router {
    routes: Vec<Route>,
    on_response: Option<Box<dyn Fn(u16) + Send + Sync>>,
}

impl Router {
    /// Adds a route. A path with `GET` has `HEAD` too.
    #[must_use]
    pub fn route(
        self,
        method: &'static str,
        path: &'static str,
        handler: impl Fn(&RouteRequest<'_>) -> RouteResponse + Send + Sync + 'static,
    ) -> Self {
        self.route_async(method, path, move |request| ready(handler(request)))
    }

    /// Adds a route with an asynchronous handler, which runs to its end even if the client has left.
    #[must_use]
    pub(crate) fn route_async<F: Future<Output = RouteResponse> + Send + 'static>(
        mut self,
        method: &'static str,
        path: &'static str,
        handler: impl Fn(&RouteRequest<'_>) -> F + Send + Sync + 'static,
    ) -> Self {
        self.routes.push(Route {
            method,
            path,
            handler: Box::new(move |request| Box::pin(handler(request))),
        });
        self
    }

    /// Calls `observe` with the status of every response, those to invalid requests too.
    #[must_use]
    pub fn on_response(mut self, observe: impl Fn(u16) + Send + Sync + 'static) -> Self {
        self.on_response = Some(Box::new(observe));
        self
    }

    fn observe(&self, response: &RouteResponse) {
        if let Some(observe) = &self.on_response {
            observe(response.status);
        }
    }

    /// The handler, or the response to a request that has none.
    fn find(&self, method: &str, path: &str) -> Result<&RouteHandler, RouteResponse> {
        let method = if method == "HEAD" { "GET" } else { method };
        let is_known = self.routes.iter().any(|route| route.path == path);
        let path = if is_known { path } else { ANY_PATH };
        let routes = || self.routes.iter().filter(|route| route.path == path);
        if let Some(route) = routes().find(|route| route.method == method) {
            return Ok(&route.handler);
        }
        let methods: Vec<&str> = routes().map(|route| route.method).collect();
        if methods.is_empty() {
            return Err(RouteResponse::error(404, "not found"));
        }
        let mut response = RouteResponse::error(405, "method not allowed");
        response.allow = methods.join(", ").replace("GET", "GET, HEAD");
        Err(response)
    }
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.routes.iter().map(|route| (route.method, route.path)))
            .finish()
    }
}

const fn reason_phrase(status: u16) -> &'static str {
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
