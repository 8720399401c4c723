//! `s3cache stats`: how much each user holds, kind by kind, adding up to what `du -sb` says.

use hostkit::units::show_size;
use hostkit::{Exit, Failure, out};
use serde_json::json;

use super::{all_shares, entries};
use crate::cache::usage::Usage;
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
        // What cannot be read of another user's part counts nothing.
        let usage = Usage::of(&share).unwrap_or_default();
        let sources = entries(&share).len();
        if args.json {
            out::json(&json!({
                "uid": share.uid,
                "sources": sources,
                "blobs": usage.artifacts.count,
                "bytes": usage.artifacts.bytes,
                "partial_bytes": usage.arriving.bytes,
                "quarantined": usage.quarantined.count,
                "quarantined_bytes": usage.quarantined.bytes,
                "failures": usage.failures.count,
                "failure_bytes": usage.failures.bytes,
                "pex_root_bytes": usage.unpacked,
                "held_bytes": usage.held(),
                "other_bytes": usage.other,
                "total_bytes": usage.total(),
            }))?;
        } else {
            table(share.uid, &usage, sources, settings.max_size)?;
        }
    }
    Ok(Exit::OK)
}

fn table(uid: u32, usage: &Usage, sources: usize, max_size: u64) -> Result<(), Failure> {
    let rows = [
        (
            usage.artifacts.bytes,
            format!("{} artifacts ({sources} sources)", usage.artifacts.count),
        ),
        (usage.arriving.bytes, "partial downloads".to_owned()),
        (
            usage.quarantined.bytes,
            format!("{} quarantined blobs", usage.quarantined.count),
        ),
        (
            usage.failures.bytes,
            format!("{} records of failures", usage.failures.count),
        ),
        (usage.unpacked, "unpacked pexes".to_owned()),
        (
            usage.held(),
            format!("together, of at most {} (max-size)", show_size(max_size)),
        ),
        (usage.other, "index, locks, directories".to_owned()),
        (usage.total(), "in all (du -sb)".to_owned()),
    ];
    out::line(format_args!("uid {uid}"))?;
    for (bytes, what) in rows {
        out::line(format_args!("{bytes:>16} {:>10}  {what}", show_size(bytes)))?;
    }
    Ok(())
}
