//! `s3cache stats`: how much is cached, per user.

use hostkit::units::show_size;
use hostkit::{Exit, Failure, out};
use serde_json::json;

use super::{all_shares, entries};
use crate::cache::gc::pex_root_bytes;
use crate::cache::space;
use crate::settings::Settings;

/// Flags of `s3cache stats`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one JSON object per user
    #[arg(long)]
    json: bool,
}

/// Counts the cache.
///
/// # Errors
/// There is no cache (exit 66).
pub fn run(args: &Args, settings: &Settings) -> Result<Exit, Failure> {
    for share in all_shares(settings)? {
        let blobs = space::blobs(&share).unwrap_or_default();
        let bytes: u64 = blobs.iter().map(|blob| blob.size).sum();
        let partial = space::partial_bytes(&share).unwrap_or(0);
        let sources = entries(&share).len();
        let pex_root = pex_root_bytes(&share);
        if args.json {
            out::json(
                &json!({"uid": share.uid, "sources": sources, "blobs": blobs.len(), "bytes": bytes,
                "partial_bytes": partial, "pex_root_bytes": pex_root}),
            )?;
        } else {
            out::line(format_args!(
                "uid {}: {} in {} artifacts ({sources} sources), {} arriving, {} unpacked",
                share.uid,
                show_size(bytes),
                blobs.len(),
                show_size(partial),
                show_size(pex_root),
            ))?;
        }
    }
    Ok(Exit::OK)
}
