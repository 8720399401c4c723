//! `s3cache rm`: removes artifacts from the cache. What is in use stays.

use hostkit::{Exit, Failure, out};

use super::{check_words, disk, entries, matches, own_shares};
use crate::cache::evict::{Act, remove_blob};
use crate::cache::in_use::InUse;
use crate::cache::space;
use crate::settings::Settings;

/// Flags of `s3cache rm`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to remove: a source, a file name, or the beginning of a digest
    #[arg(value_name = "WHAT", required = true)]
    what: Vec<String>,
}

/// Removes artifacts of the caller; as root, of everybody.
///
/// # Errors
/// One is not there (exit 66) or in use (exit 75).
pub fn run(args: &Args, settings: &Settings) -> Result<Exit, Failure> {
    check_words(&args.what, settings)?;
    let (shares, in_use) = (own_shares(settings)?, InUse::default());
    for word in &args.what {
        let mut found = false;
        for share in &shares {
            for (key, entry) in entries(share) {
                if !matches(&entry, &key, word, settings) {
                    continue;
                }
                found = true;
                // An entry without a blob is only forgotten.
                match remove_blob(share, &entry.sha256, &in_use, Act::Remove) {
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
                out::line(format_args!("removed {}", entry.source))?;
            }
        }
        if !found {
            return Err(Failure::new(
                Exit::NOT_FOUND,
                format!("{} is not in the cache", hostkit::mask::url(word)),
            )
            .remedy("`s3cache ls` lists what is"));
        }
    }
    Ok(Exit::OK)
}
