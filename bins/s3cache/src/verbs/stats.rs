//! `s3cache stats`: the disk usage of each user by kind, which adds up to `du -sb`.

use hostkit::units::format_size;
use hostkit::{Exit, Failure, stdout};
use serde_json::json;
use tracing::warn;

use super::{format_count, io_failure, readable_shares};
use crate::cache::usage::ShareUsage;
use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(crate) struct StatsArgs {
    /// Print one JSON object per user
    #[arg(long)]
    json: bool,
}

/// Counts the cache.
///
/// # Errors
/// There is no cache (exit 66), or the caller's share cannot be read (exit 74).
pub(crate) fn run(args: &StatsArgs, settings: &Settings) -> Result<Exit, Failure> {
    for share in readable_shares(settings)? {
        let usage = match ShareUsage::of(&share) {
            Ok(usage) => usage,
            Err(error) if share.own => return Err(io_failure(&share, error)),
            Err(error) => {
                warn!(uid = share.uid, %error, "cannot read this user's share");
                continue;
            }
        };
        let sources = share.index_entries().len() as u64;
        if args.json {
            // A sum with an unknown part is unknown.
            let sum = |bytes: u64| usage.unpacked.map(|_| bytes);
            stdout::print_json(&json!({
                "uid": share.uid,
                "sources": sources,
                "blobs": usage.artifacts.count,
                "bytes": usage.artifacts.bytes,
                "partial_bytes": usage.partial_downloads.bytes,
                "quarantined": usage.quarantined.count,
                "quarantined_bytes": usage.quarantined.bytes,
                "failures": usage.failures.count,
                "failure_bytes": usage.failures.bytes,
                "pex_root_bytes": usage.unpacked,
                "used_bytes": sum(usage.held()),
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
        None => ", without unreadable files",
    };
    let rows = [
        (
            Some(usage.artifacts.bytes),
            format!(
                "{} ({})",
                format_count(usage.artifacts.count, "artifact", "artifacts"),
                format_count(sources, "source", "sources")
            ),
        ),
        (
            Some(usage.partial_downloads.bytes),
            "partial downloads".to_owned(),
        ),
        (
            Some(usage.quarantined.bytes),
            format_count(
                usage.quarantined.count,
                "quarantined blob",
                "quarantined blobs",
            ),
        ),
        (
            Some(usage.failures.bytes),
            format_count(usage.failures.count, "failure record", "failure records"),
        ),
        (usage.unpacked, "unpacked pexes".to_owned()),
        (
            Some(usage.held()),
            format!(
                "sum, of at most {} (max-size){without}",
                format_size(max_size)
            ),
        ),
        (Some(usage.other), "index, locks, directories".to_owned()),
        (Some(usage.total()), format!("total (du -sb){without}")),
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
