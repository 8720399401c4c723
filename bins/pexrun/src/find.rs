//! Finding a build: in the cache, then in each repository in turn, by its name or by the beginning of its hash.

use hostkit::{Exit, Failure};
use s3cache::cache::{self, Blob};
use s3cache::fetch::run as online;
use s3cache::settings::Freshness;
use s3cache::source::is_immutable;
use s3cache::store::{self, Listed};
use s3cache::{Got, Source, Want};
use tracing::{debug, warn};

use crate::config::{Config, STATIC};
use crate::names::Template;

/// So many builds of one job are looked at in a listing.
pub const LIST_LIMIT: usize = 10_000;
/// The shortest beginning of a hash that is looked for.
const SHORT_HASH_MIN: usize = 4;

/// Gets a build onto this host.
///
/// # Errors
/// There is no such build (exit 127), or somebody who might have it could not be asked (exit 125).
pub fn build(config: &Config, job: &str, version: &str) -> Result<Blob, Failure> {
    let names = config.names(job, version);
    if let Some(blob) = from_cache(config, &names)? {
        return Ok(blob);
    }
    let offline = config.settings.freshness == Freshness::Offline;
    if offline {
        return match short_hash_in_cache(config, job, version)? {
            Some(blob) => Ok(blob),
            None => Err(no_such_build(
                job,
                version,
                "it is not in the cache, and --offline was given",
            )),
        };
    }
    let mut silent: Vec<String> = Vec::new();
    for repository in &config.repositories {
        match from_repository(config, repository, &names, job, version) {
            Ok(Some(blob)) => return Ok(blob),
            Ok(None) => debug!(repository = hostkit::mask::url(repository), "not there"),
            Err(failure)
                if failure.exit() == Exit::LAUNCHER_FAILED || failure.signal().is_some() =>
            {
                return Err(failure);
            }
            Err(failure) => {
                warn!("{failure}");
                silent.push(failure.to_string());
            }
        }
    }
    if !silent.is_empty() {
        return Err(Failure::new(
            Exit::LAUNCHER_FAILED,
            format!("cannot tell whether there is a build {version} of {job}"),
        )
        .remedy("mend what is named here")
        .because(silent.join("; ")));
    }
    Err(no_such_build(
        job,
        version,
        &format!(
            "looked for {} in {}",
            names.join(" and "),
            shown(&config.repositories)
        ),
    ))
}

fn no_such_build(job: &str, version: &str, why: &str) -> Failure {
    Failure::new(
        Exit::NO_SUCH_PROGRAM,
        format!("there is no build {version} of {job}"),
    )
    .remedy(format!("`pexrun --list {job}` lists those there are"))
    .because(why)
}

