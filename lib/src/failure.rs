//! The one error a tool ends with: what failed, what to do about it, why, and the exit code.

use std::error::Error;
use std::fmt;

use crate::Exit;

/// A failure as its reader needs it. `message` names the object (a URL, a path, a host:port), `remedy` says what to do.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
    remedy: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
    signal: Option<i32>,
}

impl Failure {
    /// A failure that ends the tool with `exit`.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            remedy: None,
            source: None,
            signal: None,
        }
    }

    /// The tool was told to stop by `signal`; it cleans up and then dies of it, so that its parent sees the signal.
    #[must_use]
    pub fn interrupted(signal: i32) -> Self {
        Self {
            signal: Some(signal),
            ..Self::new(Exit::FAILED, "interrupted")
        }
    }

    /// Adds what the reader can do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Adds the cause, printed as one `because:` line per link of its chain.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same failure with another exit code, for a tool that has its own (pexrun).
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

    /// The signal to die of, when there was one.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        self.signal
    }

    /// One text per cause, outermost first. A cause that only repeats what was already said is left out.
    #[must_use]
    pub fn causes(&self) -> Vec<String> {
        let mut causes: Vec<String> = Vec::new();
        let mut next = self.source.as_deref().map(|source| source as &dyn Error);
        while let Some(cause) = next {
            let text = cause.to_string();
            if !text.is_empty()
                && !causes.iter().any(|said| said.contains(&text))
                && !self.message.contains(&text)
            {
                causes.push(text.replace('\n', " "));
            }
            next = cause.source();
        }
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
    fn causes_are_listed_once_each() {
        let inner = std::io::Error::other("disk on fire");
        let failure = Failure::new(Exit::IO, "cannot write /x")
            .remedy("buy a disk")
            .because(inner);
        assert_eq!(failure.to_string(), "cannot write /x: buy a disk");
        assert_eq!(failure.causes(), ["disk on fire"]);
    }

    #[test]
    fn a_cause_already_in_the_message_is_not_repeated() {
        let failure = Failure::new(Exit::IO, "cannot write /x: disk on fire")
            .because(std::io::Error::other("disk on fire"));
        assert!(failure.causes().is_empty());
    }
}
