//! The validated command line: every error of it is found here, before a port is bound.

use std::time::Duration;

use hostkit::http::{HostPort, ServerAddress};
use hostkit::{Exit, Failure};

use crate::Args;
use crate::expectation::{ExpectedBody, StatusSet};
use crate::target::{HttpTarget, parse_host_header};

/// What is checked, and which targets are notified at the end.
#[derive(Debug, Clone)]
pub(crate) struct CheckSettings {
    /// The URLs of a check; empty when a connection is enough.
    pub(crate) targets: Vec<HttpTarget>,
    /// The server of the task: it gets the shutdown requests, and its port shows when it has ended.
    pub(crate) server: ServerAddress,
    /// The deadline of a whole check.
    pub(crate) timeout: Duration,
    pub(crate) statuses: StatusSet,
    /// `None` when the status is enough.
    pub(crate) body: Option<ExpectedBody>,
    /// Targets that are posted to at the end.
    pub(crate) notify: Vec<HttpTarget>,
}

impl CheckSettings {
    /// Validates a command line.
    ///
    /// # Errors
    /// It is not valid (exit 2); the message has the remedy.
    pub(crate) fn new(args: &Args) -> Result<Self, Failure> {
        let usage = |text: &str, remedy: &str| Failure::new(Exit::USAGE, text).remedy(remedy);
        // Flags that exclude one another have been rejected before (`Args::EXCLUSIVE`).
        if !args.tcp && args.url.is_empty() {
            return Err(usage(
                "missing --url",
                "give --url, or --tcp to only connect",
            ));
        }
        if args.timeout.is_zero() {
            return Err(usage("invalid --timeout 0", "give a second or more"));
        }
        let body = match &args.expect_body {
            Some(text) => Some(ExpectedBody::Exact(text.clone())),
            None => args.expect_body_regex.clone().map(ExpectedBody::Match),
        };
        let targets = args
            .url
            .iter()
            .map(|url| parse_target(url, args))
            .collect::<Result<Vec<_>, _>>()?;
        let server = match (args.test_port, targets.first()) {
            (Some(port), _) => ServerAddress::Tcp(HostPort::local(port)),
            (None, Some(target)) => target.address.clone(),
            (None, None) => {
                return Err(usage(
                    "missing --test-port",
                    "give --test-port, the port of the server",
                ));
            }
        };
        Ok(Self {
            targets,
            server,
            timeout: args.timeout,
            statuses: args.expect_status.clone(),
            body,
            notify: args.quit_notify.clone(),
        })
    }

    /// The URLs of a check, or the server that is connected to, for the log.
    pub(crate) fn describe_targets(&self) -> String {
        if self.targets.is_empty() {
            return self.server.to_string();
        }
        let targets: Vec<String> = self.targets.iter().map(HttpTarget::to_string).collect();
        targets.join(" ")
    }
}

fn parse_target(url: &str, args: &Args) -> Result<HttpTarget, Failure> {
    let invalid = |flag: &str, text: &str, error: String| {
        Failure::new(
            Exit::USAGE,
            format!("invalid {flag} {}", hostkit::mask::mask_url(text)),
        )
        .remedy(error)
    };
    let mut target =
        HttpTarget::parse(url, args.test_port).map_err(|error| invalid("--url", url, error))?;
    if let Some(host) = &args.host_header {
        target.host_header =
            parse_host_header(host).map_err(|error| invalid("--host-header", host, error))?;
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(line: &str) -> Result<CheckSettings, Failure> {
        let words = std::iter::once("proxy-healthcheck").chain(line.split_whitespace());
        let (args, _) = hostkit::cli::parse::<Args, _>(words).unwrap();
        CheckSettings::new(&args)
    }

    #[test]
    fn server_is_the_test_port_or_that_of_the_first_url() {
        for (line, server) in [
            ("--port=1 --url=/ --test_port=2", "localhost:2"),
            (
                "--port=1 --url=http://127.0.0.1:3/ --url=http://[::1]:4/",
                "127.0.0.1:3",
            ),
            ("--port=1 --url=http://h:3/ --test-port=2", "localhost:2"),
            ("--port=1 --tcp --test-port=2", "localhost:2"),
        ] {
            assert_eq!(settings(line).unwrap().server.to_string(), server, "{line}");
        }
    }

    #[test]
    fn invalid_command_line_is_rejected_with_a_remedy() {
        for (line, remedy) in [
            ("--port=1", "give --url"),
            ("--port=1 --tcp", "give --test-port"),
            ("--port=1 --url=/", "a path needs --test-port"),
            ("--port=1 --url=https://h/", "https is not supported"),
            (
                "--port=1 --url=/ --test-port=2 --timeout=0",
                "give a second",
            ),
            (
                "--port=1 --url=/ --test-port=2 --host-header=",
                "Host header",
            ),
        ] {
            let failure = settings(line).unwrap_err();
            assert_eq!(failure.exit(), Exit::USAGE, "{line}");
            assert!(failure.to_string().contains(remedy), "{line}: {failure}");
        }
    }
}
