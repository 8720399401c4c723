//! Looks up a build: in the cache, then in each repository in turn, by its name or a prefix of its hash.

pub(crate) mod cached;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use hostkit::{Exit, Failure};
use s3cache::{ArtifactSource, CachedBlob, FetchRequest, Freshness, ListingVisitor, LocalArtifact};
use tracing::{debug, warn};

use crate::config::Config;
use crate::name_template::{SHORT_HASH_MIN, spellings};

/// How many builds an ambiguity error names.
const MAX_NAMED_BUILDS: usize = 20;

/// Fetches a build to this host.
///
/// # Errors
/// No such build (exit 127), or a repository that may have it cannot be read (exit 125).
pub(crate) fn build(config: &Config, job: &str, version: &str) -> Result<CachedBlob, Failure> {
    let names = config.names(job, version);
    if let Some(blob) = cached::from_cache(config, &names)? {
        return Ok(blob);
    }
    if config.settings.freshness == Freshness::Offline {
        return cached::by_name(config, &names, job, version)?.ok_or_else(|| {
            Failure::new(
                Exit::LAUNCHER_FAILED,
                format!("build {version} of {job} is not in the cache"),
            )
            .remedy(format!(
                "run it once without --offline; `pexrun --list --cached {job}` lists cached builds"
            ))
        });
    }
    let mut failures: Vec<Failure> = Vec::new();
    let mut unlisted = false;
    for repository in &config.repositories {
        match from_repository(config, repository, &names, job, version)? {
            RepositoryResult::Found(blob) => {
                for failure in &failures {
                    warn!(
                        error = %failure,
                        repository = hostkit::mask::mask_url(repository),
                        "cannot search a repository; the build was found in another one"
                    );
                }
                return Ok(*blob);
            }
            RepositoryResult::NotFound => {
                debug!(
                    repository = hostkit::mask::mask_url(repository),
                    "build not found"
                )
            }
            RepositoryResult::Undetermined(found) => {
                unlisted |= !is_web(repository);
                failures.extend(found);
            }
        }
    }
    if failures.is_empty() {
        return Err(no_such_build(config, job, version, &names));
    }
    if unlisted && is_short(version) {
        match cached::unlisted(config, &names, job, version) {
            Ok(None) => {}
            Ok(Some(blob)) => {
                for failure in &failures {
                    warn!(error = %failure, "cannot list a repository");
                }
                warn!(
                    job,
                    version,
                    source = %blob.entry.source,
                    "cannot list the builds; running the only cached one whose hash starts with the version"
                );
                return Ok(blob);
            }
            Err(ambiguous) => return Err(because(ambiguous, &failures)),
        }
    }
    let failure = Failure::new(
        Exit::LAUNCHER_FAILED,
        format!("cannot fetch build {version} of {job}"),
    );
    Err(because(failure, &failures))
}

pub(crate) fn because(failure: Failure, failures: &[Failure]) -> Failure {
    match FailureChain::of(failures) {
        Some(causes) => failure.because(causes),
        None => failure,
    }
}

/// The result of searching one repository.
enum RepositoryResult {
    /// The build, which is in the cache now.
    Found(Box<CachedBlob>),
    /// It has none of the names.
    NotFound,
    /// It may have the build, but cannot be read.
    Undetermined(Vec<Failure>),
}

/// Whether searching the next repository is pointless: an ambiguous hash, a cache that cannot hold the build, a signal.
fn is_final(failure: &Failure) -> bool {
    matches!(failure.exit(), Exit::LAUNCHER_FAILED | Exit::CANNOT_CREATE)
        || failure.signal().is_some()
}

/// Several failures as one chain of causes, a line each.
#[derive(Debug)]
struct FailureChain {
    text: String,
    next: Option<Box<Self>>,
}

impl FailureChain {
    fn of(failures: &[Failure]) -> Option<Self> {
        failures.iter().rev().fold(None, |next, failure| {
            let texts = std::iter::once(failure.to_string()).chain(failure.causes());
            Some(Self {
                text: texts.collect::<Vec<_>>().join(": "),
                next: next.map(Box::new),
            })
        })
    }
}

