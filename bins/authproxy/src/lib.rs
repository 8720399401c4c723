//! authproxy: checks the API key of every request, and forwards allowed requests to the upstream.
//!
//! `server` accepts connections, `request_validation` validates their bytes, hyper parses them (`connection`). For each
//! request, `proxy` calls the `authorizer` (`credential`, `cache`, `permissions`, `scope`), changes its `headers`, and
//! forwards it to the `upstream`; `record` describes the outcome.

#![allow(
    missing_docs,
    reason = "the API is `Args` and `run`; `testing` is for tests alone"
)]

mod access_log;
mod admin;
mod authorizer;
mod body;
mod cache;
mod circuit_breaker;
mod cli;
mod config;
mod connection;
mod credential;
mod daemon;
mod deadline;
mod eviction_queue;
mod grant;
mod headers;
mod key;
mod lifecycle;
mod local_response;
mod metrics;
mod percent;
mod permissions;
mod preflight;
mod proxy;
mod record;
mod reload;
mod request_error;
mod request_validation;
mod scope;
mod serve_acl;
mod server;
mod settings;
mod tunnel;
mod upstream;

#[cfg(test)]
mod tests;

pub use cli::Args;

/// For integration tests, benches and fuzz bodies.
#[doc(hidden)]
pub mod testing {
    pub use crate::cache::{
        ExpectedReply, KeyLookup, MAX_VALUE_BYTES, MemcachedReply, PermissionsCache, PurgeTarget,
        SharedCache, parse_reply,
    };
    pub use crate::circuit_breaker::BreakerState;
    pub use crate::credential::{
        extract_key, find_parameter, mask_query, parse_authorization, remove_parameter,
    };
    pub use crate::grant::{BackendResponse, Grant, KeyHash};
    pub use crate::permissions::file::AclFile;
    pub use crate::permissions::liveconf::LiveconfBackend;
    pub use crate::permissions::server::{DEADLINE, PermissionsServers};
    pub use crate::permissions::{BackendUnavailable, PermissionsBackend};
    pub use crate::request_error::RequestError;
    pub use crate::request_validation::RequestValidator;
    pub use crate::settings::{CacheSettings, KeySources, MemcachedSettings, SigningSecret};
    pub use crate::upstream::fuzz_response;
}

use cli::Verb;
use hostkit::cli::CommandLine;
use hostkit::{Exit, Failure, stdout};

/// Runs the verb of the command line, or the proxy.
///
/// # Errors
/// See the exit codes of each verb.
pub fn run(args: Args, matches: &CommandLine) -> Result<Exit, Failure> {
    match args.verb {
        Some(Verb::Key(verb)) => return key::run(verb),
        Some(Verb::ServeAcl(args)) => return serve_acl::run(&args),
        None => {}
    }
    let loaded = settings::load(&args, matches)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    if args.check {
        stdout::print_text(&daemon::check(&loaded)?)?;
        return Ok(Exit::OK);
    }
    daemon::run(args, matches, loaded)
}