fn shown(repositories: &[String]) -> String {
    repositories
        .iter()
        .map(|repository| hostkit::mask::url(repository))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Where a file of a repository is.
///
/// # Errors
/// The repository is no place at all (exit 78).
pub fn source(repository: &str, name: &str) -> Result<Source, Failure> {
    Source::parse(&format!("{}/{name}", repository.trim_end_matches('/')))
        .map_err(|failure| failure.with_exit(Exit::CONFIG))
}

/// A cached build that need not be asked about.
fn from_cache(config: &Config, names: &[String]) -> Result<Option<Blob>, Failure> {
    let sure = |name: &str| match config.settings.freshness {
        Freshness::Offline | Freshness::Immutable => true,
        Freshness::Revalidate => false,
        Freshness::ByName => is_immutable(name),
    };
    for repository in &config.repositories {
        for name in names.iter().filter(|name| sure(name)) {
            let source = source(repository, name)?;
            let key = source.index_key(config.settings.access.endpoint_url.as_deref());
            let found = cache::lookup(config.readable.iter(), &key)
                .or_else(|| s3cache::cached(&source, &config.settings));
            if found.is_some() {
                return Ok(found);
            }
        }
    }
    Ok(None)
}

fn from_repository(
    config: &Config,
    repository: &str,
    names: &[String],
    job: &str,
    version: &str,
) -> Result<Option<Blob>, Failure> {
    for name in names {
        if let Some(blob) = fetch(config, source(repository, name)?)? {
            return Ok(Some(blob));
        }
    }
    if version == STATIC || version.len() < SHORT_HASH_MIN || version.len() >= 40 || !hex(version) {
        return Ok(None);
    }
    // A server that cannot be listed has been asked for what it could be asked for.
    let Ok(listed) = list(
        config,
        repository,
        &format!("{}{version}", config.pex_name.prefix(job)),
    ) else {
        debug!(
            repository = hostkit::mask::url(repository),
            "cannot be listed: only whole hashes are found there"
        );
        return Ok(None);
    };
    let found = unique(
        listed.iter().map(|object| object.name.as_str()),
        &config.pex_name,
        config,
        job,
        version,
    )?;
    match found {
        Some(name) => fetch(config, source(repository, &name)?),
        None => Ok(None),
    }
}

fn hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The one name whose version begins as asked.
fn unique<'a>(
    names: impl Iterator<Item = &'a str>,
    template: &Template,
    config: &Config,
    job: &str,
    beginning: &str,
) -> Result<Option<String>, Failure> {
    let mut found: Vec<(String, String)> = names
        .filter_map(|name| {
            let (_, version) = template.read(name, Some(job), &config.arch)?;
            (version.starts_with(beginning) && hex(&version)).then(|| (version, name.to_owned()))
        })
        .collect();
    found.sort();
    found.dedup();
    match found.as_slice() {
        [] => Ok(None),
        [(_, name)] => Ok(Some(name.clone())),
        several => {
            let hashes: Vec<&str> = several
                .iter()
                .map(|(version, _)| version.as_str())
                .collect();
            Err(Failure::new(
                Exit::LAUNCHER_FAILED,
                format!(
                    "{beginning} is the beginning of {} builds of {job}",
                    several.len()
                ),
            )
            .remedy(format!("give more of it: {}", hashes.join(", "))))
        }
    }
}

fn short_hash_in_cache(config: &Config, job: &str, version: &str) -> Result<Option<Blob>, Failure> {
    if version.len() < SHORT_HASH_MIN || !hex(version) {
        return Ok(None);
    }
    let shares = s3cache::verbs::all_shares(&config.settings).unwrap_or_default();
    let entries: Vec<_> = shares
        .iter()
        .filter(|share| share.own)
        .flat_map(s3cache::verbs::entries)
        .collect();
    let names = entries.iter().map(|(_, entry)| entry.name.as_str());
    let Some(name) = unique(names, &config.pex_name, config, job, version)? else {
        return Ok(None);
    };
    let key = entries
        .iter()
        .find(|(_, entry)| entry.name == name)
        .map(|(key, _)| key.clone());
    Ok(key.and_then(|key| cache::lookup(shares.iter().filter(|share| share.own), &key)))
}

/// Fetches one file; `None` when there is no such file.
fn fetch(config: &Config, source: Source) -> Result<Option<Blob>, Failure> {
    let want = Want {
        source,
        sha256: None,
        bypass: None,
    };
    match s3cache::fetch(&want, &config.settings) {
        Ok((Got::Cached(blob), how)) => {
            debug!(source = %want.source, how = how.word(), "found");
            Ok(Some(*blob))
        }
        Ok(_) => Err(Failure::new(
            Exit::LAUNCHER_FAILED,
            format!("{} cannot be kept in the cache", want.source),
        )
        .remedy("make room there, or name another with --cache-dir")),
        Err(failure) if failure.exit() == Exit::NOT_FOUND => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// What a repository has under a beginning of a name.
///
/// # Errors
/// It cannot be listed: it is a web server, or it failed.
pub fn list(config: &Config, repository: &str, prefix: &str) -> Result<Vec<Listed>, Failure> {
    let prefix = source(repository, prefix)?;
    online(config.settings.timeout, &prefix, async {
        let store = store::open(&prefix, &config.settings.access, config.settings.timeout).await?;
        store
            .list(&prefix, LIST_LIMIT)
            .await
            .map_err(|error| error.into_failure(&prefix))
    })
}
