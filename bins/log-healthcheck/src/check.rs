//! One check from the state file to the verdict, again and again in the resident mode. Time is an argument.

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hostkit::{Exit, Failure};

use crate::cli::{Args, TimeFrom, share};
use crate::find::{Places, Wanted};
use crate::moment::Moment;
use crate::pattern::Pattern;
use crate::state::{HASH, State, hash};
use crate::store::Store;
use crate::verdict::{Beginning, Verdict, decide};
use crate::watch::{Question, Seen};

/// A check, and what it remembers.
#[derive(Debug)]
pub struct Check {
    question: Question,
    wanted: Wanted,
    places: Places,
    /// `--grace`, unless somebody else sees to it.
    grace: Duration,
    /// What the state in the state file must be of.
    id: u64,
    store: Store,
    /// The last state, and whether the state file has it.
    memory: Option<(State, bool)>,
}

/// What a check came to.
#[derive(Debug)]
pub struct Checked {
    /// Healthy or not.
    pub verdict: Verdict,
    /// What it was found by.
    pub seen: Seen,
    /// Whether the next check, in another process, will know.
    pub saved: io::Result<()>,
}

impl Check {
    /// The check that the command line asks for, made in `places` for the instance `instance` of a job.
    ///
    /// # Errors
    /// The pattern or the state file's name is none (exit 3).
    pub fn new(args: &Args, places: Places, instance: Option<&str>) -> Result<Self, Failure> {
        let unknown = |text: String| Failure::new(Exit::from_code(3), text);
        let pattern = if args.regex {
            Pattern::regex(&args.line_pattern)
        } else {
            Pattern::literal(&args.line_pattern)
        };
        let pattern = pattern.map_err(|why| {
            unknown(format!(
                "--line-pattern {:?} cannot be used: {why}",
                args.line_pattern
            ))
            .remedy("give the beginning of a line, or with --regex what matches it")
        })?;
        let wanted = Wanted {
            app_directory: args.app_directory.clone(),
            files: args.file.clone(),
            birth: Moment::birth,
        };
        if wanted.app_directory.as_deref().is_some_and(is_elsewhere) {
            return Err(unknown(
                "--app-directory is neither a name nor an absolute path".to_owned(),
            )
            .remedy(
                "give the name of the process as in .logs, or the path of its directory there",
            ));
        }
        if args.warning.is_some_and(|warning| warning > args.freshness) {
            return Err(unknown("--warning is longer than --freshness".to_owned())
                .remedy("give an age below that of --freshness"));
        }
        let id = identity(args);
        let path = args.state_file.clone().unwrap_or_else(|| {
            let name = format!(".log-healthcheck-{id:016x}");
            wanted.sandbox(&places).join(name)
        });
        Ok(Self {
            question: Question {
                pattern,
                assume_utc: args.assume_utc,
                time_from: args.time_from,
                warning: args.warning,
                freshness: args.freshness + spread(args.spread, instance),
            },
            wanted,
            places,
            // The service of the port has its own.
            grace: args.port.map_or(args.health.grace, |_| Duration::ZERO),
            id,
            store: Store::new(&path).map_err(|why| {
                unknown(format!("--state-file: {why}")).remedy("give the path of a file to be made")
            })?,
            memory: None,
        })
    }

    /// What is looked for.
    #[must_use]
    pub fn question(&self) -> &Question {
        &self.question
    }

    /// The sandbox that the logs are in, or the working directory.
    #[must_use]
    pub fn sandbox(&self) -> PathBuf {
        self.wanted.sandbox(&self.places)
    }

    /// Looks, decides and remembers.
    ///
    /// # Errors
    /// The logs cannot be looked for (exit 3).
    pub fn check(&mut self, now: Moment) -> Result<Checked, Failure> {
        let mut session = None;
        let (prior, kept) = match self.memory.take() {
            Some((state, kept)) => (Some(state), kept),
            None => (session.insert(self.store.open()).load(), true),
        };
        let prior = prior.filter(|prior| prior.question == self.id);
        let logs = self
            .wanted
            .find(&self.places, prior.as_ref().and_then(|prior| prior.run))?;
        let (state, seen) = self.question.look(self.id, &logs, prior.as_ref(), now);
        // What has not changed is there already.
        let saved = if kept && prior.as_ref() == Some(&state) {
            Ok(())
        } else {
            session.unwrap_or_else(|| self.store.open()).save(&state)
        };
        let first_check = if saved.is_ok() || prior.is_some() {
            state.first_check
        } else {
            // Nobody will remember that this was the first check: then the age of what is there has to do.
            let birth = seen.birth.or_else(|| born(&self.sandbox()));
            birth.unwrap_or(now).min(now)
        };
        let beginning = Beginning {
            first_check,
            grace: self.grace,
        };
        let searched: Vec<String> = logs
            .searched
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let mut verdict = decide(
            &self.question,
            &state,
            &seen,
            beginning,
            &searched.join(", "),
            now,
        );
        verdict.note(&seen, &saved);
        self.memory = Some((state, saved.is_ok()));
        Ok(Checked {
            verdict,
            seen,
            saved,
        })
    }
}

/// When a directory was made.
fn born(directory: &Path) -> Option<Moment> {
    Moment::birth(&directory.metadata().ok()?)
}

/// A relative path that is not one name.
fn is_elsewhere(path: &Path) -> bool {
    let mut components = path.components();
    let first = components.next();
    path.is_relative()
        && !(matches!(first, Some(std::path::Component::Normal(_))) && components.next().is_none())
}

/// What makes two checks the same one, so that the second may use the first one's state.
fn identity(args: &Args) -> u64 {
    let app = args
        .app_directory
        .iter()
        .map(|path| path.as_os_str().as_bytes());
    let files = args.file.iter().map(|path| path.as_os_str().as_bytes());
    let from_file = u8::from(args.time_from == TimeFrom::File);
    let flags = [
        u8::from(args.regex),
        u8::from(args.assume_utc) | from_file << 1,
    ];
    app.chain([&b"\0"[..]])
        .chain(files)
        .chain([&b"\0"[..], args.line_pattern.as_bytes(), &flags])
        .fold(HASH, |sum, part| hash(hash(sum, part), b"\0"))
}

/// The share of `--spread` of an instance.
fn spread(spread: Duration, instance: Option<&str>) -> Duration {
    if spread.is_zero() {
        return spread;
    }
    match instance.and_then(|instance| instance.parse().ok()) {
        Some(instance) => share(spread, instance),
        None => {
            tracing::warn!(
                "--spread changes nothing: CB_AURORA_INSTANCE is not the number of an instance; \
                 in a shell check put CB_AURORA_INSTANCE={{{{mesos.instance}}}} in front of the command"
            );
            Duration::ZERO
        }
    }
}

#[cfg(test)]
mod histories;
