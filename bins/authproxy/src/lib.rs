//! authproxy: checks the API key of every request, and passes the request on to the server.
//!
//! A request goes this way: `server` accepts, `request_validation` reads its bytes strictly, `connection` has hyper parse
//! them, `proxy` asks the `door` (`credential`, `cache`, `permissions`, `scope`), changes its `headers` and hands it to `upstream`; what
//! became of it is a `record`.

pub mod access_log;
pub mod admin;
pub mod authorizer;
mod body;
pub mod cache;
pub mod cli;
pub mod config;
mod connection;
pub mod credential;
mod daemon;
mod deadline;
mod eviction_queue;
pub mod grant;
pub mod headers;
pub mod key;
pub mod lifecycle;
pub mod local_response;
mod metrics;
pub mod permissions;
mod preflight;
pub mod proxy;
pub mod record;
pub mod reload;
pub mod request_error;
pub mod request_validation;
pub mod scope;
pub mod serve_acl;
pub mod server;
pub mod settings;
mod tunnel;
mod upstream;

#[cfg(test)]
mod tests;

pub use cli::Args;
pub use upstream::fuzz_response;

use cli::Verb;
use hostkit::cli::CommandLine;
use hostkit::{Exit, Failure, stdout};

/// Does what the command line asks for.
///
/// # Errors
/// What failed, with the exit code of its kind.
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
