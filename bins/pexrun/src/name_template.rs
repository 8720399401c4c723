//! Templates for the file names of builds: filled in for a job and a version, and matched against a listing.

use std::fmt;

use hostkit::{Exit, Failure};
use s3cache::is_hash;
use serde::de::{Deserialize, Deserializer, Error as _};

/// A file name with `{job}`, `{version}` and optionally `{arch}`, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NameTemplate {
    before_job: String,
    between: String,
    after_version: String,
}

/// Parsed while a configuration file is read, so that an error has its line.
impl<'de> Deserialize<'de> for NameTemplate {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

impl fmt::Display for NameTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            before_job,
            between,
            after_version,
        } = self;
        write!(f, "{before_job}{{job}}{between}{{version}}{after_version}")
    }
}

impl NameTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// It lacks `{job}` or `{version}`, in this order and with a separator between them (exit 78).
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let parts = text
            .split_once("{job}")
            .and_then(|(before, rest)| Some((before, rest.split_once("{version}")?)));
        match parts {
            Some((before, (between, after))) if !between.is_empty() && !text.contains('/') => {
                Ok(Self {
                    before_job: before.to_owned(),
                    between: between.to_owned(),
                    after_version: after.to_owned(),
                })
            }
            _ => Err(
                Failure::new(Exit::CONFIG, format!("invalid name of builds `{text}`"))
                    .remedy("write {job}, a separator, then {version}: {job}-{version}-{arch}.pex"),
            ),
        }
    }

    #[must_use]
    pub(crate) fn fill(&self, job: &str, version: &str, arch: &str) -> String {
        let after = self.after_version.replace("{arch}", arch);
        format!("{}{job}{}{version}{after}", self.before_job, self.between)
    }

    /// The prefix of the file names of a job's builds.
    #[must_use]
    pub(crate) fn prefix(&self, job: &str) -> String {
        format!("{}{job}{}", self.before_job, self.between)
    }

    /// The job and version of a file name that matches. `a-b-60a43ef` is the job `a-b`, not the version `b-60a43ef` of
    /// `a`; `a-1.2-SNAPSHOT` is a version of `a`.
    #[must_use]
    pub(crate) fn read(
        &self,
        name: &str,
        job: Option<&str>,
        arch: &str,
    ) -> Option<(String, String)> {
        let after = self.after_version.replace("{arch}", arch);
        let middle = name.strip_prefix(&self.before_job)?.strip_suffix(&after)?;
        let (found, version) = match job {
            Some(job) => (job, middle.strip_prefix(job)?.strip_prefix(&self.between)?),
            None => self.split(middle)?,
        };
        let whole = !version.contains(&self.between) || is_number(version);
        let plain =
            !found.is_empty() && !version.is_empty() && !version.chars().any(char::is_control);
        (plain && whole).then(|| (found.to_owned(), version.to_owned()))
    }

    /// Splits job and version: at the last separator before a hash, else before the first dotted number, else at the
    /// last separator.
    fn split<'a>(&self, middle: &'a str) -> Option<(&'a str, &'a str)> {
        let last = middle.rsplit_once(&self.between)?;
        if is_hash(last.1) {
            return Some(last);
        }
        let mut places = middle
            .match_indices(&self.between)
            .map(|(at, between)| (&middle[..at], &middle[at + between.len()..]));
        let dotted = places.find(|(_, version)| {
            let number = version.split('-').next().unwrap_or_default();
            is_number(number) && number.contains('.')
        });
        Some(dotted.unwrap_or(last))
    }
}

/// The shortest prefix of a git hash that is looked up.
pub(crate) const SHORT_HASH_MIN: usize = 4;

/// A version as given, then in lower case if it may be a git hash.
#[must_use]
pub(crate) fn spellings(version: &str) -> Vec<String> {
    let lower = version.to_ascii_lowercase();
    let is_other =
        version.len() >= SHORT_HASH_MIN && hostkit::hex::is_hex(version) && lower != version;
    let lower = is_other.then_some(lower);
    std::iter::once(version.to_owned()).chain(lower).collect()
}

/// Whether it starts like a version number.
fn is_number(version: &str) -> bool {
    version
        .strip_prefix('v')
        .unwrap_or(version)
        .starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filled_template_is_read_back() {
        let pex = NameTemplate::parse("{job}-{version}-{arch}.pex").unwrap();
        let name = pex.fill("kafka-writer", "60a43ef", "trusty_x86_64");
        assert_eq!(name, "kafka-writer-60a43ef-trusty_x86_64.pex");
        let expected = Some(("kafka-writer".to_owned(), "60a43ef".to_owned()));
        assert_eq!(pex.read(&name, None, "trusty_x86_64"), expected);
        assert_eq!(
            pex.read(&name, Some("kafka-writer"), "trusty_x86_64"),
            expected
        );
        assert_eq!(pex.read(&name, Some("kafka"), "precise_x86_64"), None);
        assert!(name.starts_with(&pex.prefix("kafka-writer")));
    }

    #[test]
    fn job_with_common_prefix_is_not_confused() {
        let jar = NameTemplate::parse("{job}-{version}.jar").unwrap();
        for (name, job, expected) in [
            ("a-b-60a43ef.jar", None, Some(("a-b", "60a43ef"))),
            ("a-b-60a43ef.jar", Some("a"), None),
            ("a-b-60a43ef.jar", Some("a-b"), Some(("a-b", "60a43ef"))),
            ("a-1.2-SNAPSHOT.jar", None, Some(("a", "1.2-SNAPSHOT"))),
            ("a-1.2-SNAPSHOT.jar", Some("a"), Some(("a", "1.2-SNAPSHOT"))),
            (
                "kafka-08-w-60a43ef.jar",
                None,
                Some(("kafka-08-w", "60a43ef")),
            ),
            ("a-release.jar", None, Some(("a", "release"))),
        ] {
            let expected = expected.map(|(job, version)| (job.to_owned(), version.to_owned()));
            assert_eq!(jar.read(name, job, "x"), expected, "{name} {job:?}");
        }
    }

    #[test]
    fn ambiguous_template_is_rejected() {
        for text in [
            "{job}.pex",
            "{version}-{job}.pex",
            "{job}{version}.pex",
            "a/{job}-{version}",
        ] {
            assert!(NameTemplate::parse(text).is_err(), "{text}");
        }
    }
}