impl std::fmt::Display for FailureChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for FailureChain {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.next.as_deref().map(|next| next as _)
    }
}

fn no_such_build(config: &Config, job: &str, version: &str, names: &[String]) -> Failure {
    let is_web = |repository: &String| is_web(repository);
    let web = config.repositories.iter().any(is_web);
    let remedy = if is_short(version) && web {
        "give the whole git hash: a web server cannot be searched".to_owned()
    } else if hostkit::hex::is_hex(version) && version.len() < SHORT_HASH_MIN {
        format!("give at least {SHORT_HASH_MIN} digits of its git hash")
    } else if config.repositories.iter().all(is_web) {
        "check its name and version".to_owned()
    } else {
        format!("`pexrun --list {job}` lists the builds")
    };
    Failure::new(
        Exit::NO_SUCH_PROGRAM,
        format!("no build {version} of {job}"),
    )
    .remedy(remedy)
    .because(format!(
        "searched for {} in {}",
        names.join(" and "),
        display_repositories(&config.repositories)
    ))
}

#[must_use]
pub(crate) fn display_repositories(repositories: &[String]) -> String {
    repositories
        .iter()
        .map(|repository| hostkit::mask::mask_url(repository))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The source of a file in a repository.
///
/// # Errors
/// The URL of the repository is invalid (exit 78).
pub(crate) fn source(repository: &str, name: &str) -> Result<ArtifactSource, Failure> {
    ArtifactSource::parse(&format!("{}/{name}", repository.trim_end_matches('/')))
        .map_err(|failure| failure.with_exit(Exit::CONFIG))
}

/// Whether a repository is a web server, which cannot be listed.
fn is_web(repository: &str) -> bool {
    matches!(source(repository, "x"), Ok(ArtifactSource::Http(_)))
}

/// # Errors
/// Those for which searching the next repository is pointless.
fn from_repository(
    config: &Config,
    repository: &str,
    names: &[String],
    job: &str,
    version: &str,
) -> Result<RepositoryResult, Failure> {
    let mut failures = Vec::new();
    for name in names {
        let failure = match fetch(config, source(repository, name)?) {
            Ok(Some(blob)) => return Ok(RepositoryResult::Found(Box::new(blob))),
            Ok(None) => continue,
            Err(failure) if is_final(&failure) => return Err(failure),
            Err(failure) => failure,
        };
        let exit = failure.exit();
        failures.push(failure);
        // S3 returns 403 for an absent key of a bucket that may not be listed: the next name may exist.
        if exit == Exit::DENIED {
            continue;
        }
        // The cached copy of any of the build's names will do.
        if exit == Exit::UNAVAILABLE
            && let Some(blob) = cached::any_name(config, repository, names)?
        {
            for failure in &failures {
                warn!(error = %failure, "cannot fetch the build; using the cached copy, which may be outdated");
            }
            return Ok(RepositoryResult::Found(Box::new(blob)));
        }
        return Ok(RepositoryResult::Undetermined(failures));
    }
    if is_short(version) && !is_web(repository) {
        match by_hash_prefix(config, repository, job, version) {
            Ok(Some(blob)) => return Ok(RepositoryResult::Found(Box::new(blob))),
            Ok(None) => {}
            Err(failure) if failure.exit() == Exit::NOT_FOUND => {}
            Err(failure) if is_final(&failure) => return Err(failure),
            Err(failure) => failures.push(failure),
        }
    }
    Ok(if failures.is_empty() {
        RepositoryResult::NotFound
    } else {
        RepositoryResult::Undetermined(failures)
    })
}

/// Fetches the only build whose hash starts with `version`.
fn by_hash_prefix(
    config: &Config,
    repository: &str,
    job: &str,
    version: &str,
) -> Result<Option<CachedBlob>, Failure> {
    let mut matches = PrefixMatches::new(config, job, version);
    for version in spellings(version) {
        let prefix = format!("{}{version}", config.pex_name.prefix(job));
        list(config, repository, &prefix, &mut |object| {
            matches.add(&object.name)
        })?;
    }
    match matches.only()? {
        Some(name) => fetch(config, source(repository, &name)?),
        None => Ok(None),
    }
}

/// Whether a version may be an abbreviated git hash.
#[must_use]
pub(crate) fn is_short(version: &str) -> bool {
    (SHORT_HASH_MIN..40).contains(&version.len()) && hostkit::hex::is_hex(version)
}

/// Whether a hash has a prefix, in either case.
fn has_prefix(hash: &str, hash_prefix: &str) -> bool {
    let start = hash.as_bytes().get(..hash_prefix.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(hash_prefix.as_bytes()))
}

/// The builds of a job whose hash has a prefix, at most as many as an error names.
struct PrefixMatches<'a> {
    config: &'a Config,
    job: &'a str,
    hash_prefix: &'a str,
    /// Hash -> file name.
    found: BTreeMap<String, String>,
}

