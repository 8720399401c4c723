//! Counts and logs the loads of a followed file.

use std::path::Path;
use std::time::Duration;

use hostkit::{Failure, clock};

use super::FileStatus;

#[derive(Debug, Default)]
pub(super) struct LoadTracker {
    /// When the text in force was loaded, as time since boot.
    loaded_at: Option<Duration>,
    loaded: u64,
    rejected: u64,
    error: Option<String>,
}

impl LoadTracker {
    pub(super) fn record_loaded(&mut self) {
        self.loaded_at = Some(clock::since_boot());
        self.loaded += 1;
        self.error = None;
    }

    pub(super) fn record_unchanged(&mut self, path: &Path) {
        if self.error.take().is_some() {
            tracing::info!(path = %path.display(), "file restored to the text in force");
        }
    }

    /// Logs and counts an error once, however often the file is read.
    pub(super) fn record_rejected(&mut self, failure: &Failure) {
        let error = failure.to_string();
        if self.error.as_ref() == Some(&error) {
            return;
        }
        match self.loaded_at {
            Some(_) => tracing::error!(error, "file rejected; the previous text stays in force"),
            None => tracing::error!(
                error,
                "file rejected; keys cannot be checked until it is valid"
            ),
        }
        self.rejected += 1;
        self.error = Some(error);
    }

    pub(super) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    pub(super) fn status(&self, path: &Path, entries: usize, sha256: Option<String>) -> FileStatus {
        let now = clock::since_boot();
        FileStatus {
            path: path.display().to_string(),
            entries,
            sha256,
            age: self.loaded_at.map(|at| now.saturating_sub(at)),
            loaded: self.loaded,
            rejected: self.rejected,
            error: self.error.clone(),
        }
    }
}
