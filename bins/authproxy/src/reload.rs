//! SIGHUP: reloads the configuration.
//!
//! Owns which configuration is in force, and the warnings about changes that need a restart.

use std::sync::{Mutex, PoisonError};

use hostkit::cli::CommandLine;
use serde_json::{Value, json};

use crate::cli::Args;
use crate::proxy::Proxy;
use crate::settings::{self, LoadedSettings};

#[derive(Debug)]
pub(crate) struct ConfigReloader {
    args: Args,
    matches: CommandLine,
    /// The configuration at start.
    start: LoadedSettings,
    state: Mutex<ReloadState>,
}

#[derive(Debug)]
struct ReloadState {
    /// The hash of the configuration in force.
    hash: String,
    /// Why the last reload failed.
    error: Option<String>,
}

impl ConfigReloader {
    pub(crate) fn new(args: Args, matches: CommandLine, start: LoadedSettings) -> Self {
        let state = ReloadState {
            hash: start.settings.hash.clone(),
            error: None,
        };
        Self {
            args,
            matches,
            start,
            state: Mutex::new(state),
        }
    }

    /// Reads the configuration again. Blocks on the disk.
    pub(crate) fn reload(&self, proxy: &Proxy) {
        // Held throughout, so that the later of two reloads wins.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let metrics = &proxy.telemetry.metrics;
        let loaded = match settings::load(&self.args, &self.matches) {
            Ok(loaded) => loaded,
            Err(failure) => {
                let causes = failure.causes();
                let because = (!causes.is_empty()).then(|| causes.join("; "));
                tracing::error!(
                    because,
                    error = %failure,
                    "configuration reload failed; the previous configuration stays in force"
                );
                metrics.failed_reloads.add(1);
                state.error = Some(failure.to_string());
                return;
            }
        };
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        for name in settings::restarts(&self.start, &loaded) {
            tracing::warn!(
                setting = name,
                "changed setting needs a restart; its previous value stays in force"
            );
        }
        proxy.site.replace(loaded.settings.site);
        tracing::info!(
            config = loaded.settings.hash,
            "configuration reload finished"
        );
        metrics.reloads.add(1);
        state.hash = loaded.settings.hash;
        state.error = None;
    }

    /// The configuration in force, for `/status`.
    pub(crate) fn status(&self) -> Value {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        json!({ "sha256": state.hash, "error": state.error })
    }
}
