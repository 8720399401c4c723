//! `s3cache exists`: is this build published? What a deploy tool asks first.

use hostkit::{Exit, Failure, stdout};
use serde_json::json;

use crate::fetch::run_until_deadline;
use crate::settings::Settings;
use crate::source::ArtifactSource;
use crate::store::{self, GetRequest, HeadResponse, StoreErrorKind};

/// Flags of `s3cache exists`.
#[derive(Debug, clap::Args)]
pub(crate) struct ExistsArgs {
    /// The artifact
    source: String,
    /// Print its size and entity tag as JSON
    #[arg(long)]
    json: bool,
}

/// Asks the store, not the cache. Prints nothing without `--json`: the exit code is the answer.
///
/// # Errors
/// It is not there (exit 66), or the store cannot say (exit 69 or 77).
pub(crate) fn run(args: &ExistsArgs, settings: &Settings) -> Result<Exit, Failure> {
    let source = ArtifactSource::parse(&args.source)?;
    let meta = run_until_deadline(&settings.deadline(&source), async {
        let store = store::open(&source, &settings.access, settings.timeout).await?;
        let asked = match store.head(&source, None).await {
            // A server that knows no HEAD is asked for one byte.
            Err(error) if error.kind == StoreErrorKind::Permanent => {
                let want = GetRequest {
                    range: Some((0, 0)),
                    if_match: None,
                };
                store.get(&source, want).await.map(|reply| reply.meta)
            }
            other => other.map(HeadResponse::into_meta),
        };
        asked.map_err(|error| error.into_failure(&source))
    })?;
    if args.json {
        stdout::print_json(
            &json!({"source": source.to_string(), "size": meta.size, "etag": meta.etag}),
        )?;
    }
    Ok(Exit::OK)
}
