//! synapse: follows services in ZooKeeper, files and DNS, and keeps HAProxy in step without losing a request.
//!
//! A change goes this way: `watcher` finds it, `watcher::select` makes members of it, `guard` doubts it, `membership`
//! gives it a server slot, `probe` proves it, `planner` puts it into runtime commands, `haproxy` sends them; and `render`
//! writes it into the file. `engine` is the loop around all of these.

pub mod cli;
pub mod config;
pub mod engine;
pub mod guard;
pub mod haproxy;
pub mod journal;
pub mod keywords;
pub mod membership;
pub mod metrics;
pub mod model;
pub mod output;
pub mod planner;
pub mod probe;
pub mod proxies;
pub mod render;
pub mod settings;
pub mod state;
pub mod statsd;
pub mod verbs;
pub mod watcher;

#[cfg(test)]
mod tests;

pub use cli::Args;

use cli::Verb;
use config::Sources;
use hostkit::{Exit, Failure, stdout};
use settings::Settings;

/// Where hostkit's tools are configured.
const DIRECTORY: &str = "/etc/hostkit";

/// How many threads may wait for a disk.
const THREADS: usize = 8;

/// The stack of such a thread, in bytes.
const STACK: usize = 512 << 10;

/// Does what the command line asks for.
///
/// # Errors
/// What failed, with the exit code of its kind.
pub fn run(args: Args) -> Result<Exit, Failure> {
    if let Some(file) = &args.check_clusters {
        let clusters = config::clusters_of(Some(file))?;
        stdout::print_text(&config::clusters_summary(&clusters))?;
        return Ok(Exit::OK);
    }
    let sources = sources(&args)?;
    let (settings, findings) = config::load(&sources, args.lenient)?;
    if args.check {
        if !findings.is_empty() {
            stdout::print_text(&config::report(&findings))?;
        }
        stdout::print_text(&config::summary(&settings))?;
        return Ok(Exit::OK);
    }
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // What its threads do is read and write files, most of it waiting for a disk. Each has its own share of the
    // allocator's memory.
    builder
        .enable_all()
        .max_blocking_threads(THREADS)
        .thread_stack_size(STACK);
    let runtime = hostkit::runtime::build(&mut builder)?;
    let end = match args.verb.clone() {
        Some(verb) => runtime.block_on(ask(&settings, verb)),
        None => {
            for finding in findings {
                tracing::warn!("{finding}");
            }
            runtime.block_on(engine::run(engine::Start {
                settings,
                sources,
                lenient: args.lenient,
                force: args.force,
                admin: args.admin.admin,
                drain_timeout: args.drain.drain_timeout,
            }))
        }
    };
    // Tasks that wait for a disk or a name server must not keep the process.
    runtime.shutdown_background();
    end
}

/// Where the configuration is, and what it shares with other tools.
fn sources(args: &Args) -> Result<Sources, Failure> {
    let file = args
        .config
        .clone()
        .or_else(|| Some(hostkit::env::var_os("SYNAPSE_CONFIG")?.into()));
    Ok(Sources {
        file,
        directory: DIRECTORY.into(),
        clusters: config::shared_clusters()?,
        host: nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
    })
}

async fn ask(settings: &Settings, verb: Verb) -> Result<Exit, Failure> {
    match verb {
        Verb::Plan { wait, json } => verbs::plan::run(settings, wait, json).await,
        Verb::Explain {
            service,
            wait,
            json,
        } => verbs::explain::run(settings, &service, wait, json).await,
        Verb::Render { from, json } => verbs::render::run(settings, &from, json),
        Verb::Status { json } => verbs::status::run(settings, json),
        Verb::Journal {
            since,
            service,
            lines,
            follow,
            json,
        } => {
            let show = verbs::journal::Show {
                since,
                service,
                lines,
                follow,
                json,
            };
            verbs::journal::run(settings, show).await
        }
        Verb::Doctor { json } => verbs::doctor::run(settings, json).await,
        Verb::Reload { force, json } => verbs::reload::run(settings, force, json).await,
    }
}
