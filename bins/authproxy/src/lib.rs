//! authproxy: checks the API key of every request, and passes the request on to the server.

pub mod access;
pub mod answer;
mod body;
pub mod cache;
pub mod cli;
pub mod config;
mod conn;
pub mod credential;
mod deadline;
pub mod door;
pub mod gate;
pub mod grant;
pub mod headers;
pub mod key;
pub mod lifecycle;
pub mod metrics;
pub mod permissions;
pub mod proxy;
pub mod record;
pub mod refusal;
pub mod scope;
pub mod serve;
pub mod serve_acl;
pub mod settings;
mod tunnel;
mod upstream;

#[cfg(test)]
mod tests;

pub use cli::Args;

use clap::ArgMatches;
use hostkit::{Exit, Failure, out};

/// Does what the command line asks for.
///
/// # Errors
/// What failed, with the exit code of its kind.
pub fn run(args: Args, matches: &ArgMatches) -> Result<Exit, Failure> {
    let loaded = settings::load(&args, matches)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    if args.check {
        out::text(&settings::summary(&loaded.settings))?;
    }
    Ok(Exit::OK)
}
