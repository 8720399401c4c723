//! `s3cache gc`: removes garbage and what is over the bounds. As root it keeps the total of all users.

use hostkit::dir::Dir;
use hostkit::units::{duration, show_size};
use hostkit::{Exit, Failure, clock, out};
use nix::sys::statvfs::fstatvfs;
use serde_json::json;

use super::{disk, own_shares};
use crate::cache::gc::{Freed, by_age, pex_root_bytes, prune_pex_root, sweep};
use crate::cache::{Share, space};
use crate::settings::{FetchArgs, Settings};

/// Flags of `s3cache gc`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also remove what was not used for so long
    #[arg(long, value_name = "DUR", value_parser = duration)]
    max_age: Option<std::time::Duration>,
    /// Print one JSON object per user
    #[arg(long)]
    json: bool,
}

/// Collects garbage.
///
/// # Errors
/// The disk fails (exit 74).
pub fn run(args: &Args, settings: &Settings, flags: &FetchArgs) -> Result<Exit, Failure> {
    let shares = own_shares(settings)?;
    let mut freed: Vec<Freed> = Vec::new();
    for share in &shares {
        freed.push(sweep(share).map_err(|error| disk(share, error))?);
    }
    let total = |shares: &[Share]| -> Result<u64, Failure> {
        shares.iter().try_fold(0, |sum, share| {
            let held = space::recount(share).map_err(|error| disk(share, error))?;
            Ok(sum + held + pex_root_bytes(share))
        })
    };
    // As root the bound is for everybody together, and only one that was asked for.
    let me = nix::unistd::geteuid();
    let max = if me.is_root() {
        flags.max_size.unwrap_or(u64::MAX)
    } else {
        settings.max_size
    };
    let free = || free_bytes(settings);
    let over =
        |held: u64| -> Result<bool, Failure> { Ok(held > max || free()? < settings.keep_free) };
    let mut held = total(&shares)?;
    // Unpacked pexes come back without the network, so they go first.
    for (share, freed) in shares.iter().zip(&mut freed) {
        if over(held)? {
            let bytes = pex_root_bytes(share);
            freed.pex_root =
                bytes > 0 && prune_pex_root(share).map_err(|error| disk(share, error))?;
            if freed.pex_root {
                freed.bytes += bytes;
                held = held.saturating_sub(bytes);
            }
        }
    }
    let all: Vec<&Share> = shares.iter().collect();
    for candidate in by_age(&all).map_err(|error| disk(all[0], error))? {
        let unused = clock::now()
            .duration_since(candidate.blob.used)
            .unwrap_or_default();
        if !over(held)? && args.max_age.is_none_or(|max| unused <= max) {
            continue;
        }
        let removed = match space::remove_blob(candidate.share, &candidate.blob.sha256) {
            // A fetch that needed room was faster.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
            other => other.map_err(|error| disk(candidate.share, error))?,
        };
        if removed {
            held = held.saturating_sub(candidate.blob.size);
            if let Some(at) = shares
                .iter()
                .position(|share| share.uid == candidate.share.uid)
            {
                freed[at].blobs += 1;
                freed[at].bytes += candidate.blob.size;
            }
        }
    }
    for (share, freed) in shares.iter().zip(&mut freed) {
        freed.entries += sweep(share).map_err(|error| disk(share, error))?.entries;
        let held = space::recount(share).map_err(|error| disk(share, error))?;
        if args.json {
            out::json(
                &json!({"uid": share.uid, "blobs": freed.blobs, "bytes": freed.bytes, "entries": freed.entries,
                "pex_root": freed.pex_root, "held": held}),
            )?;
        } else {
            let (bytes, held) = (show_size(freed.bytes), show_size(held));
            out::line(format_args!(
                "uid {}: freed {bytes} ({} artifacts), {held} held",
                share.uid, freed.blobs
            ))?;
        }
    }
    Ok(Exit::OK)
}

fn free_bytes(settings: &Settings) -> Result<u64, Failure> {
    let path = &settings.cache_dir;
    let unreadable = |error: std::io::Error| {
        Failure::new(Exit::IO, format!("cannot read {}", path.display())).because(error)
    };
    let found = Dir::open(path)
        .and_then(|dir| Ok(fstatvfs(&dir)?))
        .map_err(unreadable)?;
    Ok(found.blocks_available() * found.fragment_size())
}
