//! s3cache fetches an artifact once per host, verifies it, caches it, and copies it into place.
//!
//! `fetch` has the steps of a fetch. pexrun and the tests use what is exported here.

mod archive;
mod cache;
mod cli;
mod copy;
mod deadline;
mod digest;
mod download;
mod environment;
mod fetch;
mod named_file;
mod pex;
mod presigned_url;
mod progress;
mod s3_access;
mod settings;
mod sidecar;
mod single_flight;
mod sink;
mod source;
mod store;
mod stream_worker;
mod transfer;
mod unpack;
mod untrusted_copy;
mod verbs;
mod verification;

pub use cache::pex_root::lease as lease_unpacked_pex;
pub use cache::{
    CacheShare, CacheUnusable, CachedBlob, HostCache, IndexEntry, LookupResult, lookup,
};
pub use cli::Args;
pub use fetch::{CacheResult, FetchRequest, LocalArtifact, fetch, find_cached};
pub use settings::{FetchArgs, Freshness, Settings, complete_check, file_layer, read_files};
pub use source::{ArtifactSource, is_hash, is_immutable};
pub use store::{ListedObject, ListingVisitor};
pub use verbs::{list_store, readable_shares};

/// The parsers of hostile bytes, for the fuzz bodies.
#[doc(hidden)]
pub mod testing {
    pub use crate::archive::check as check_archive;
    pub use crate::cache::partial_download::parse_record as parse_partial_record;
    pub use crate::deadline::Deadline;
    pub use crate::digest::parse as parse_digest;
    pub use crate::sidecar::{SidecarDigest, parse as parse_sidecar};
    pub use crate::unpack::{ArchiveKind, unpack};
}

use std::path::Path;

use cli::Verb;
use deadline::Deadline;
use hostkit::cli::CommandLine;
use hostkit::{Exit, Failure, clock, stdout};
use tracing::info;

/// Runs the tool.
///
/// # Errors
/// As the verb, with the documented exit codes.
pub fn run(args: Args, line: &CommandLine) -> Result<Exit, Failure> {
    if let (Some(_), Some(source)) = (&args.verb, &args.source) {
        return Err(Failure::new(
            Exit::USAGE,
            format!("{} precedes the verb", hostkit::mask::mask_url(source)),
        )
        .remedy("write the verb first"));
    }
    if args.check && (args.verb.is_some() || args.source.is_some()) {
        let text = "--check validates the configuration and takes no artifact";
        return Err(Failure::new(Exit::USAGE, text).remedy("leave out SOURCE and COMMAND"));
    }
    let files = settings::read_files(args.fetch.config.as_deref())?;
    let layers = [settings::file_layer(&files, |_| true)];
    let (args, mut table) = line.with_files::<Args>(&layers)?;
    let settings = Settings::resolve(&args.fetch, &table, &files)?;
    if args.check {
        settings::complete_check(&settings, &files, &[], &mut table)?;
        stdout::print_text(&table.to_string())?;
        return Ok(Exit::OK);
    }
    match &args.verb {
        None => fetch_artifact(&args, &settings),
        Some(Verb::Ls(verb)) => verbs::ls::run(verb, &settings),
        Some(Verb::Verify(verb)) => verbs::verify::run(verb, &settings),
        Some(Verb::Gc(verb)) => verbs::gc::run(verb, &settings),
        Some(Verb::Rm(verb)) => verbs::rm::run(verb, &settings),
        Some(Verb::Stats(verb)) => verbs::stats::run(verb, &settings),
        Some(Verb::Exists(verb)) => verbs::exists::run(verb, &settings),
        Some(Verb::Put(verb)) => verbs::put::run(verb, &settings),
    }
}

/// Fetches one artifact and delivers it.
fn fetch_artifact(args: &Args, settings: &Settings) -> Result<Exit, Failure> {
    let began = clock::since_boot();
    let source = ArtifactSource::parse(args.source.as_deref().unwrap_or_default())?;
    let name = source.name()?;
    if args.unpack_to.is_some() {
        unpack::check_name(&name)?;
    }
    let copy_to = args.copy_to.as_deref();
    let copy_to = copy_to
        .map(|path| copy::resolve_target(path, &name))
        .transpose()?;
    let bypass = copy_to
        .clone()
        .filter(|_| args.unpack_to.is_none())
        .map(|path| (path, args.mode));
    if let Some(target) = &copy_to {
        // Report an unusable target before downloading a gigabyte for it.
        copy::check_target(target)?;
    }
    let request = FetchRequest {
        source,
        sha256: args.sha256.clone(),
        bypass,
    };
    let (exit, result) = fetch::fetch_and_use(&request, settings, |artifact, deadline| {
        let to = OutputTarget {
            copy_to: copy_to.as_deref(),
            unpack_to: args.unpack_to.as_deref(),
            mode: args.mode,
            deadline,
        };
        deliver(artifact, &to, settings, &name, &request.source)
    })?;
    let ms = clock::since_boot().saturating_sub(began).as_millis() as u64;
    info!(source = %request.source, result = result.name(), ms, "fetch finished");
    Ok(exit)
}

/// The targets of a fetched artifact.
struct OutputTarget<'a> {
    copy_to: Option<&'a Path>,
    unpack_to: Option<&'a Path>,
    mode: u32,
    deadline: &'a Deadline,
}

/// Copies or unpacks a fetched artifact, or prints its path in the cache.
fn deliver(
    artifact: &LocalArtifact,
    to: &OutputTarget<'_>,
    settings: &Settings,
    name: &str,
    source: &ArtifactSource,
) -> Result<Exit, Failure> {
    let (file, size, sha256, path) = match artifact {
        LocalArtifact::Cached(blob) => (
            &blob.file,
            blob.entry.size,
            blob.entry.sha256.clone(),
            Some(&blob.path),
        ),
        LocalArtifact::Unpublished { file, size } => (
            file,
            *size,
            digest::of_file(file, *size).unwrap_or_default(),
            None,
        ),
        LocalArtifact::Bypassed => return Ok(Exit::OK),
    };
    if let Some(target) = to.copy_to {
        copy::copy_file(file, size, target, to.mode, to.deadline)?;
    }
    if let Some(directory) = to.unpack_to {
        let share = verbs::own_share(settings);
        unpack::unpack(file, name, &sha256, directory, share.as_ref(), to.deadline)?;
    }
    if to.copy_to.is_none() && to.unpack_to.is_none() {
        let path = path.ok_or_else(|| {
            Failure::new(Exit::CANNOT_CREATE, format!("cannot cache {source}"))
                .remedy("use --copy-to")
        })?;
        stdout::print_line(path.display())?;
    }
    Ok(Exit::OK)
}