impl<'a> PrefixMatches<'a> {
    const fn new(config: &'a Config, job: &'a str, hash_prefix: &'a str) -> Self {
        Self {
            config,
            job,
            hash_prefix,
            found: BTreeMap::new(),
        }
    }

    /// Adds the name of a file; breaks off when more matches would change nothing.
    fn add(&mut self, name: &str) -> ControlFlow<()> {
        let Self { config, job, .. } = *self;
        if let Some((_, version)) = config.pex_name.read(name, Some(job), &config.arch)
            && hostkit::hex::is_hex(&version)
            && has_prefix(&version, self.hash_prefix)
        {
            self.found
                .insert(version.to_ascii_lowercase(), name.to_owned());
        }
        if self.found.len() > MAX_NAMED_BUILDS {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn only(self) -> Result<Option<String>, Failure> {
        let Self {
            job, hash_prefix, ..
        } = self;
        let mut hashes: Vec<&str> = self.found.keys().map(String::as_str).collect();
        let count = match hashes.len() {
            0 | 1 => return Ok(self.found.into_values().next()),
            count if count > MAX_NAMED_BUILDS => {
                hashes[MAX_NAMED_BUILDS] = "...";
                format!("more than {MAX_NAMED_BUILDS}")
            }
            count => count.to_string(),
        };
        Err(Failure::new(
            Exit::LAUNCHER_FAILED,
            format!("{hash_prefix} is ambiguous: {count} builds of {job} start with it"),
        )
        .remedy(format!("give more digits: {}", hashes.join(", "))))
    }
}

/// Fetches one file; `None` when it does not exist.
fn fetch(config: &Config, source: ArtifactSource) -> Result<Option<CachedBlob>, Failure> {
    let request = FetchRequest {
        source,
        sha256: None,
        bypass: None,
    };
    match s3cache::fetch(&request, &config.settings) {
        Ok((LocalArtifact::Cached(blob), result)) => {
            debug!(source = %request.source, result = result.name(), "found");
            Ok(Some(*blob))
        }
        Ok(_) => Err(Failure::new(
            Exit::LAUNCHER_FAILED,
            format!("cannot cache {}", request.source),
        )
        .remedy("free some space there, or name another cache with --cache-dir")),
        Err(failure) if failure.exit() == Exit::NOT_FOUND => Ok(None),
        Err(failure) if failure.exit() == Exit::CANNOT_CREATE && config.has_own_cache() => {
            Err(failure
                .remedy("name another cache with --cache-dir, or correct XDG_CACHE_HOME or HOME"))
        }
        Err(failure) => Err(failure),
    }
}

/// Passes every file of a repository whose name starts with `prefix` to `each`, until that breaks off.
///
/// # Errors
/// The repository cannot be listed: it is a web server, it failed, or the deadline is over.
pub(crate) fn list(
    config: &Config,
    repository: &str,
    prefix: &str,
    each: ListingVisitor<'_>,
) -> Result<(), Failure> {
    s3cache::list_store(&source(repository, prefix)?, &config.settings, each)
}
