//! `pexrun --list`: the builds of a job, newest first, and which of them are cached.

use std::collections::{BTreeMap, BTreeSet};

use hostkit::{Exit, Failure, out};
use serde_json::json;
use tracing::warn;

use crate::config::Config;
use crate::find;

/// Prints the builds of `job`, or with `cached_only` those in the cache, of every job when none is named.
///
/// # Errors
/// No repository could be listed (exit 125).
pub fn run(
    config: &Config,
    job: Option<&str>,
    cached_only: bool,
    as_json: bool,
) -> Result<Exit, Failure> {
    let cached = cached(config, job);
    // (job, version) -> when it was published.
    let mut builds: BTreeMap<(String, String), String> = BTreeMap::new();
    if cached_only {
        builds.extend(cached.iter().cloned().map(|build| (build, String::new())));
    } else {
        let Some(job) = job else {
            return Err(Failure::new(Exit::LAUNCHER_FAILED, "--list needs a job")
                .remedy("name one, or add --cached"));
        };
        published(config, job, &mut builds)?;
    }
    let mut rows: Vec<_> = builds.into_iter().collect();
    rows.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    for (build, modified) in rows {
        let is_cached = cached.contains(&build);
        let (job, version) = build;
        if as_json {
            out::json(
                &json!({"job": job, "version": version, "published": modified, "cached": is_cached}),
            )?;
        } else {
            let mark = if is_cached { "cached" } else { "" };
            out::line(
                format!("{job} {version} {modified} {mark}")
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" "),
            )?;
        }
    }
    Ok(Exit::OK)
}

fn published(
    config: &Config,
    job: &str,
    builds: &mut BTreeMap<(String, String), String>,
) -> Result<(), Failure> {
    let mut last = None;
    let mut listed = false;
    for repository in &config.repositories {
        for template in [&config.pex_name, &config.jar_name] {
            match find::list(config, repository, &template.prefix(job)) {
                Ok(objects) => {
                    listed = true;
                    for object in objects {
                        if let Some(build) = template.read(&object.name, Some(job), &config.arch) {
                            builds.insert(build, object.modified);
                        }
                    }
                }
                Err(failure) if failure.signal().is_some() => return Err(failure),
                Err(failure) => {
                    warn!("{failure}");
                    last = Some(failure);
                    break;
                }
            }
        }
    }
    match last {
        Some(failure) if !listed => Err(failure),
        _ => Ok(()),
    }
}

fn cached(config: &Config, job: Option<&str>) -> BTreeSet<(String, String)> {
    let shares = s3cache::verbs::all_shares(&config.settings).unwrap_or_default();
    let trusted = |uid: u32| {
        uid == 0
            || uid == nix::unistd::geteuid().as_raw()
            || config.settings.trusted_uids.contains(&uid)
    };
    let own = shares
        .iter()
        .filter(|share| trusted(share.uid))
        .chain(&config.readable);
    own.flat_map(s3cache::verbs::entries)
        .filter_map(|(_, entry)| {
            [&config.pex_name, &config.jar_name]
                .iter()
                .find_map(|template| template.read(&entry.name, job, &config.arch))
        })
        .collect()
}
