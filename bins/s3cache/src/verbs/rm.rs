//! `s3cache rm`: removes artifacts from the cache. What is in use stays.

use hostkit::{Exit, Failure, stdout};

use super::{check_found, check_words, disk, matches, own_shares};
use crate::cache::eviction::{EvictionMode, remove_blob};
use crate::cache::process_references::ProcessReferences;
use crate::cache::space;
use crate::settings::Settings;

/// Flags of `s3cache rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct RmArgs {
    /// What to remove: a source, a file name, the first 8 or more digits of a digest, or the path of a cached
    /// artifact
    #[arg(value_name = "WHAT", required = true)]
    what: Vec<String>,
}

/// Removes artifacts of the caller; as root, of everybody.
///
/// # Errors
/// One is not there (exit 66) or in use (exit 75).
pub(crate) fn run(args: &RmArgs, settings: &Settings) -> Result<Exit, Failure> {
    check_words(&args.what, settings)?;
    let (shares, in_use) = (own_shares(settings)?, ProcessReferences::default());
    for word in &args.what {
        let mut found = false;
        for share in &shares {
            for found_entry in share.index_entries() {
                if !matches(share, &found_entry, word, settings) {
                    continue;
                }
                found = true;
                let (key, entry) = found_entry;
                // An entry without a blob is only forgotten.
                match remove_blob(share, &entry.sha256, &in_use, EvictionMode::Remove) {
                    Ok(true) => {
                        space::release(share, entry.size).map_err(|error| disk(share, error))?
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => return Err(disk(share, error)),
                    Ok(false) => {
                        return Err(Failure::new(
                            Exit::TRY_AGAIN,
                            format!("{} is in use", entry.source),
                        )
                        .remedy("`s3cache ls` shows by which process"));
                    }
                }
                share.forget(&key).map_err(|error| disk(share, error))?;
                stdout::print_line(format_args!("removed {}", entry.source))?;
            }
        }
        check_found(std::slice::from_ref(word), |_| found)?;
    }
    Ok(Exit::OK)
}
