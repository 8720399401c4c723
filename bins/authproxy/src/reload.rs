//! SIGHUP: the configuration is read again.
//!
//! Owns what of it takes effect, and what is said of the rest. What it means is `settings`'s.

use std::sync::{Mutex, PoisonError};

use hostkit::cli::CommandLine;
use serde_json::{Value, json};

use crate::cli::Args;
use crate::proxy::Proxy;
use crate::settings::{self, LoadedSettings};

/// The command line, which is the same for ever, and what became of the file.
#[derive(Debug)]
pub struct ConfigReloader {
    args: Args,
    matches: CommandLine,
    /// What the process was started with.
    start: LoadedSettings,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The hash of what is in force.
    hash: String,
    /// Why the file as it was last read is not in force.
    trouble: Option<String>,
}

impl ConfigReloader {
    /// Of a process that was started with this command line, and runs with these settings.
    #[must_use]
    pub fn new(args: Args, matches: CommandLine, start: LoadedSettings) -> Self {
        let state = State {
            hash: start.settings.hash.clone(),
            trouble: None,
        };
        Self {
            args,
            matches,
            start,
            state: Mutex::new(state),
        }
    }

    /// Reads the configuration again. Blocks while the disk does.
    pub fn reload(&self, proxy: &Proxy) {
        // Held throughout: of two, the later one counts.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let metrics = &proxy.telemetry.metrics;
        let loaded = match settings::load(&self.args, &self.matches) {
            Ok(loaded) => loaded,
            Err(failure) => {
                let causes = failure.causes();
                let because = (!causes.is_empty()).then(|| causes.join("; "));
                tracing::error!(because, "the new configuration is refused: {failure}");
                metrics.failed_reloads.add(1);
                state.trouble = Some(failure.to_string());
                return;
            }
        };
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        for name in settings::restarts(&self.start, &loaded) {
            tracing::warn!("{name} needs a restart to change: the value before stays in force");
        }
        proxy.site.replace(loaded.settings.site);
        tracing::info!(
            config = loaded.settings.hash,
            "the new configuration is in force"
        );
        metrics.reloads.add(1);
        state.hash = loaded.settings.hash;
        state.trouble = None;
    }

    /// What is in force, for `/status`.
    #[must_use]
    pub fn status(&self) -> Value {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        json!({ "sha256": state.hash, "trouble": state.trouble })
    }
}
