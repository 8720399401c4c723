//! The error with which a tool exits: message, remedy, causes and exit code.

use std::error::Error;
use std::{fmt, io, iter};

use nix::errno::Errno;

use crate::Exit;
use crate::thread::ThreadSpawnError;

/// The remedy for too few file descriptors.
const MORE_FILES: &str =
    "allow this process more open files: `ulimit -n` in a shell, LimitNOFILE= in a unit of systemd";

/// The remedy for too few threads.
const MORE_PROCESSES: &str = "allow this user more processes: `ulimit -u` in a shell, LimitNPROC= or TasksMax= in a unit of systemd";

/// An error and its causes, outermost first.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    // `io::Error::source` skips the wrapped error and returns that error's source.
    iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| {
        let error = *error;
        match error.downcast_ref::<io::Error>() {
            Some(wrapping) => wrapping.get_ref().map(|inner| inner as _),
            None => error.source(),
        }
    })
}

/// The texts of an error and its causes, outermost first, without those that an earlier one contains.
fn chain_texts(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    for text in chain(error).map(|error| error.to_string().replace('\n', " ")) {
        if !text.is_empty() && !texts.iter().any(|outer| outer.contains(&text)) {
            texts.push(text);
        }
    }
    texts
}

/// An error and its causes on one line: the text of hyper's or an SDK's error alone leaves out what happened.
#[must_use]
pub fn format_chain(error: &(dyn Error + 'static)) -> String {
    chain_texts(error).join(": ")
}

/// The innermost cause of an error.
#[must_use]
pub fn root_cause<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    chain(error).last().unwrap_or(error)
}

/// The first error of type `T` in a chain of causes: decisions depend on types, never on the text of an error.
#[must_use]
pub fn cause_of<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    chain(error).find_map(|cause| cause.downcast_ref())
}

/// Whether the cause is a limit on open files or threads of this process, its user or the host.
#[must_use]
pub fn is_out_of_resources(error: &(dyn Error + 'static)) -> bool {
    more_resources(error).is_some()
}

/// The remedy if the cause is such a limit.
fn more_resources(error: &(dyn Error + 'static)) -> Option<&'static str> {
    chain(error).find_map(|cause| {
        if cause.is::<ThreadSpawnError>() {
            return Some(MORE_PROCESSES);
        }
        let errno = match cause.downcast_ref::<io::Error>() {
            Some(error) => error.raw_os_error().map(Errno::from_raw),
            None => cause.downcast_ref().copied(),
        };
        matches!(errno, Some(Errno::EMFILE | Errno::ENFILE)).then_some(MORE_FILES)
    })
}

/// A failure as its reader needs it. `message` names the object (URL, path, host:port), `remedy` is an imperative.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
    remedy: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
    signal: Option<i32>,
}

impl Failure {
    /// A failure that exits with `exit`.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            remedy: None,
            source: None,
            signal: None,
        }
    }

    /// An interruption by `signal`: the tool cleans up and then terminates by it, so that its parent sees the signal.
    #[must_use]
    pub fn interrupted(signal: i32) -> Self {
        Self {
            signal: Some(signal),
            ..Self::new(Exit::FAILED, "interrupted")
        }
    }

    /// Adds the remedy.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        if self.more_resources().is_none() {
            self.remedy = Some(remedy.into());
        }
        self
    }

    /// Prefixes the message with the location of the error.
    #[must_use]
    pub fn at(mut self, place: &str) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// Adds the cause, printed as one `because:` line per link of its chain. If the cause is a limit on open files or
    /// threads, the failure becomes an I/O error with the remedy for that.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        if let Some(remedy) = self.more_resources() {
            self.exit = Exit::IO;
            self.remedy = Some(remedy.to_owned());
        }
        self
    }

    fn more_resources(&self) -> Option<&'static str> {
        more_resources(self.source.as_deref()?)
    }

    /// Replaces the exit code, for a tool with its own codes (pexrun).
    #[must_use]
    pub fn with_exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// The exit code.
    #[must_use]
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// The signal to terminate by.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        self.signal
    }

    /// The causes, outermost first, without those that only repeat an earlier text.
    #[must_use]
    pub fn causes(&self) -> Vec<String> {
        let Some(source) = self.source.as_deref() else {
            return Vec::new();
        };
        let mut causes = chain_texts(source);
        causes.retain(|cause| !self.message.contains(cause));
        causes
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.remedy {
            Some(remedy) => write!(f, ": {remedy}"),
            None => Ok(()),
        }
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_listed_once() {
        let inner = std::io::Error::other("disk on fire");
        let failure = Failure::new(Exit::IO, "cannot write /x")
            .remedy("buy a disk")
            .because(inner);
        assert_eq!(failure.to_string(), "cannot write /x: buy a disk");
        assert_eq!(failure.causes(), ["disk on fire"]);
    }

    #[test]
    fn error_and_its_causes_stand_on_one_line_once_each() {
        let inner = Failure::new(Exit::IO, "disk\nfull").because(io::Error::other("no space"));
        let wrapped = io::Error::other(inner);
        let outer = Failure::new(Exit::IO, "cannot write /x").because(wrapped);
        assert_eq!(format_chain(&outer), "cannot write /x: disk full: no space");
        assert_eq!(root_cause(&outer).to_string(), "no space");
    }

    #[test]
    fn too_few_open_files_anywhere_in_the_causes_are_an_io_error_with_its_remedy() {
        let error = |errno| io::Error::from_raw_os_error(errno as i32);
        for (cause, is_out) in [
            (
                Box::<dyn Error + Send + Sync>::from(error(Errno::EMFILE)),
                true,
            ),
            (error(Errno::ENFILE).into(), true),
            (Errno::EMFILE.into(), true),
            (io::Error::other(error(Errno::EMFILE)).into(), true),
            (
                Failure::new(Exit::CONFIG, "x")
                    .because(error(Errno::EMFILE))
                    .into(),
                true,
            ),
            (error(Errno::EACCES).into(), false),
            ("Too many open files".into(), false),
        ] {
            let text = format!("{cause:?}");
            let failure = Failure::new(Exit::CONFIG, "x")
                .remedy("a")
                .because(cause)
                .remedy("b");
            let expected = match is_out {
                true => (Exit::IO, format!("x: {MORE_FILES}")),
                false => (Exit::CONFIG, "x: b".to_owned()),
            };
            assert_eq!((failure.exit(), failure.to_string()), expected, "{text}");
        }
    }

    #[test]
    fn cause_contained_in_the_message_is_not_repeated() {
        let failure = Failure::new(Exit::IO, "cannot write /x: disk on fire")
            .because(std::io::Error::other("disk on fire"));
        assert!(failure.causes().is_empty());
    }
}
