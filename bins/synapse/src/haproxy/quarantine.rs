//! Finding the services that make HAProxy refuse a file, so that one bad service does not hold up the others.
//!
//! First the lines that `haproxy -c` blames; when it blames none that is a service's, by halving.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::check::{Alert, CheckError, check};
use super::files::File;

/// A file and whose its lines are.
#[derive(Debug, Clone, Default)]
pub struct Candidate {
    /// The whole file.
    pub text: String,
    /// The service by the line, from 1; lines of no service are left out.
    pub lines: BTreeMap<usize, String>,
}

/// A file that HAProxy takes, and what is not in it.
#[derive(Debug, Clone)]
pub struct Quarantined {
    /// The services that were left out, and what HAProxy said when each was in.
    pub without: BTreeMap<String, String>,
    /// The file without them.
    pub candidate: Candidate,
    /// How often HAProxy was asked.
    pub runs: usize,
}

/// Why no file was found.
#[derive(Debug, thiserror::Error)]
pub enum QuarantineError {
    /// It is refused even without any service.
    #[error(
        "HAProxy refuses the file even without any service: correct `global`, `defaults` or `extra_sections`"
    )]
    NoService(#[source] CheckError),
    /// More bad services than checks.
    #[error(
        "{found} services are bad and others still are after {runs} checks: correct those first"
    )]
    TooMany {
        /// How many were found.
        found: usize,
        /// How often HAProxy was asked.
        runs: usize,
        /// What it said last.
        #[source]
        last: CheckError,
    },
    /// It could not be checked.
    #[error(transparent)]
    Check(CheckError),
}

/// Who checks candidates.
#[derive(Debug, Clone)]
pub struct Checker {
    /// HAProxy's program.
    pub binary: PathBuf,
    /// Where candidates are written.
    pub file: PathBuf,
    /// How long one check may take.
    pub deadline: Duration,
    /// How many checks there may be in all.
    pub limit: usize,
}

impl Checker {
    /// Finds the services without which HAProxy takes what `render` makes. `services` are all of them; `render` is
    /// given those to leave out. No service that HAProxy would take with the rest is left out at the end, unless the
    /// checks ran out.
    ///
    /// # Errors
    /// [`QuarantineError`].
    pub async fn quarantine(
        &self,
        services: &BTreeSet<String>,
        mut render: impl FnMut(&BTreeSet<String>) -> Candidate,
    ) -> Result<Quarantined, QuarantineError> {
        let mut search = Search {
            checker: self,
            services,
            without: BTreeMap::new(),
            runs: 0,
        };
        search.leave_out(&mut render).await?;
        search.take_back(&mut render).await?;
        let candidate = render(&search.names());
        Ok(Quarantined {
            without: search.without,
            candidate,
            runs: search.runs,
        })
    }
}

/// A search under way.
struct Search<'a> {
    checker: &'a Checker,
    services: &'a BTreeSet<String>,
    without: BTreeMap<String, String>,
    runs: usize,
}

impl Search<'_> {
    fn names(&self) -> BTreeSet<String> {
        self.without.keys().cloned().collect()
    }

    /// Leaves services out until HAProxy takes the rest.
    async fn leave_out(
        &mut self,
        render: &mut impl FnMut(&BTreeSet<String>) -> Candidate,
    ) -> Result<(), QuarantineError> {
        loop {
            let candidate = render(&self.names());
            let Err(error) = self.check(&candidate.text).await? else {
                return Ok(());
            };
            if self.runs >= self.checker.limit {
                return Err(QuarantineError::TooMany {
                    found: self.without.len(),
                    runs: self.runs,
                    last: error,
                });
            }
            let blamed = self.blamed(&candidate, &error);
            if !blamed.is_empty() {
                self.without.extend(blamed);
                continue;
            }
            let (name, said) = self.halve(render, error).await?;
            self.without.insert(name, said);
        }
    }

    /// The services whose lines HAProxy blames.
    fn blamed(&self, candidate: &Candidate, error: &CheckError) -> BTreeMap<String, String> {
        let CheckError::Refused { alerts, .. } = error else {
            return BTreeMap::new();
        };
        let mut blamed = BTreeMap::new();
        for alert in alerts.iter().filter(|alert| alert.fatal) {
            let service = alert.line.and_then(|line| candidate.lines.get(&line));
            if let Some(service) = service.filter(|service| self.services.contains(*service)) {
                let line = alert
                    .line
                    .and_then(|line| candidate.text.lines().nth(line.saturating_sub(1)));
                let line = crate::model::shown(line.unwrap_or_default().trim());
                blamed
                    .entry(service.clone())
                    .or_insert_with(|| format!("`{line}`: {}", alert.text));
            }
        }
        blamed
    }

    /// One service that is bad together with those before it, in the order of names: HAProxy takes the first `low` of
    /// them and refuses the first `high`.
    async fn halve(
        &mut self,
        render: &mut impl FnMut(&BTreeSet<String>) -> Candidate,
        error: CheckError,
    ) -> Result<(String, String), QuarantineError> {
        let rest: Vec<&String> = self
            .services
            .iter()
            .filter(|name| !self.without.contains_key(*name))
            .collect();
        let empty = render(self.services);
        if let Err(error) = self.check(&empty.text).await? {
            return Err(QuarantineError::NoService(error));
        }
        let (mut low, mut high, mut said) = (0, rest.len(), error);
        while high - low > 1 {
            if self.runs >= self.checker.limit {
                return Err(QuarantineError::TooMany {
                    found: self.without.len(),
                    runs: self.runs,
                    last: said,
                });
            }
            let middle = low + (high - low) / 2;
            let mut without = self.names();
            without.extend(rest[middle..].iter().map(|name| (*name).clone()));
            match self.check(&render(&without).text).await? {
                Ok(_) => low = middle,
                Err(error) => (high, said) = (middle, error),
            }
        }
        match rest.get(high.wrapping_sub(1)) {
            Some(name) => Ok(((*name).clone(), said.to_string())),
            // Nothing is left to leave out, and yet it is refused: it was taken without services a moment ago.
            None => Err(QuarantineError::NoService(said)),
        }
    }

    /// Takes back what HAProxy takes after all: two services may have been blamed for one's fault.
    async fn take_back(
        &mut self,
        render: &mut impl FnMut(&BTreeSet<String>) -> Candidate,
    ) -> Result<(), QuarantineError> {
        if self.without.len() < 2 {
            return Ok(());
        }
        for name in self.names() {
            if self.runs >= self.checker.limit {
                break;
            }
            let mut without = self.names();
            without.remove(&name);
            if self.check(&render(&without).text).await?.is_ok() {
                self.without.remove(&name);
            }
        }
        Ok(())
    }

    /// One check: what HAProxy says of the text, or that it could not be asked.
    async fn check(
        &mut self,
        text: &str,
    ) -> Result<Result<Vec<Alert>, CheckError>, QuarantineError> {
        self.runs += 1;
        write(&self.checker.file, text).map_err(|source| {
            QuarantineError::Check(CheckError::Start {
                command: format!("write {}", self.checker.file.display()),
                source,
            })
        })?;
        let checked = check(
            &self.checker.binary,
            &self.checker.file,
            self.checker.deadline,
        );
        match checked.await {
            Err(error @ CheckError::Refused { .. }) => Ok(Err(error)),
            Err(error) => Err(QuarantineError::Check(error)),
            Ok(warnings) => Ok(Ok(warnings)),
        }
    }
}

/// Not durably: no candidate outlives its check.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    File::at(path)?.write_candidate(text)
}
