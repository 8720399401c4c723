//! Looks up a build in the cache alone: builds that need no request, and fallbacks for a repository that fails.

use hostkit::Failure;
use s3cache::{CachedBlob, Freshness, IndexEntry, is_immutable};

use super::{PrefixMatches, is_short, source};
use crate::config::{self, Config};

/// A cached build that needs no request.
///
/// # Errors
/// The URL of a repository or the AWS configuration is invalid (exit 78).
pub(crate) fn from_cache(config: &Config, names: &[String]) -> Result<Option<CachedBlob>, Failure> {
    let sure = |name: &str| match config.settings.freshness {
        Freshness::Offline | Freshness::Immutable => true,
        Freshness::Revalidate => false,
        Freshness::ByName => is_immutable(name),
    };
    for repository in &config.repositories {
        for name in names.iter().filter(|name| sure(name)) {
            let source = source(repository, name)?;
            let key = config.settings.index_key(&source)?;
            let found = s3cache::lookup(config.readable.iter(), &key)
                .hit()
                .filter(|blob| !config.settings.lacks_sidecar(&blob.entry))
                .or_else(|| s3cache::find_cached(&source, &config.settings));
            if found.is_some() {
                return Ok(found);
            }
        }
    }
    Ok(None)
}

/// The cached copy of any of a build's names in one repository.
pub(super) fn any_name(
    config: &Config,
    repository: &str,
    names: &[String],
) -> Result<Option<CachedBlob>, Failure> {
    for name in names {
        if let Some(blob) = s3cache::find_cached(&source(repository, name)?, &config.settings) {
            return Ok(Some(blob));
        }
    }
    Ok(None)
}

/// A cached build of any repository: by its name, or by a prefix of its hash.
///
/// # Errors
/// The prefix is ambiguous (exit 125).
pub(crate) fn by_name(
    config: &Config,
    names: &[String],
    job: &str,
    version: &str,
) -> Result<Option<CachedBlob>, Failure> {
    find(config, names, job, version, |_, _| true)
}

/// A cached build of the configured repositories, for when they cannot be listed: by a prefix of its hash.
pub(super) fn unlisted(
    config: &Config,
    names: &[String],
    job: &str,
    version: &str,
) -> Result<Option<CachedBlob>, Failure> {
    find(config, names, job, version, |key, entry| {
        config.repositories.iter().any(|repository| {
            source(repository, &entry.name)
                .and_then(|source| config.settings.index_key(&source))
                .is_ok_and(|own| own == key)
        })
    })
}

fn find(
    config: &Config,
    names: &[String],
    job: &str,
    version: &str,
    eligible: impl Fn(&str, &IndexEntry) -> bool,
) -> Result<Option<CachedBlob>, Failure> {
    let shares = config::trusted(&config.settings);
    let shares = || shares.iter().chain(&config.readable);
    let entries: Vec<_> = shares()
        .flat_map(s3cache::CacheShare::index_entries)
        .filter(|(key, entry)| eligible(key, entry) && !config.settings.lacks_sidecar(entry))
        .collect();
    let get = |name: &str| {
        let same = entries.iter().filter(|(_, entry)| entry.name == name);
        same.map(|(key, _)| key)
            .find_map(|key| s3cache::lookup(shares(), key).hit())
    };
    if let Some(blob) = names.iter().find_map(|name| get(name)) {
        return Ok(Some(blob));
    }
    if !is_short(version) {
        return Ok(None);
    }
    let mut matches = PrefixMatches::new(config, job, version);
    let _ = entries
        .iter()
        .try_for_each(|(_, entry)| matches.add(&entry.name));
    Ok(matches.only()?.and_then(|name| get(&name)))
}
