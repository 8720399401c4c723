//! `--acl-server`: permissions engines that are asked over HTTP, the next one when one fails.
//!
//! Owns the order, the deadline of a question over all attempts, and how many may be under way. One server is
//! `endpoint`'s, the bytes of question and answer are `protocol`'s.

mod connect;
mod endpoint;
mod login;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hostkit::backoff;
use hostkit::{Exit, Failure};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use url::Url;

use super::{BackendUnavailable, PermissionsBackend, ServerStatus, protocol};
use crate::grant::{BackendResponse, KeyHash};
use crate::request_error::PermissionsFailure;
use connect::Connector;
use endpoint::Endpoint;

/// The time for one question: all servers, all attempts.
pub const DEADLINE: Duration = Duration::from_millis(500);
/// Questions under way at once; who brings another is told at once that nobody can be asked.
const QUESTIONS: usize = 64;
/// How often every server is tried for one question.
const ROUNDS: usize = 2;
/// The longest pause between two rounds. Short: a caller with an unknown key waits for it.
const PAUSE: Duration = Duration::from_millis(10);

/// Some permissions engines, which know the same keys.
#[derive(Debug)]
pub struct Servers {
    endpoints: Vec<Arc<Endpoint>>,
    connector: Connector,
    questions: Semaphore,
    deadline: Duration,
}

/// Whether a URL can be that of a permissions engine: `http`, `https`, or `unix:/PATH`.
///
/// # Errors
/// It cannot; the message names it, without what is secret in it.
pub fn check(url: &Url) -> Result<(), String> {
    Endpoint::new(url).map(|_| ())
}

impl Servers {
    /// Servers in the order in which they are asked. Settings of TLS, which take a megabyte, are made only if a URL has
    /// `https`.
    ///
    /// # Errors
    /// A URL cannot be that of a permissions engine, or none is given; the host has no certificate authorities (exit 78).
    pub fn new(urls: &[Url], deadline: Duration) -> Result<Self, Failure> {
        Self::like(None, urls, deadline)
    }

    /// The same, with what is known of servers that `before` had, too.
    pub(super) fn like(
        before: Option<&Self>,
        urls: &[Url],
        deadline: Duration,
    ) -> Result<Self, Failure> {
        let known = |url: &Url| before?.endpoints.iter().find(|one| one.is(url)).cloned();
        let endpoints: Result<Vec<_>, String> = urls
            .iter()
            .map(|url| match known(url) {
                Some(endpoint) => Ok(endpoint),
                None => Endpoint::new(url).map(Arc::new),
            })
            .collect();
        let endpoints = endpoints.map_err(|why| Failure::new(Exit::CONFIG, why))?;
        if endpoints.is_empty() {
            return Err(Failure::new(Exit::CONFIG, "there is no permissions engine")
                .remedy("name one with --acl-server"));
        }
        let tls = endpoints.iter().any(|endpoint| endpoint.is_tls());
        Ok(Self {
            endpoints,
            connector: Connector::new(tls)?,
            questions: Semaphore::new(QUESTIONS),
            deadline,
        })
    }

    /// What became of questions so far, by server.
    #[must_use]
    pub fn status(&self) -> Vec<ServerStatus> {
        self.endpoints.iter().map(|one| one.status()).collect()
    }

    async fn ask(&self, question: &Bytes) -> Result<BackendResponse, String> {
        let end = Instant::now() + self.deadline;
        let mut troubles: Vec<String> = Vec::new();
        for round in 0..ROUNDS {
            if round > 0 {
                sleep(backoff::random_delay(PAUSE)).await;
                // Who gets too little time fails for no fault of its own.
                if end.saturating_duration_since(Instant::now()) < self.deadline / 2 {
                    break;
                }
            }
            let mut asked = false;
            troubles.clear();
            for (at, endpoint) in self.endpoints.iter().enumerate() {
                // Of the time that is left every server has its share: the first one must not use up all of it.
                let left = end.saturating_duration_since(Instant::now());
                let share = left / u32::try_from(self.endpoints.len() - at).unwrap_or(u32::MAX);
                match endpoint.ask(question, share, &self.connector).await {
                    endpoint::Outcome::Answered(found) => return Ok(found),
                    endpoint::Outcome::Failed(why) => {
                        asked = true;
                        troubles.push(why);
                    }
                    endpoint::Outcome::LeftAlone(why) => troubles.push(why),
                }
            }
            if !asked {
                break;
            }
        }
        Err(troubles.join("; "))
    }
}

impl PermissionsBackend for Servers {
    async fn look_up(&self, key: KeyHash) -> Result<BackendResponse, BackendUnavailable> {
        let Ok(_under_way) = self.questions.try_acquire() else {
            let why = format!("{QUESTIONS} questions are under way");
            return Err(BackendUnavailable::new(PermissionsFailure::Overloaded, why));
        };
        let question = Bytes::from(protocol::encode_request(&key));
        self.ask(&question)
            .await
            .map_err(BackendUnavailable::failed)
    }
}
