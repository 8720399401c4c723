//! `authproxy key`: keys, for people. A key is shown once, when it is made; everywhere else there is only its hash.
//!
//! Owns the verbs and what they print. What a key may do is `scope`'s; who knows it is `permissions`'s.

mod check;
mod edit;
mod file;
mod make;
mod manage;
mod typed;

use hostkit::{Exit, Failure, stdout};
use serde_json::json;

use crate::grant::KeyHash;

pub use check::Check;
pub use make::New;
pub use manage::{List, Revoke, Rotate};

/// Make, list, replace, revoke, hash or check API keys.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum KeyVerb {
    /// Make a key: print its entry for the ACL file, or add it to one; the key itself is shown once, on stderr
    New(New),
    /// List the keys of an ACL file
    List(List),
    /// Remove the keys of an id from an ACL file
    Revoke(Revoke),
    /// Give an id a new key in an ACL file, and its keys of today an end
    Rotate(Rotate),
    /// Print the SHA-256 of a key that is typed or read from stdin
    Hash(Hash),
    /// Say what a key that is typed or read from stdin may do: exit 0 if it passes, 77 if not
    Check(Box<Check>),
}

/// Flags of `key hash`.
#[derive(Debug, Clone, clap::Args)]
pub struct Hash {
    /// Refused: it would stay in the shell's history, and everybody on this host could see it
    #[arg(hide = true)]
    key: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Does what a verb says.
///
/// # Errors
/// What failed: no key was typed, or a flag makes no sense (exit 2); no key has the id (exit 66); no permissions engine
/// can be asked (exit 69); the ACL file cannot be written (exit 73), is being edited by another process (exit 75), may
/// not be edited (exit 77), or is wrong (exit 78).
pub fn run(verb: KeyVerb) -> Result<Exit, Failure> {
    match verb {
        KeyVerb::New(new) => make::run(&new),
        KeyVerb::List(list) => manage::list(&list),
        KeyVerb::Revoke(revoke) => manage::revoke(&revoke),
        KeyVerb::Rotate(rotate) => manage::rotate(&rotate),
        KeyVerb::Hash(hash) => {
            let key = typed::key(hash.key.as_deref())?;
            print_hash(&KeyHash::of(&key), hash.json)
        }
        KeyVerb::Check(check) => {
            let key = typed::key(check.key.as_deref())?;
            check::run(&check, KeyHash::of(&key))
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
