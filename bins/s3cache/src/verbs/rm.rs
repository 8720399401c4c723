//! `s3cache rm`: removes artifacts from the cache, except those in use.

use hostkit::{Exit, Failure, stdout};

use super::{check_found, check_sources, io_failure, names_entry, own_shares};
use crate::cache::eviction::{EvictionMode, remove_blob};
use crate::cache::process_references::ProcessReferences;
use crate::cache::space;
use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(crate) struct RmArgs {
    /// What to remove: a source, a file name, at least 8 digits of a digest, or the path of a cached artifact
    #[arg(value_name = "WHAT", required = true)]
    what: Vec<String>,
}

/// Removes artifacts of the caller; as root, of every user.
///
/// # Errors
/// One does not exist (exit 66) or is in use (exit 75).
pub(crate) fn run(args: &RmArgs, settings: &Settings) -> Result<Exit, Failure> {
    check_sources(&args.what, settings)?;
    let (shares, in_use) = (own_shares(settings)?, ProcessReferences::default());
    for word in &args.what {
        let mut found = false;
        for share in &shares {
            for found_entry in share.index_entries() {
                if !names_entry(share, &found_entry, word, settings) {
                    continue;
                }
                found = true;
                let (key, entry) = found_entry;
                // Without a blob, only the entry is removed.
                match remove_blob(share, &entry.sha256, &in_use, EvictionMode::Remove) {
                    Ok(true) => space::release(share, entry.size)
                        .map_err(|error| io_failure(share, error))?,
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => return Err(io_failure(share, error)),
                    Ok(false) => {
                        return Err(Failure::new(
                            Exit::TRY_AGAIN,
                            format!("{} is in use", entry.source),
                        )
                        .remedy("`s3cache ls` shows the processes"));
                    }
                }
                share
                    .remove_entry(&key)
                    .map_err(|error| io_failure(share, error))?;
                stdout::print_line(format_args!("removed {}", entry.source))?;
            }
        }
        check_found(std::slice::from_ref(word), |_| found)?;
    }
    Ok(Exit::OK)
}
