//! `s3cache ls s3://bucket/prefix/`: lists the objects of a store.

use std::ops::ControlFlow;

use hostkit::units::format_size;
use hostkit::{Exit, Failure, stdout};
use serde_json::json;

use crate::fetch::run_until_deadline;
use crate::settings::Settings;
use crate::source::ArtifactSource;
use crate::store::{self, ListedObject, ListingVisitor};

/// The prefix that a word names, if it does not name an artifact: it ends in a slash, or is a bare bucket.
///
/// # Errors
/// It is a prefix, but not a valid source (exit 2).
pub(super) fn prefix(word: &str) -> Result<Option<ArtifactSource>, Failure> {
    let prefix = parse_prefix(word)?;
    if let Some(source @ ArtifactSource::Http(_)) = &prefix {
        let text = format!("cannot list {source}: a web server has no listing");
        return Err(Failure::new(Exit::USAGE, text).remedy("only s3:// and file:/// can be listed"));
    }
    Ok(prefix)
}

fn parse_prefix(word: &str) -> Result<Option<ArtifactSource>, Failure> {
    let bucket = word
        .split_once("://")
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("s3"))
        .map(|(_, rest)| rest.trim_end_matches('/'))
        .filter(|rest| !rest.contains('/'));
    match bucket {
        // A bucket alone is not a valid source; any key makes it one.
        Some(bucket) => match ArtifactSource::parse(&format!("s3://{bucket}/key"))? {
            ArtifactSource::S3 { bucket, .. } => Ok(Some(ArtifactSource::S3 {
                bucket,
                key: String::new(),
            })),
            other => Ok(Some(other)),
        },
        None if word.ends_with('/') => ArtifactSource::parse(word).map(Some),
        None => Ok(None),
    }
}

/// Passes every object whose name starts with `prefix` to `visit`, until that breaks off.
///
/// # Errors
/// The store cannot be listed: it is a web server, it failed, or the listing did not end before the deadline.
pub fn list_store(
    prefix: &ArtifactSource,
    settings: &Settings,
    visit: ListingVisitor<'_>,
) -> Result<(), Failure> {
    run_until_deadline(&settings.deadline(prefix), async {
        let store = store::open(prefix, &settings.access, settings.timeout).await?;
        let listed = store.list(prefix, visit).await;
        listed.map_err(|error| error.into_failure(prefix))
    })
}

/// Prints the objects and prefixes of one level as they arrive.
///
/// # Errors
/// There is nothing (exit 66), or the store cannot be listed.
pub(super) fn run(prefix: &ArtifactSource, json: bool, settings: &Settings) -> Result<(), Failure> {
    let (mut any, mut printed) = (false, Ok(()));
    list_store(prefix, settings, &mut |listed| {
        printed = print(prefix, &listed, json, !any);
        any = true;
        match printed {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    printed?;
    if any {
        return Ok(());
    }
    Err(
        Failure::new(Exit::NOT_FOUND, format!("nothing below {prefix}"))
            .remedy("check the prefix; without the slash, `ls` shows cached artifacts"),
    )
}

fn print(
    prefix: &ArtifactSource,
    listed: &ListedObject,
    json: bool,
    first: bool,
) -> Result<(), Failure> {
    if json {
        let source = format!("{prefix}{}", listed.name);
        return stdout::print_json(&json!({
            "source": source, "name": listed.name, "size": listed.size, "modified": listed.modified,
        }));
    }
    if first {
        stdout::print_line(format_args!(
            "{:>10} {:<20} {}",
            "SIZE", "MODIFIED", "SOURCE"
        ))?;
    }
    let source = stdout::replace_unprintable(&format!("{prefix}{}", listed.name));
    let size = match listed.name.ends_with('/') {
        true => "-".to_owned(),
        false => format_size(listed.size),
    };
    let modified = match listed.modified.as_str() {
        "" => "-",
        modified => modified,
    };
    stdout::print_line(format_args!("{size:>10} {modified:<20} {source}"))
}
