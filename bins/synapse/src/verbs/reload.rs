//! `synapse reload`: tells the running synapse to read its configuration again, and says what came of it.

use std::time::Duration;

use hostkit::dir::Durability;
use hostkit::{Exit, Failure, clock, stdout};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::engine::ACCEPT;
use crate::settings::Settings;
use crate::state;

/// How long the running synapse gets to take it up.
const WAIT: Duration = Duration::from_secs(10);

/// Sends SIGHUP, after noting with `force` that the configuration as it is now may remove any number of services.
///
/// # Errors
/// No synapse runs (exit 69), it belongs to somebody else (exit 77), or it has refused the configuration (exit 78).
pub async fn run(settings: &Settings, force: bool, as_json: bool) -> Result<Exit, Failure> {
    let Some(pid) = state::holder(&settings.state_file) else {
        return Err(
            Failure::new(Exit::UNAVAILABLE, "no synapse runs with this configuration").remedy(
                format!(
                    "nobody holds {}.lock; start it",
                    settings.state_file.display()
                ),
            ),
        );
    };
    if force {
        let write = || {
            let (dir, _) = state::locate(&settings.state_file)?;
            dir.write_atomic(
                ACCEPT,
                format!("{}\n", settings.hash).as_bytes(),
                0o644,
                Durability::Process,
            )
        };
        write().map_err(|error: std::io::Error| {
            Failure::new(
                Exit::CANNOT_CREATE,
                format!("cannot write beside {}", settings.state_file.display()),
            )
            .remedy("run this as the user that synapse runs as")
            .because(error)
        })?;
    }
    let status = settings.state_file.with_file_name("status.json");
    let said = || -> serde_json::Value {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let mut status: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        status["config"].take()
    };
    // What it said of an earlier reading is no answer.
    let before = said()["reads"].take();
    let signalled = i32::try_from(pid).map(|pid| kill(Pid::from_raw(pid), Signal::SIGHUP));
    if !matches!(signalled, Ok(Ok(()))) {
        return Err(
            Failure::new(Exit::DENIED, format!("cannot signal synapse (pid {pid})"))
                .remedy("run this as root or as the user that synapse runs as"),
        );
    }
    let end = clock::since_boot() + WAIT;
    while clock::since_boot() < end {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let config = said();
        if config["reads"].is_null() || config["reads"] == before {
            continue;
        }
        if let Some(why) = config["refused"].as_str() {
            return Err(
                Failure::new(Exit::CONFIG, "synapse refused the configuration")
                    .because(why.to_owned()),
            );
        }
        if config["hash"] == settings.hash.as_str() {
            if as_json {
                stdout::print_json(&json!({"pid": pid, "hash": settings.hash}))?;
            } else {
                stdout::print_line(format_args!(
                    "synapse (pid {pid}) follows this configuration"
                ))?;
            }
            return Ok(Exit::OK);
        }
    }
    Err(Failure::new(
        Exit::TRY_AGAIN,
        format!("synapse (pid {pid}) did not take up the configuration within {WAIT:?}"),
    )
    .remedy("does it read the same files? look at its log"))
}
