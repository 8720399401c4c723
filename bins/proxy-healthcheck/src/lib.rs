//! proxy-healthcheck: answers Aurora's health checks on a task's `health` port, by asking the server that the task is
//! about. Each check is a fresh connection, with one deadline for all of it.
//!
//! The contract with Aurora is `hostkit::health`; here is what a healthy server is (`probe`), and what the server and
//! its siblings are told when the task ends (`quit`).

pub mod cli;
mod exchange;
pub mod expect;
mod probe;
mod quit;
pub mod settings;
pub mod target;

pub use cli::Args;

use std::path::Path;
use std::time::Duration;

use hostkit::health::{self, Check, Quit, Verdict};
use hostkit::{Exit, Failure};
use settings::Settings;

/// What a probe may take beyond its own deadline, which tells more of what went wrong.
const MARGIN: Duration = Duration::from_secs(1);

/// Does what the command line asks for.
///
/// # Errors
/// The command line makes no sense (exit 2), or the port cannot be bound (exit 73).
pub fn run(args: Args) -> Result<Exit, Failure> {
    let settings = Settings::new(&args)?;
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // For looking up names, one at a time; localhost and addresses need none.
    builder.enable_all().max_blocking_threads(1);
    let runtime = hostkit::runtime::build(&mut builder)?;
    tracing::info!(server = settings.shown(), timeout = ?settings.timeout, "checking");
    let server = Server(settings);
    // Thermos starts a task's processes in its sandbox.
    let end = runtime.block_on(health::serve(
        args.port,
        Path::new("."),
        &args.health,
        server,
    ));
    // A name server that does not answer must not keep the process.
    runtime.shutdown_background();
    end
}

/// The server, as Aurora's contract sees it.
struct Server(Settings);

impl Check for Server {
    fn deadline(&self) -> Duration {
        self.0.timeout + MARGIN
    }

    async fn probe(&self) -> Verdict {
        probe::all(&self.0).await
    }

    async fn quit(&self, how: Quit) {
        quit::quit(&self.0, how).await;
    }
}
