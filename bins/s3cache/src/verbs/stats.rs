//! `s3cache stats`: how much each user holds, kind by kind, adding up to what `du -sb` says.

use hostkit::units::format_size;
use hostkit::{Exit, Failure, stdout};
use serde_json::json;
use tracing::warn;

use super::{counted, disk, readable_shares};
use crate::cache::usage::ShareUsage;
use crate::settings::Settings;

/// Flags of `s3cache stats`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatsArgs {
    /// Print one JSON object per user
    #[arg(long)]
    json: bool,
}

/// Counts the cache.
///
/// # Errors
/// There is no cache (exit 66), or the caller's part of it cannot be read (exit 74).
pub(crate) fn run(args: &StatsArgs, settings: &Settings) -> Result<Exit, Failure> {
    for share in readable_shares(settings)? {
        let usage = match ShareUsage::of(&share) {
            Ok(usage) => usage,
            Err(error) if share.own => return Err(disk(&share, error)),
            Err(error) => {
                warn!(uid = share.uid, %error, "cannot read this user's part of the cache");
                continue;
            }
        };
        let sources = share.index_entries().len() as u64;
        if args.json {
            // A sum of which a part is not known is not known either.
            let sum = |bytes: u64| usage.unpacked.map(|_| bytes);
            stdout::print_json(&json!({
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
                "held_bytes": sum(usage.held()),
                "other_bytes": usage.other,
                "total_bytes": sum(usage.total()),
            }))?;
        } else {
            table(share.uid, &usage, sources, settings.max_size)?;
        }
    }
    Ok(Exit::OK)
}

fn table(uid: u32, usage: &ShareUsage, sources: u64, max_size: u64) -> Result<(), Failure> {
    let without = match usage.unpacked {
        Some(_) => "",
        None => ", without what is not readable",
    };
    let rows = [
        (
            Some(usage.artifacts.bytes),
            format!(
                "{} ({})",
                counted(usage.artifacts.count, "artifact", "artifacts"),
                counted(sources, "source", "sources")
            ),
        ),
        (Some(usage.arriving.bytes), "partial downloads".to_owned()),
        (
            Some(usage.quarantined.bytes),
            counted(
                usage.quarantined.count,
                "quarantined blob",
                "quarantined blobs",
            ),
        ),
        (
            Some(usage.failures.bytes),
            counted(
                usage.failures.count,
                "record of a failure",
                "records of failures",
            ),
        ),
        (usage.unpacked, "unpacked pexes".to_owned()),
        (
            Some(usage.held()),
            format!(
                "together, of at most {} (max-size){without}",
                format_size(max_size)
            ),
        ),
        (Some(usage.other), "index, locks, directories".to_owned()),
        (Some(usage.total()), format!("in all (du -sb){without}")),
    ];
    stdout::print_line(format_args!("uid {uid}"))?;
    for (bytes, what) in rows {
        match bytes {
            Some(bytes) => {
                stdout::print_line(format_args!(
                    "{bytes:>16} {:>10}  {what}",
                    format_size(bytes)
                ))?;
            }
            None => stdout::print_line(format_args!("{:>27}  {what}", "not readable"))?,
        }
    }
    Ok(())
}
