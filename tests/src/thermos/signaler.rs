//! The HTTP check of Aurora's executor: `apache/aurora/common/health_check/http_signaler.py`. The transport is in
//! `urllib`; when a check is made and what follows is decided by [`HealthCounters`](super::HealthCounters) and
//! [`HttpLifecycle`](super::HttpLifecycle).

use std::collections::BTreeMap;
use std::time::Duration;

use super::urllib::{HttpUrl, UrllibError, UrllibResponse};

/// urllib2's limit of redirects, in total and to one URL.
const REDIRECTS: (usize, u32) = (10, 4);
/// A text of this length or more is shortened on Aurora's page.
const SHORTENED: usize = 10;

/// Sends requests to a port of localhost, each on a new connection.
#[derive(Debug, Clone)]
pub struct HttpSignaler {
    host: String,
    port: u16,
    timeout: Duration,
}

/// The expected response of a health check.
#[derive(Debug, Clone)]
pub struct HttpCheck {
    pub(super) endpoint: String,
    pub(super) response: String,
    pub(super) code: u16,
}

impl Default for HttpCheck {
    fn default() -> Self {
        Self {
            endpoint: "/health".to_owned(),
            response: "ok".to_owned(),
            code: 0,
        }
    }
}

impl HttpCheck {
    /// Sets the path. (`/health`)
    #[must_use]
    pub fn endpoint(mut self, endpoint: &str) -> Self {
        endpoint.clone_into(&mut self.endpoint);
        self
    }

    /// Sets the expected body; an empty one is not compared. (`ok`)
    #[must_use]
    pub fn response(mut self, response: &str) -> Self {
        response.clone_into(&mut self.response);
        self
    }

    /// Sets the expected status code; 0 is not compared. (0)
    #[must_use]
    pub const fn code(mut self, code: u16) -> Self {
        self.code = code;
        self
    }
}

/// The response as urllib2 returns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignalerResponse {
    /// The status code of the last response.
    pub code: u16,
    /// The body; empty unless the code is 2xx.
    pub body: Vec<u8>,
}

impl HttpSignaler {
    /// Uses a timeout of 1 s for each socket operation, as the lifecycle does; their sum is not bounded.
    #[must_use]
    pub fn new(port: u16) -> Self {
        Self {
            host: "localhost".to_owned(),
            port,
            timeout: Duration::from_secs(1),
        }
    }

    /// Sets another host name or address. (localhost)
    #[must_use]
    pub fn host(mut self, host: &str) -> Self {
        host.clone_into(&mut self.host);
        self
    }

    /// Sets the timeout of each operation. (1 s)
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Checks the health.
    ///
    /// # Errors
    /// The reason that Aurora's page shows after `Failed health check! `.
    pub fn check(&self, http: &HttpCheck) -> Result<(), String> {
        let answer = self.query("GET", &http.endpoint)?;
        let body = strip(&answer.body).to_ascii_lowercase();
        if !http.response.is_empty() && body != http.response.to_ascii_lowercase().as_bytes() {
            return Err(format!(
                "Response differs from expected response (expected \"{}\", got \"{}\")",
                shorten(http.response.as_bytes()),
                shorten(&body)
            ));
        }
        if http.code != 0 && answer.code != http.code {
            return Err(format!(
                "Response code differs from expected response (expected {}, got {})",
                http.code, answer.code
            ));
        }
        Ok(())
    }

    /// Sends a POST; any response counts.
    ///
    /// # Errors
    /// No response came in time.
    pub fn post(&self, endpoint: &str) -> Result<(), String> {
        self.query("POST", endpoint).map(drop)
    }

    /// Sends a request, and follows redirects as urllib2 does.
    ///
    /// # Errors
    /// No response came.
    pub fn query(&self, method: &str, endpoint: &str) -> Result<SignalerResponse, String> {
        let start = HttpUrl {
            host: self.host.clone(),
            port: self.port,
            path: endpoint.to_owned(),
        };
        let failed = |why: UrllibError| format!("Failed to signal {start}: {why}");
        let (mut place, mut method) = (start.clone(), method.to_owned());
        let mut visited = BTreeMap::new();
        loop {
            let mut reply = UrllibResponse::ask(&place, &method, self.timeout).map_err(failed)?;
            let code = reply.code;
            if (200..300).contains(&code) {
                let body = reply.body().map_err(failed)?;
                return Ok(SignalerResponse { code, body });
            }
            let body = Vec::new();
            let Some(next) = reply.redirect(&place, &method) else {
                return Ok(SignalerResponse { code, body });
            };
            let visits: u32 = visited.get(&next.to_string()).copied().unwrap_or(0);
            if visits >= REDIRECTS.1 || visited.len() >= REDIRECTS.0 {
                return Ok(SignalerResponse { code, body });
            }
            visited.insert(next.to_string(), visits + 1);
            reply.body().map_err(failed)?;
            (place, method) = (next, "GET".to_owned());
        }
    }
}

/// Python's `strip` of bytes.
fn strip(bytes: &[u8]) -> &[u8] {
    let space = |byte: &u8| matches!(byte, b' ' | b'\t'..=b'\r');
    let start = bytes
        .iter()
        .position(|byte| !space(byte))
        .unwrap_or(bytes.len());
    let end = bytes
        .iter()
        .rposition(|byte| !space(byte))
        .map_or(start, |at| at + 1);
    &bytes[start..end]
}

/// The text that fits on Aurora's page.
fn shorten(bytes: &[u8]) -> String {
    let (kept, more) = match bytes.len() {
        SHORTENED.. => (&bytes[..SHORTENED - 3], "..."),
        _ => (bytes, ""),
    };
    format!("{}{more}", String::from_utf8_lossy(kept))
}
