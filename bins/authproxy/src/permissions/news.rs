//! What became of the texts of a followed file: which one is in force, and why the newest is not.

use std::path::Path;
use std::time::Duration;

use hostkit::{Failure, clock};

use super::FileStatus;

/// The story of one file.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Since when the text in force is, as time since boot; none before there was a valid one.
    since: Option<Duration>,
    loaded: u64,
    refused: u64,
    trouble: Option<String>,
}

impl News {
    /// Another text is in force.
    pub(super) fn taken(&mut self) {
        self.since = Some(clock::since_boot());
        self.loaded += 1;
        self.trouble = None;
    }

    /// The text is the one in force.
    pub(super) fn unchanged(&mut self, path: &Path) {
        if self.trouble.take().is_some() {
            tracing::info!("{} is again what is in force", path.display());
        }
    }

    /// The text cannot be taken. Logged and counted once, however often it is read.
    pub(super) fn refused(&mut self, failure: &Failure) {
        let trouble = failure.to_string();
        if self.trouble.as_ref() == Some(&trouble) {
            return;
        }
        match self.since {
            Some(_) => tracing::error!("{trouble}; what was read before stays in force"),
            None => tracing::error!("{trouble}; until then no key can be checked"),
        }
        self.refused += 1;
        self.trouble = Some(trouble);
    }

    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    pub(super) fn status(&self, path: &Path, entries: usize, sha256: Option<String>) -> FileStatus {
        let now = clock::since_boot();
        FileStatus {
            path: path.display().to_string(),
            entries,
            sha256,
            age: self.since.map(|since| now.saturating_sub(since)),
            loaded: self.loaded,
            refused: self.refused,
            trouble: self.trouble.clone(),
        }
    }
}
