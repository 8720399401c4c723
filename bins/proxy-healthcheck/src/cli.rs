//! The command line.

use std::ffi::OsString;
use std::time::Duration;

use clap::Parser;
use hostkit::cli::{Common, Tool};
use hostkit::health::HealthFlags;
use hostkit::{nagios, units};
use regex_lite::Regex;

use crate::expectation::StatusSet;
use crate::target::HttpTarget;

/// Implements Aurora's HTTP health and shutdown endpoints for a server that has none.
///
/// GET /health on --port sends a request to the server over a new connection and returns `200 ok`, or 503 with a reason:
/// refused, timeout, closed, invalid, http503, http302, badbody, dnsfail, error; quit after a shutdown request.
/// POST /quitquitquit and /abortabortabort are answered at once and forwarded. GET /history lists the last results.
#[derive(Debug, Parser)]
pub struct Args {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Port of the health endpoints on 127.0.0.1 and ::1: `{{thermos.ports[health]}}`
    #[arg(long, value_name = "PORT", required_unless_present = "once")]
    pub(crate) port: Option<u16>,
    /// Check once instead of listening on --port, as a Nagios plugin: exit 0 OK, 2 CRITICAL or 3 UNKNOWN
    #[arg(long)]
    pub(crate) once: bool,
    /// Print the result of --once as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Path on --test-port, or http URL, to request from the server. Repeatable: all must be healthy
    #[arg(long, value_name = "URL", value_delimiter = ' ')]
    pub(crate) url: Vec<String>,
    /// Port of the server on this host: `{{thermos.ports[private]}}`
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) test_port: Option<u16>,
    /// Deadline of a whole check; keep it below the `timeout_secs` of Aurora's configuration
    #[arg(long, value_name = "DURATION", default_value = "4.5s", value_parser = units::parse_duration)]
    pub(crate) timeout: Duration,
    /// Healthy statuses: 200, 2xx, 200-399, or several with commas. Redirects are not followed
    #[arg(long, value_name = "LIST", default_value = "2xx")]
    pub(crate) expect_status: StatusSet,
    /// Whole body of a healthy response; leading and trailing white space is ignored
    #[arg(long, value_name = "TEXT")]
    pub(crate) expect_body: Option<String>,
    /// Pattern that the first 64 KiB of a healthy response's body must match
    #[arg(long, value_name = "REGEX", value_parser = Regex::new)]
    pub(crate) expect_body_regex: Option<Regex>,
    /// Host header, for servers with virtual hosts [default: that of the URL, or localhost:PORT]
    #[arg(long, value_name = "HOST")]
    pub(crate) host_header: Option<String>,
    /// Only connect to --test-port, for servers without HTTP
    #[arg(long)]
    pub(crate) tcp: bool,
    /// POST here on shutdown: http://127.0.0.1:PORT/PATH, or unix:PATH for its /drain. Repeatable
    #[arg(long, value_name = "TARGET", value_delimiter = ' ', value_parser = HttpTarget::parse_notification)]
    pub(crate) quit_notify: Vec<HttpTarget>,
    #[command(flatten)]
    pub(crate) health: HealthFlags,
}

impl Tool for Args {
    const NAME: &'static str = "proxy-healthcheck";
    // A check without HTTP has neither a body nor a Host header.
    const EXCLUSIVE: &[&[&str]] = &[
        &["tcp", "url"],
        &["tcp", "expect-body", "expect-body-regex"],
        &["tcp", "host-header"],
    ];
    fn is_plugin(line: &[OsString]) -> bool {
        nagios::has_switch(line, "--once")
    }
    fn common(&self) -> &Common {
        &self.common
    }
}
