//! The command line after it has been understood: everything that can be wrong with it is said here, before anything is
//! bound.

use std::time::Duration;

use hostkit::http::HostPort;
use hostkit::{Exit, Failure};

use crate::Args;
use crate::expect::{Body, Statuses};
use crate::target::{Notify, Target, header};

/// What is checked, and who is told at the end.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What is asked; nothing when it is enough to connect.
    pub targets: Vec<Target>,
    /// The server that the task is about: it is told to end, and its port says when it has.
    pub server: HostPort,
    /// The deadline of a whole check.
    pub timeout: Duration,
    /// Healthy statuses.
    pub statuses: Statuses,
    /// The healthy body; `None` when the status is enough.
    pub body: Option<Body>,
    /// Who else is told at the end.
    pub notify: Vec<Notify>,
}

impl Settings {
    /// Understands a command line.
    ///
    /// # Errors
    /// It makes no sense (exit 2); the message says what to write.
    pub fn new(args: &Args) -> Result<Self, Failure> {
        let usage = |text: &str, remedy: &str| Failure::new(Exit::USAGE, text).remedy(remedy);
        // What excludes one another has been refused by then (`Args::EXCLUSIVE`).
        if !args.tcp && args.url.is_empty() {
            return Err(usage(
                "nothing to check",
                "give --url, or --tcp to only connect",
            ));
        }
        if args.timeout.is_zero() {
            return Err(usage(
                "no server answers within --timeout 0",
                "give it a second or more",
            ));
        }
        let body = match &args.expect_body {
            Some(text) => Some(Body::Exactly(text.clone())),
            None => args.expect_body_regex.clone().map(Body::Matching),
        };
        let targets = args
            .url
            .iter()
            .map(|url| target(url, args))
            .collect::<Result<Vec<_>, _>>()?;
        let server = match (args.test_port, targets.first()) {
            (Some(port), _) => HostPort::local(port),
            (None, Some(target)) => target.endpoint.clone(),
            (None, None) => {
                return Err(usage(
                    "connect to which port?",
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

    /// What is checked, for the log.
    #[must_use]
    pub fn shown(&self) -> String {
        if self.targets.is_empty() {
            return self.server.to_string();
        }
        let targets: Vec<String> = self.targets.iter().map(Target::to_string).collect();
        targets.join(" ")
    }
}

fn target(url: &str, args: &Args) -> Result<Target, Failure> {
    let refuse = |flag: &str, text: &str, error: String| {
        Failure::new(
            Exit::USAGE,
            format!("{flag} {}", hostkit::mask::mask_url(text)),
        )
        .remedy(error)
    };
    let mut target =
        Target::new(url, args.test_port).map_err(|error| refuse("--url", url, error))?;
    if let Some(host) = &args.host_header {
        target.host_header = header(host).map_err(|error| refuse("--host-header", host, error))?;
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(line: &str) -> Result<Settings, Failure> {
        let words = std::iter::once("proxy-healthcheck").chain(line.split_whitespace());
        let (args, _) = hostkit::cli::parse::<Args, _>(words).unwrap();
        Settings::new(&args)
    }

    #[test]
    fn the_server_is_the_test_port_or_the_first_url() {
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
    fn what_makes_no_sense_is_refused_with_a_remedy() {
        for (line, said) in [
            ("--port=1", "give --url"),
            ("--port=1 --tcp", "give --test-port"),
            ("--port=1 --url=/", "a path needs --test-port"),
            ("--port=1 --url=https://h/", "https is not spoken"),
            (
                "--port=1 --url=/ --test-port=2 --timeout=0",
                "give it a second",
            ),
            (
                "--port=1 --url=/ --test-port=2 --host-header=",
                "Host header",
            ),
        ] {
            let failure = settings(line).unwrap_err();
            assert_eq!(failure.exit(), Exit::USAGE, "{line}");
            assert!(failure.to_string().contains(said), "{line}: {failure}");
        }
    }
}
