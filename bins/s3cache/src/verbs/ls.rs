//! `s3cache ls`: cached artifacts with size, age, last use, and the processes that use them; for a prefix, the store's
//! objects.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hostkit::units::{format_duration, format_size};
use hostkit::{Exit, Failure, clock, stdout};
use serde_json::json;

use super::{check_found, check_sources, ls_store, names_of, readable_shares};
use crate::cache::process_references::ProcessReferences;
use crate::cache::space;
use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(crate) struct LsArgs {
    /// Only these: a source, a file name, at least 8 digits of a digest, or the path of a cached artifact. A prefix
    /// with a slash at its end lists the store: s3://bucket/prefix/
    #[arg(value_name = "WHAT")]
    what: Vec<String>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

/// Lists the cache, or the stores of the given prefixes.
///
/// # Errors
/// There is no cache, nothing below a prefix, or no such artifact (exit 66); a store cannot be listed.
pub(crate) fn run(args: &LsArgs, settings: &Settings) -> Result<Exit, Failure> {
    let mut what = Vec::new();
    for word in &args.what {
        match ls_store::prefix(word)? {
            Some(prefix) => ls_store::run(&prefix, args.json, settings)?,
            None => what.push(word.clone()),
        }
    }
    if what.is_empty() && !args.what.is_empty() {
        return Ok(Exit::OK);
    }
    check_sources(&what, settings)?;
    let (holders, in_use) = (lease_holders(), ProcessReferences::default());
    let (mut rows, mut listed) = (Vec::new(), HashSet::new());
    for share in readable_shares(settings)? {
        let used: HashMap<String, SystemTime> = space::blobs(&share)
            .unwrap_or_default()
            .into_iter()
            .map(|blob| (blob.sha256, blob.used))
            .collect();
        for found in share.index_entries() {
            let named = names_of(&share, &found, &what, settings);
            if named.is_empty() && !what.is_empty() {
                continue;
            }
            let (_, entry) = found;
            let inode = share
                .open_blob(&entry.sha256, &entry.name)
                .ok()
                .and_then(|(file, _)| Some(file.metadata().ok()?.ino()));
            // The blob was evicted; gc removes the entry.
            let Some(inode) = inode else { continue };
            listed.extend(named);
            let last = used.get(&entry.sha256).copied().unwrap_or(UNIX_EPOCH);
            rows.push((
                last,
                share.uid,
                entry,
                holders.get(&inode).cloned().unwrap_or_default(),
            ));
        }
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.0));
    if !args.json && !rows.is_empty() {
        stdout::print_line(format_args!(
            "{:>10} {:>5} {:>5} {:>6}  {:<12} {}",
            "SIZE", "AGE", "USED", "UID", "LEASE", "SOURCE"
        ))?;
    }
    for (last, uid, entry, mut leases) in rows {
        // Unknown when /proc cannot be read.
        let referenced_by = in_use.pids_of_blob(&entry.sha256).ok();
        if args.json {
            stdout::print_json(&json!({
                "source": entry.source, "name": entry.name, "sha256": entry.sha256, "size": entry.size, "uid": uid,
                "fetched": entry.fetched, "used": seconds(last), "verified_by": entry.verified_by, "leases": leases,
                "referenced_by": referenced_by,
            }))?;
            continue;
        }
        // For people a lease and a reference are the same: the reason why it stays.
        leases.extend(referenced_by.unwrap_or_default());
        leases.sort_unstable();
        leases.dedup();
        let lease = leases
            .iter()
            .map(u32::to_string)
            .collect::<Vec<_>>()
            .join(",");
        let lease = if lease.is_empty() { "-" } else { &lease };
        let fetched = UNIX_EPOCH + Duration::from_secs(entry.fetched);
        let (size, age, used) = (format_size(entry.size), since(fetched), since(last));
        stdout::print_line(format_args!(
            "{size:>10} {age:>5} {used:>5} {uid:>6}  {lease:<12} {}",
            stdout::replace_unprintable(&entry.source)
        ))?;
    }
    check_found(&what, |word| listed.contains(word))?;
    Ok(Exit::OK)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn since(time: SystemTime) -> String {
    // The time may be in the future, when the clock was set back.
    format_duration(clock::now().duration_since(time).unwrap_or_default())
}

/// Inode -> pids that hold a shared flock on it. Inodes of other filesystems may collide, which is good enough for
/// display.
fn lease_holders() -> HashMap<u64, Vec<u32>> {
    let text = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let me = std::process::id();
    let mut holders: HashMap<u64, Vec<u32>> = HashMap::new();
    for line in text.lines() {
        // 1: FLOCK  ADVISORY  READ 1234 fd:00:131 0 EOF
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [_, "FLOCK", _, "READ", pid, place, ..] = words.as_slice()
            && let (Ok(pid), Some(Ok(inode))) =
                (pid.parse(), place.rsplit(':').next().map(str::parse))
            && pid != me
        {
            holders.entry(inode).or_default().push(pid);
        }
    }
    holders
}
