//! `s3cache verify`: reads blobs again, compares their digests, and quarantines corrupt ones.

use std::collections::{HashMap, HashSet, hash_map};
use std::io;
use std::os::unix::fs::MetadataExt as _;

use hostkit::units::format_size;
use hostkit::{Exit, Failure, stdout};
use serde_json::json;

use super::{check_found, check_sources, format_count, io_failure, names_of, own_shares};
use crate::cache::{CacheShare, IndexEntry, LookupResult};
use crate::digest::{self, Sha256Hex};
use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// Only these: a source, a file name, at least 8 digits of a digest, or the path of a cached artifact
    #[arg(value_name = "WHAT")]
    what: Vec<String>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

/// Verifies the caller's blobs; as root, those of every user.
///
/// # Errors
/// A blob is corrupt (exit 65) or cannot be read (exit 74), or a named artifact is not cached (exit 66).
pub(crate) fn run(args: &VerifyArgs, settings: &Settings) -> Result<Exit, Failure> {
    check_sources(&args.what, settings)?;
    let (mut good, mut bad, mut bytes) = (0u64, 0u64, 0u64);
    let mut verified = HashSet::new();
    for share in own_shares(settings)? {
        let mut blobs = BlobVerifier::default();
        for found in share.index_entries() {
            let named = names_of(&share, &found, &args.what, settings);
            if named.is_empty() && !args.what.is_empty() {
                continue;
            }
            let (key, entry) = found;
            let sound = blobs.verify(&share, &key, &entry);
            let Some(sound) = sound.map_err(|error| io_failure(&share, error))? else {
                continue;
            };
            verified.extend(named);
            if args.json {
                let state = if sound { "ok" } else { "corrupt" };
                stdout::print_json(
                    &json!({"source": entry.source, "sha256": entry.sha256, "uid": share.uid, "state": state}),
                )?;
            } else if !sound {
                stdout::print_line(format_args!("corrupt {} {}", entry.sha256, entry.source))?;
            }
        }
        bytes += blobs.bytes;
        let sound = blobs.sound.values().filter(|sound| **sound).count() as u64;
        good += sound;
        bad += blobs.sound.len() as u64 - sound;
    }
    if !args.json {
        stdout::print_line(format_args!(
            "{good} ok, {bad} corrupt, {} read",
            format_size(bytes)
        ))?;
    }
    if bad > 0 {
        return Err(Failure::new(
            Exit::CORRUPT,
            format!(
                "{} corrupt",
                format_count(bad, "cached artifact was", "cached artifacts were")
            ),
        )
        .remedy(
            "check the disk; corrupt artifacts were quarantined, and are fetched again when needed",
        ));
    }
    check_found(&args.what, |word| verified.contains(word))?;
    Ok(Exit::OK)
}

/// The results for the blobs of a share. A blob of several sources is read and counted once.
#[derive(Debug, Default)]
struct BlobVerifier {
    /// Digest -> whether its blob matches.
    sound: HashMap<Sha256Hex, bool>,
    /// Inode -> whether the file matches: names of several sources may be links of one file.
    files: HashMap<u64, bool>,
    /// The total length of all blobs.
    bytes: u64,
}

impl BlobVerifier {
    /// Verifies the blob of a source, and quarantines it when it is corrupt; `None` without a blob.
    fn verify(
        &mut self,
        share: &CacheShare,
        key: &str,
        entry: &IndexEntry,
    ) -> io::Result<Option<bool>> {
        // The lookup detects what changed the stamp; reading the blob detects the rest.
        let sound = match share.lookup(key)? {
            // The blob was quarantined through another source.
            LookupResult::Miss if self.sound.get(&entry.sha256) == Some(&false) => false,
            LookupResult::Miss => return Ok(None),
            LookupResult::Corrupt(_) => false,
            LookupResult::Hit(blob) => {
                let file = self.files.entry(blob.file.metadata()?.ino());
                let sound = *file.or_insert_with(|| {
                    digest::of_file(&blob.file, entry.size).is_ok_and(|found| found == entry.sha256)
                });
                if !sound {
                    share.quarantine(key, entry)?;
                }
                sound
            }
        };
        match self.sound.entry(entry.sha256.clone()) {
            hash_map::Entry::Occupied(mut known) => *known.get_mut() &= sound,
            hash_map::Entry::Vacant(unknown) => {
                unknown.insert(sound);
                self.bytes += entry.size;
            }
        }
        Ok(Some(sound))
    }
}
