//! The command line.

use std::ffi::OsString;
use std::time::Duration;

use clap::Parser;
use hostkit::cli::{Common, Tool};
use hostkit::health::HealthFlags;
use hostkit::{nagios, units};
use regex_lite::Regex;

use crate::expect::Statuses;
use crate::target::Notify;

/// Answers Aurora's health checks for a server that does not know them.
///
/// GET /health on --port asks the server over a fresh connection and answers `200 ok` or 503 with the reason in a word:
/// refused, timeout, closed, garbage, http503, http302, badbody, noname, error; quit once the task has been told to end.
/// POST /quitquitquit and /abortabortabort are answered at once and passed on. GET /history tells the last verdicts.
#[derive(Debug, Parser)]
pub struct Args {
    /// Flags that all tools have.
    #[command(flatten)]
    pub common: Common,
    /// The port that Aurora asks, of 127.0.0.1 and ::1: `{{thermos.ports[health]}}`
    #[arg(long, value_name = "PORT", required_unless_present = "once")]
    pub port: Option<u16>,
    /// Ask once instead of listening on --port, as a Nagios plugin: exit 0 OK, 2 CRITICAL or 3 UNKNOWN
    #[arg(long)]
    pub once: bool,
    /// Print the result of --once as JSON
    #[arg(long)]
    pub json: bool,
    /// What is asked of the server: a path, on --test-port, or an http URL. All that are given must pass
    #[arg(long, value_name = "URL", value_delimiter = ' ')]
    pub url: Vec<String>,
    /// The port of the server on this host: `{{thermos.ports[private]}}`
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub test_port: Option<u16>,
    /// Longest time for a whole check; keep it below the `timeout_secs` of Aurora's configuration
    #[arg(long, value_name = "DURATION", default_value = "4.5s", value_parser = units::parse_duration)]
    pub timeout: Duration,
    /// Statuses that are healthy: 200, 2xx, 200-399, or several with commas. Redirects are not followed
    #[arg(long, value_name = "LIST", default_value = "2xx")]
    pub expect_status: Statuses,
    /// The whole body of a healthy answer; white space around it does not count
    #[arg(long, value_name = "TEXT")]
    pub expect_body: Option<String>,
    /// A pattern to be found in the first 64 KiB of a healthy answer's body
    #[arg(long, value_name = "REGEX", value_parser = Regex::new)]
    pub expect_body_regex: Option<Regex>,
    /// The Host header, for servers that choose by name [default: that of the URL, or localhost:PORT]
    #[arg(long, value_name = "HOST")]
    pub host_header: Option<String>,
    /// Only connect to --test-port, for servers that do not speak HTTP
    #[arg(long)]
    pub tcp: bool,
    /// POST here when the task ends: http://127.0.0.1:PORT/PATH, or unix:PATH for its /drain. Repeatable
    #[arg(long, value_name = "TARGET", value_delimiter = ' ')]
    pub quit_notify: Vec<Notify>,
    /// The contract with Aurora.
    #[command(flatten)]
    pub health: HealthFlags,
}

impl Tool for Args {
    const NAME: &'static str = "proxy-healthcheck";
    // A check without HTTP has no answer whose body, or Host header, could matter.
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
