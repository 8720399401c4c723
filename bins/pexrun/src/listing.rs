//! `pexrun --list`: the builds of a job, newest first, and which of them are cached.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use hostkit::{Exit, Failure, stdout};
use serde_json::json;
use tracing::warn;

use crate::build_lookup;
use crate::cli::Args;
use crate::config::{Config, trusted};

/// Job and version.
type JobVersion = (String, String);

/// The builds published last, at most `limit` of them, of a listing of any length.
#[derive(Debug)]
struct NewestBuilds {
    limit: usize,
    /// Build -> time of publication.
    published: BTreeMap<JobVersion, String>,
    /// Sorted opposite to the rows, so that the first one is left out.
    by_time: BTreeSet<(String, Reverse<JobVersion>)>,
    truncated: bool,
}

impl NewestBuilds {
    const fn new(limit: usize) -> Self {
        Self {
            limit,
            published: BTreeMap::new(),
            by_time: BTreeSet::new(),
            truncated: false,
        }
    }

    fn add(&mut self, build: JobVersion, published: String) {
        match self.published.get(&build) {
            Some(known) if *known >= published => return,
            Some(known) => {
                self.by_time
                    .remove(&(known.clone(), Reverse(build.clone())));
            }
            None => {}
        }
        self.by_time
            .insert((published.clone(), Reverse(build.clone())));
        self.published.insert(build, published);
        if self.by_time.len() > self.limit
            && let Some((_, Reverse(oldest))) = self.by_time.pop_first()
        {
            self.published.remove(&oldest);
            self.truncated = true;
        }
    }

    /// Newest first; builds of the same second by name.
    fn into_rows(self) -> Vec<(JobVersion, String)> {
        let rows = self.by_time.into_iter().rev();
        rows.map(|(published, Reverse(build))| (build, published))
            .collect()
    }
}

/// Prints the builds of a job; with `cached_only` those in the cache, of every job when no job is given.
///
/// # Errors
/// No repository can be listed (exit 125).
pub(crate) fn run(config: &Config, args: &Args, cached_only: bool) -> Result<Exit, Failure> {
    let job = args.job.as_deref();
    let cached = cached(config, job);
    let limit = args.limit as usize;
    let (rows, truncated) = match job {
        _ if cached_only => {
            let builds = cached.iter().cloned();
            (builds.map(|build| (build, String::new())).collect(), false)
        }
        Some(job) => {
            let newest = published(config, job, limit)?;
            let truncated = newest.truncated;
            (newest.into_rows(), truncated)
        }
        None => (Vec::new(), false),
    };
    for (build, modified) in rows {
        let is_cached = cached.contains(&build);
        let (job, version) = build;
        if args.json {
            let published = Some(&modified).filter(|modified| !modified.is_empty());
            stdout::print_json(
                &json!({"job": job, "version": version, "published": published, "cached": is_cached}),
            )?;
        } else {
            let mark = if is_cached { "cached" } else { "" };
            stdout::print_line(
                stdout::replace_unprintable(&format!("{job} {version} {modified} {mark}"))
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" "),
            )?;
        }
    }
    if truncated {
        let job = job.unwrap_or_default();
        warn!(
            job,
            limit,
            "only the builds that were published last are listed; raise --limit to see older ones"
        );
        if args.json {
            stdout::print_json(&json!({"job": job, "truncated": true, "limit": limit}))?;
        }
    }
    Ok(Exit::OK)
}

/// The builds of all repositories that can be listed.
fn published(config: &Config, job: &str, limit: usize) -> Result<NewestBuilds, Failure> {
    let templates = [&config.pex_name, &config.jar_name];
    let prefixes = BTreeSet::from(templates.map(|template| template.prefix(job)));
    let mut newest = NewestBuilds::new(limit);
    let mut last = None;
    let mut missing = Vec::new();
    let mut listed = false;
    for repository in &config.repositories {
        for prefix in &prefixes {
            let result = build_lookup::list(config, repository, prefix, &mut |object| {
                for template in templates {
                    if let Some(build) = template.read(&object.name, Some(job), &config.arch) {
                        newest.add(build, object.modified.clone());
                    }
                }
                ControlFlow::Continue(())
            });
            match result {
                Ok(()) => listed = true,
                Err(failure) if failure.signal().is_some() => return Err(failure),
                Err(failure) if failure.exit() == Exit::NOT_FOUND => {
                    listed = true;
                    missing.push(failure);
                    break;
                }
                Err(failure) => {
                    last = Some(failure);
                    break;
                }
            }
        }
    }
    let nothing = newest.published.is_empty();
    match last {
        Some(failure) if !listed || nothing => Err(failure),
        None if nothing => {
            let text = format!("no builds of {job} for {}", config.arch);
            let failure = Failure::new(Exit::NO_SUCH_PROGRAM, text);
            Err(match missing.is_empty() {
                true => failure
                    .remedy("check its name; --arch selects builds for other hosts")
                    .because(format!(
                        "searched {}",
                        build_lookup::display_repositories(&config.repositories)
                    )),
                false => build_lookup::because(failure.remedy("correct the repository"), &missing),
            })
        }
        Some(failure) => {
            warn!(error = %failure, "cannot list a repository; listing the others");
            Ok(newest)
        }
        None => Ok(newest),
    }
}

fn cached(config: &Config, job: Option<&str>) -> BTreeSet<(String, String)> {
    let shares = trusted(&config.settings);
    let own = shares.iter().chain(&config.readable);
    own.flat_map(s3cache::CacheShare::index_entries)
        .filter_map(|(_, entry)| {
            [&config.pex_name, &config.jar_name]
                .iter()
                .find_map(|template| template.read(&entry.name, job, &config.arch))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn newest_builds_match_sorted_listing(
            listing in proptest::collection::vec(("[a-d]{1,2}", "[0-9]{1,2}"), 0..40),
            limit in 1..10_usize,
        ) {
            let mut newest = NewestBuilds::new(limit);
            // A build of two repositories counts once, with its later time.
            let mut all: BTreeMap<JobVersion, String> = BTreeMap::new();
            for (version, time) in listing {
                let build = ("job".to_owned(), version);
                newest.add(build.clone(), time.clone());
                proptest::prop_assert!(newest.by_time.len() <= limit);
                let known = all.entry(build).or_default();
                *known = known.clone().max(time);
            }
            proptest::prop_assert_eq!(newest.truncated, all.len() > limit);
            let mut rows: Vec<_> = all.into_iter().collect();
            rows.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
            rows.truncate(limit);
            proptest::prop_assert_eq!(newest.into_rows(), rows);
        }
    }
}
