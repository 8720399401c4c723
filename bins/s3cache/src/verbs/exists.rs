//! `s3cache exists`: whether a build is published, for deployment tools.

use hostkit::{Exit, Failure, stdout};
use serde_json::json;

use crate::fetch::run_until_deadline;
use crate::settings::Settings;
use crate::source::ArtifactSource;
use crate::store::{self, GetRequest, HeadResponse, StoreErrorKind};

#[derive(Debug, clap::Args)]
pub(crate) struct ExistsArgs {
    /// The artifact
    source: String,
    /// Print its size and entity tag as JSON
    #[arg(long)]
    json: bool,
}

/// Queries the store, not the cache. Without `--json` the exit code is the only result.
///
/// # Errors
/// It does not exist (exit 66), or the store does not show whether it does (exit 69 or 77).
pub(crate) fn run(args: &ExistsArgs, settings: &Settings) -> Result<Exit, Failure> {
    let source = ArtifactSource::parse(&args.source)?;
    let meta = run_until_deadline(&settings.deadline(&source), async {
        let store = store::open(&source, &settings.access, settings.timeout).await?;
        let head = match store.head(&source, None).await {
            // A server may reject HEAD, but allow a GET of one byte.
            Err(error) if error.kind == StoreErrorKind::Permanent => {
                let want = GetRequest {
                    range: Some((0, 0)),
                    if_match: None,
                };
                store.get(&source, want).await.map(|reply| reply.meta)
            }
            other => other.map(HeadResponse::into_meta),
        };
        head.map_err(|error| error.into_failure(&source))
    })?;
    if args.json {
        stdout::print_json(
            &json!({"source": source.to_string(), "size": meta.size, "etag": meta.etag}),
        )?;
    }
    Ok(Exit::OK)
}
