//! What one run of a tool came to, and asserting it.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Output;

/// A finished run.
#[derive(Debug, Clone)]
pub struct CommandOutcome {
    /// The exit code; the signal's number, negative, when one ended it.
    pub code: i32,
    /// Its results.
    pub stdout: String,
    /// Its log.
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
    /// Asserts the exit code, and shows what was said when it is another.
    ///
    /// # Panics
    /// It is another.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        self
    }

    /// Asserts that the log says this.
    ///
    /// # Panics
    /// It does not.
    #[track_caller]
    pub fn logs(self, text: &str) -> Self {
        assert!(
            self.stderr.contains(text),
            "no {text:?} in: {}",
            self.stderr
        );
        self
    }

    /// Asserts what was printed, and that nothing was logged besides.
    ///
    /// # Panics
    /// It was something else.
    #[track_caller]
    pub fn prints(self, text: &str) -> Self {
        assert_eq!((self.stdout.as_str(), self.stderr.as_str()), (text, ""));
        self
    }
}
