//! `s3cache verify`: reads blobs again and compares their digest; what differs is put aside.

use std::collections::{HashMap, HashSet, hash_map};
use std::io;
use std::os::unix::fs::MetadataExt as _;

use hostkit::units::format_size;
use hostkit::{Exit, Failure, stdout};
use serde_json::json;

use super::{check_found, check_words, counted, disk, names_of, own_shares};
use crate::cache::{CacheShare, IndexEntry, LookupResult};
use crate::digest::{self, Sha256Hex};
use crate::settings::Settings;

/// Flags of `s3cache verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// Only these: a source, a file name, the first 8 or more digits of a digest, or the path of a cached artifact
    #[arg(value_name = "WHAT")]
    what: Vec<String>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

/// Verifies the caller's blobs; as root, everybody's.
///
/// # Errors
/// A blob was corrupt (exit 65) or cannot be read (exit 74), or nothing is cached of what is named (exit 66).
pub(crate) fn run(args: &VerifyArgs, settings: &Settings) -> Result<Exit, Failure> {
    check_words(&args.what, settings)?;
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
            let Some(sound) = sound.map_err(|error| disk(&share, error))? else {
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
                counted(bad, "cached artifact was", "cached artifacts were")
            ),
        )
        .remedy("what is corrupt was put aside and is fetched again when needed; check the disk"));
    }
    check_found(&args.what, |word| verified.contains(word))?;
    Ok(Exit::OK)
}

/// The blobs of a share as far as they are verified. Many sources may lead to one, which is read and counted once.
#[derive(Debug, Default)]
struct BlobVerifier {
    /// Whether each is what its digest says.
    sound: HashMap<Sha256Hex, bool>,
    /// The same of each file, by its inode: what has the names of several sources is one file, or was.
    files: HashMap<u64, bool>,
    /// The length of all of them.
    bytes: u64,
}

impl BlobVerifier {
    /// Verifies the blob of a source, and puts it aside when it is corrupt; `None` when there is none.
    fn verify(
        &mut self,
        share: &CacheShare,
        key: &str,
        entry: &IndexEntry,
    ) -> io::Result<Option<bool>> {
        // Looking it up mends or puts aside what its stamp gives away; reading it finds the rest.
        let sound = match share.lookup(key)? {
            // Another source of it was met before, and it was put aside.
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
