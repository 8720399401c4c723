//! The outcome of one run of a tool, and assertions on it.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Output;

#[derive(Debug, Clone)]
pub struct CommandOutcome {
    /// The exit code; the negative signal number when a signal ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for CommandOutcome {
    fn from(output: Output) -> Self {
        let signal = -output.status.signal().unwrap_or_default();
        Self {
            code: output.status.code().unwrap_or(signal),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl CommandOutcome {
    /// Asserts the exit code; the failure message has the output.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        self
    }

    /// Asserts that stderr contains `text`.
    #[track_caller]
    pub fn logs(self, text: &str) -> Self {
        assert!(
            self.stderr.contains(text),
            "no {text:?} in: {}",
            self.stderr
        );
        self
    }

    /// Asserts stdout, and that stderr is empty.
    #[track_caller]
    pub fn prints(self, text: &str) -> Self {
        assert_eq!((self.stdout.as_str(), self.stderr.as_str()), (text, ""));
        self
    }
}
