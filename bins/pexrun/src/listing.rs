//! `pexrun --list`: the builds of a job, newest first, and which of them are cached.

use std::collections::{BTreeMap, BTreeSet};

use hostkit::{Exit, Failure, out};
use serde_json::json;
use tracing::warn;

use crate::config::{Config, trusted};
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
    match job {
        _ if cached_only => {
            builds.extend(cached.iter().cloned().map(|build| (build, String::new())))
        }
        Some(job) => published(config, job, &mut builds)?,
        None => {}
    }
    let mut rows: Vec<_> = builds.into_iter().collect();
    rows.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    for (build, modified) in rows {
        let is_cached = cached.contains(&build);
        let (job, version) = build;
        if as_json {
            let published = Some(&modified).filter(|modified| !modified.is_empty());
            out::json(
                &json!({"job": job, "version": version, "published": published, "cached": is_cached}),
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
                Err(failure) if failure.exit() == Exit::NOT_FOUND => listed = true,
                Err(failure) => {
                    last = Some(failure);
                    break;
                }
            }
        }
    }
    match last {
        Some(failure) if !listed || builds.is_empty() => Err(failure),
        None if builds.is_empty() => Err(Failure::new(
            Exit::NO_SUCH_PROGRAM,
            format!("there are no builds of {job} for {}", config.arch),
        )
        .remedy("check its name; --arch lists those for other hosts")
        .because(format!("looked in {}", find::shown(&config.repositories)))),
        Some(failure) => {
            warn!("{failure}; the others are listed");
            Ok(())
        }
        None => Ok(()),
    }
}

fn cached(config: &Config, job: Option<&str>) -> BTreeSet<(String, String)> {
    let shares = trusted(&config.settings);
    let own = shares.iter().chain(&config.readable);
    own.flat_map(s3cache::verbs::entries)
        .filter_map(|(_, entry)| {
            [&config.pex_name, &config.jar_name]
                .iter()
                .find_map(|template| template.read(&entry.name, job, &config.arch))
        })
        .collect()
}
