//! `authproxy key`: creates, lists, rotates, revokes, hashes and checks API keys.
//!
//! A key is shown once, when it is created; everywhere else there is only its hash.

mod check;
mod creation;
mod editor;
mod input;
mod line_edit;
mod maintenance;

use hostkit::{Exit, Failure, stdout};
use serde_json::json;

use crate::grant::KeyHash;

pub(crate) use check::KeyCheckArgs;
pub(crate) use creation::KeyNewArgs;
pub(crate) use maintenance::{KeyListArgs, KeyRevokeArgs, KeyRotateArgs};

/// Create, list, rotate, revoke, hash and check API keys.
#[derive(Debug, Clone, clap::Subcommand)]
pub(crate) enum KeyVerb {
    /// Create a key and print its ACL entry, or add it to a file; the key itself is shown once, on stderr
    New(KeyNewArgs),
    /// List the keys of an ACL file
    List(KeyListArgs),
    /// Remove the keys of an id from an ACL file
    Revoke(KeyRevokeArgs),
    /// Add a new key for an id to an ACL file, and let its current keys expire after --keep
    Rotate(KeyRotateArgs),
    /// Print the SHA-256 of a key, which is read from the prompt or from stdin
    Hash(KeyHashArgs),
    /// Check what a key allows: exit 0 if the request is allowed, 77 if it is denied
    Check(Box<KeyCheckArgs>),
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct KeyHashArgs {
    /// Rejected: shell history and process list would show the key
    #[arg(hide = true)]
    key: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// # Errors
/// The key is missing or a flag is invalid (exit 2); no key has the id (exit 66); the permissions backend is unavailable
/// (exit 69); the ACL file cannot be written (exit 73), is locked by another edit (exit 75), is managed by Puppet (exit
/// 77), or is invalid (exit 78).
pub(crate) fn run(verb: KeyVerb) -> Result<Exit, Failure> {
    match verb {
        KeyVerb::New(args) => creation::run(&args),
        KeyVerb::List(args) => maintenance::list(&args),
        KeyVerb::Revoke(args) => maintenance::revoke(&args),
        KeyVerb::Rotate(args) => maintenance::rotate(&args),
        KeyVerb::Hash(args) => {
            let key = input::read_key(args.key.as_deref())?;
            print_hash(&KeyHash::of(&key), args.json)
        }
        KeyVerb::Check(args) => {
            let key = input::read_key(args.key.as_deref())?;
            check::run(&args, KeyHash::of(&key))
        }
    }
}

fn print_hash(hash: &KeyHash, json: bool) -> Result<Exit, Failure> {
    match json {
        true => stdout::print_json(&json!({ "sha256": hash.to_string() }))?,
        false => stdout::print_line(hash)?,
    }
    Ok(Exit::OK)
}
