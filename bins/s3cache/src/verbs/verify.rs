//! `s3cache verify`: reads blobs again and compares their digest; what differs is put aside.

use hostkit::units::show_size;
use hostkit::{Exit, Failure, out};
use serde_json::json;

use super::{check_words, disk, entries, matches, own_shares};
use crate::cache::Lookup;
use crate::digest;
use crate::settings::Settings;

/// Flags of `s3cache verify`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these: a source, a file name, or the beginning of a digest
    #[arg(value_name = "WHAT")]
    what: Vec<String>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

/// Verifies the caller's blobs; as root, everybody's.
///
/// # Errors
/// A blob was corrupt (exit 65) or cannot be read (exit 74).
pub fn run(args: &Args, settings: &Settings) -> Result<Exit, Failure> {
    check_words(&args.what, settings)?;
    let (mut good, mut bad, mut bytes) = (0u64, 0u64, 0u64);
    for share in own_shares(settings)? {
        for (key, entry) in entries(&share) {
            if !args.what.is_empty()
                && !args
                    .what
                    .iter()
                    .any(|word| matches(&entry, &key, word, settings))
            {
                continue;
            }
            // Looking it up mends or puts aside what its stamp gives away; reading it finds the rest.
            let state = match share.lookup(&key).map_err(|error| disk(&share, error))? {
                Lookup::Miss => continue,
                Lookup::Corrupt(_) => "corrupt",
                Lookup::Hit(blob) => match digest::of_file(&blob.file, entry.size) {
                    Ok(found) if found == entry.sha256 => "ok",
                    _ => {
                        share
                            .quarantine(&key, &entry)
                            .map_err(|error| disk(&share, error))?;
                        "corrupt"
                    }
                },
            };
            if state == "ok" {
                good += 1
            } else {
                bad += 1
            }
            bytes += entry.size;
            if args.json {
                out::json(
                    &json!({"source": entry.source, "sha256": entry.sha256, "uid": share.uid, "state": state}),
                )?;
            } else if state != "ok" {
                out::line(format_args!("corrupt {} {}", entry.sha256, entry.source))?;
            }
        }
    }
    if !args.json {
        out::line(format_args!(
            "{good} ok, {bad} corrupt, {} read",
            show_size(bytes)
        ))?;
    }
    if bad > 0 {
        return Err(Failure::new(
            Exit::CORRUPT,
            format!("{bad} cached artifacts were corrupt"),
        )
        .remedy("they were put aside and are fetched again when needed; check the disk"));
    }
    Ok(Exit::OK)
}
