//! Progress of long transfers: a bar on a terminal, otherwise a log line every few seconds.

use std::time::Duration;

use hostkit::stdout;
use hostkit::units::format_size;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;
use tracing::info;

const LOG_EVERY: Duration = Duration::from_secs(5);

/// The progress of one transfer.
pub(crate) struct TransferProgress {
    bar: ProgressBar,
    what: String,
    logged: Instant,
}

impl TransferProgress {
    /// Progress of `what`, such as a URL with masked secrets; `verb` describes the work.
    #[must_use]
    pub(crate) fn new(what: &str, verb: &str) -> Self {
        let style = ProgressStyle::with_template(
            "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        );
        // Draws nothing when stderr is not a terminal.
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = style {
            bar.set_style(style);
        }
        let name = what.rsplit('/').next().unwrap_or(what);
        bar.set_message(stdout::replace_unprintable(&format!("{verb} {name}")));
        Self {
            bar,
            what: format!("{verb} {what}"),
            logged: Instant::now(),
        }
    }

    /// Shows how many bytes have arrived, of how many.
    pub(crate) fn show(&mut self, arrived: u64, size: Option<u64>) {
        if let Some(size) = size {
            self.bar.set_length(size);
        }
        self.bar.set_position(arrived);
        if self.bar.is_hidden() && self.logged.elapsed() >= LOG_EVERY {
            self.logged = Instant::now();
            let size = size.map_or_else(|| "?".to_owned(), format_size);
            info!("{}: {} of {size}", self.what, format_size(arrived));
        }
    }
}

impl Drop for TransferProgress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
