//! One check, from the state file to the verdict; repeated in resident mode. Time is an argument.

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hostkit::{Exit, Failure};

use crate::check_state::{CheckState, FNV_OFFSET, fnv1a};
use crate::cli::{Args, TimeSource, spread_share};
use crate::line_pattern::LinePattern;
use crate::log_files::{LogSelector, SandboxLocations};
use crate::log_reader::{CheckCriteria, LogSummary};
use crate::state_file::StateFile;
use crate::verdict::{CheckVerdict, GracePeriod, evaluate};
use crate::wall_time::WallTime;

/// A check with its last state.
#[derive(Debug)]
pub(crate) struct LogCheck {
    criteria: CheckCriteria,
    selector: LogSelector,
    locations: SandboxLocations,
    /// `--grace`; zero if the health service applies it.
    grace: Duration,
    /// The criteria that the stored state must belong to.
    criteria_hash: u64,
    state_file: StateFile,
    /// The last state, and whether the state file contains it.
    last_state: Option<(CheckState, bool)>,
}

#[derive(Debug)]
pub(crate) struct CheckOutcome {
    pub(crate) verdict: CheckVerdict,
    pub(crate) summary: LogSummary,
    /// Whether the state was saved for the next process.
    pub(crate) saved: io::Result<()>,
}

impl LogCheck {
    /// The check of a command line, with logs below `locations`, for the instance `instance` of a job.
    ///
    /// # Errors
    /// Invalid pattern, process name, warning age or state file (exit 3).
    pub(crate) fn new(
        args: &Args,
        locations: SandboxLocations,
        instance: Option<&str>,
    ) -> Result<Self, Failure> {
        let unknown = |text: String| Failure::new(Exit::from_code(3), text);
        let pattern = if args.regex {
            LinePattern::regex(&args.line_pattern)
        } else {
            LinePattern::literal(&args.line_pattern)
        };
        let pattern = pattern.map_err(|why| {
            unknown(format!(
                "invalid --line-pattern {:?}: {why}",
                args.line_pattern
            ))
            .remedy("give the beginning of a line, or a regular expression with --regex")
        })?;
        let selector = LogSelector {
            app_directory: args.app_directory.clone(),
            files: args.file.clone(),
            birth: WallTime::birth,
        };
        if selector
            .app_directory
            .as_deref()
            .is_some_and(is_nested_relative_path)
        {
            return Err(unknown(
                "invalid --app-directory: neither a name nor an absolute path".to_owned(),
            )
            .remedy(
                "give the name of the process as in .logs, or the path of its directory there",
            ));
        }
        if args.warning.is_some_and(|warning| warning > args.freshness) {
            return Err(unknown("--warning is longer than --freshness".to_owned())
                .remedy("give a shorter age"));
        }
        let criteria_hash = hash_criteria(args);
        let path = args.state_file.clone().unwrap_or_else(|| {
            let name = format!(".log-healthcheck-{criteria_hash:016x}");
            selector.sandbox(&locations).join(name)
        });
        Ok(Self {
            criteria: CheckCriteria {
                pattern,
                assume_utc: args.assume_utc,
                time_from: args.time_from,
                warning: args.warning,
                freshness: args.freshness + instance_spread(args.spread, instance),
            },
            selector,
            locations,
            // With a port the health service applies `--grace`.
            grace: args.port.map_or(args.health.grace, |_| Duration::ZERO),
            criteria_hash,
            state_file: StateFile::new(&path).map_err(|why| {
                unknown(format!("invalid --state-file {why}")).remedy("give the path of a file")
            })?,
            last_state: None,
        })
    }

    pub(crate) fn criteria(&self) -> &CheckCriteria {
        &self.criteria
    }

    /// The sandbox of the logs, or the working directory.
    pub(crate) fn sandbox(&self) -> PathBuf {
        self.selector.sandbox(&self.locations)
    }

    /// Reads the logs, evaluates them and saves the state.
    ///
    /// # Errors
    /// The logs cannot be listed (exit 3).
    pub(crate) fn check(&mut self, now: WallTime) -> Result<CheckOutcome, Failure> {
        let mut lock = None;
        let (prior, is_saved) = match self.last_state.take() {
            Some((state, is_saved)) => (Some(state), is_saved),
            None => (lock.insert(self.state_file.lock()).load(), true),
        };
        let prior = prior.filter(|prior| prior.criteria_hash == self.criteria_hash);
        let logs = self
            .selector
            .find_logs(&self.locations, prior.as_ref().and_then(|prior| prior.run))?;
        let (state, summary) =
            self.criteria
                .read_logs(self.criteria_hash, &logs, prior.as_ref(), now);
        // An unchanged state is saved already.
        let saved = if is_saved && prior.as_ref() == Some(&state) {
            Ok(())
        } else {
            lock.unwrap_or_else(|| self.state_file.lock()).save(&state)
        };
        let first_check = if saved.is_ok() || prior.is_some() {
            state.first_check
        } else {
            // The first check is not saved: the age of the log, or of the sandbox, replaces it.
            let birth = summary.birth.or_else(|| creation_time(&self.sandbox()));
            birth.unwrap_or(now).min(now)
        };
        let grace_period = GracePeriod {
            first_check,
            grace: self.grace,
        };
        let searched: Vec<String> = logs
            .searched
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let mut verdict = evaluate(
            &self.criteria,
            &state,
            &summary,
            grace_period,
            &searched.join(", "),
            now,
        );
        verdict.add_notes(&summary, &saved);
        self.last_state = Some((state, saved.is_ok()));
        Ok(CheckOutcome {
            verdict,
            summary,
            saved,
        })
    }
}

fn creation_time(directory: &Path) -> Option<WallTime> {
    WallTime::birth(&directory.metadata().ok()?)
}

/// Whether a path is relative with more than one component.
fn is_nested_relative_path(path: &Path) -> bool {
    let mut components = path.components();
    let first = components.next();
    path.is_relative()
        && !(matches!(first, Some(std::path::Component::Normal(_))) && components.next().is_none())
}

/// Hashes what makes two checks the same, so that one may use the state of the other.
fn hash_criteria(args: &Args) -> u64 {
    let app = args
        .app_directory
        .iter()
        .map(|path| path.as_os_str().as_bytes());
    let files = args.file.iter().map(|path| path.as_os_str().as_bytes());
    let from_file = u8::from(args.time_from == TimeSource::File);
    let flags = [
        u8::from(args.regex),
        u8::from(args.assume_utc) | from_file << 1,
    ];
    app.chain([&b"\0"[..]])
        .chain(files)
        .chain([&b"\0"[..], args.line_pattern.as_bytes(), &flags])
        .fold(FNV_OFFSET, |sum, part| fnv1a(fnv1a(sum, part), b"\0"))
}

fn instance_spread(spread: Duration, instance: Option<&str>) -> Duration {
    if spread.is_zero() {
        return spread;
    }
    match instance.and_then(|instance| instance.parse().ok()) {
        Some(instance) => spread_share(spread, instance),
        None => {
            tracing::warn!(
                "--spread has no effect without CB_AURORA_INSTANCE: \
                 in a shell check put CB_AURORA_INSTANCE={{{{mesos.instance}}}} in front of the command"
            );
            Duration::ZERO
        }
    }
}

#[cfg(test)]
mod histories;
