//! `key new`: 256 random bits, and the entry of the ACL file that lets them in.

use std::io::Write as _;
use std::path::PathBuf;

use hostkit::{Exit, Failure, stdout};
use serde_json::{Value, json};

use super::edit;
use super::file::KeyFile;
use super::manage::now;
use crate::grant::{Grant, KeyHash, format_expiry};

/// What every key begins with, so that it can be recognised where it should not be.
const PREFIX: &str = "hk_";
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Digits of a key: the fewest that hold 256 bits.
const LENGTH: usize = 43;

/// Flags of `key new`.
#[derive(Debug, Clone, clap::Args)]
pub struct New {
    /// Whose it is: what the server and the logs call it [default: `key-` and the beginning of its hash]
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// What it may do. Repeatable, or with commas
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "read"
    )]
    right: Vec<String>,
    /// A host it may be used for, `*.example.com` for all below it. Repeatable, or with commas [default: all]
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    host: Vec<String>,
    /// The beginning of paths it may be used for. Repeatable, or with commas [default: all]
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    path: Vec<String>,
    /// A method it may be used with. Repeatable, or with commas [default: all]
    #[arg(long, value_name = "METHOD", value_delimiter = ',')]
    method: Vec<String>,
    /// When it ends: 2027-01-31, or 2027-01-31T12:00:00Z [default: never]
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    /// Add the entry to this ACL file, which is made if it is missing
    #[arg(long, alias = "acl-file", value_name = "FILE")]
    into: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(new: &New) -> Result<Exit, Failure> {
    let key = NewKey::generate()?;
    let grant = grant(new, &key.hash)?;
    if let Some(end) = grant.expires.filter(|end| *end <= now()) {
        let what = format!("--expires={}: that is over", format_expiry(end));
        return Err(Failure::new(Exit::USAGE, what).remedy("give a time that is to come"));
    }
    let entry = entry(&key.hash, &grant);
    if let Some(path) = &new.into {
        let file = KeyFile::open(path, true)?;
        let added = edit::append(&file.text, &file.entries, &yaml(&entry));
        let mut keys = file.keys();
        keys.push((key.hash, grant.clone()));
        file.replace(added.into_iter().collect(), &keys)?;
    }
    key.show(&grant.id)?;
    match (new.json, &new.into) {
        (true, _) => stdout::print_json(&json!({ "entry": entry }))?,
        (false, None) => stdout::print_text(&yaml(&entry))?,
        (false, Some(path)) => {
            let short = key.hash.short();
            stdout::print_line(format!("added {} {short} to {}", grant.id, path.display()))?;
        }
    }
    Ok(Exit::OK)
}

fn grant(new: &New, hash: &KeyHash) -> Result<Grant, Failure> {
    let id = match &new.id {
        Some(id) => id.clone(),
        None => format!("key-{}", hash.short()),
    };
    let said = json!({
        "id": id,
        "rights": new.right,
        "hosts": new.host,
        "paths": new.path,
        "methods": new.method,
        "expires": new.expires,
    });
    serde_json::from_value(said).map_err(|error| Failure::new(Exit::USAGE, error.to_string()))
}

/// An entry of an ACL file.
pub(super) fn entry(hash: &KeyHash, grant: &Grant) -> Value {
    let mut entry = serde_json::to_value(grant).unwrap_or_default();
    entry["sha256"] = hash.to_string().into();
    entry
}

/// The members in the order of the page that describes them. Values as in JSON, which is YAML.
pub(super) fn yaml(entry: &Value) -> String {
    let mut text = String::new();
    for name in [
        "id", "sha256", "rights", "hosts", "paths", "methods", "expires",
    ] {
        if let Some(value) = entry.get(name) {
            let start = if text.is_empty() { "- " } else { "  " };
            text.push_str(&format!("{start}{name}: {value}\n"));
        }
    }
    text
}

/// A key that nothing has seen yet.
pub(super) struct NewKey {
    text: String,
    pub(super) hash: KeyHash,
}

impl NewKey {
    /// A new key. Every digit is as likely as every other.
    pub(super) fn generate() -> Result<Self, Failure> {
        let random = rustls::crypto::ring::default_provider().secure_random;
        let mut text = PREFIX.to_owned();
        while text.len() < PREFIX.len() + LENGTH {
            let mut bytes = [0; 64];
            random
                .fill(&mut bytes)
                .map_err(|_| Failure::new(Exit::FAILED, "the system has no randomness"))?;
            // 248 is the largest multiple of 62 in a byte; the rest would make the first digits likelier.
            let fair = bytes.iter().filter(|byte| **byte < 248);
            let wanted = PREFIX.len() + LENGTH - text.len();
            text.extend(
                fair.take(wanted)
                    .map(|byte| DIGITS[usize::from(byte % 62)] as char),
            );
        }
        let hash = KeyHash::of(text.as_bytes());
        Ok(Self { text, hash })
    }

    /// Shows it, on stderr alone: stdout ends in files.
    pub(super) fn show(&self, id: &str) -> Result<(), Failure> {
        let text = format!("The key of {id}, shown only now:\n{}\n", self.text);
        let shown = std::io::stderr().write_all(text.as_bytes());
        shown.map_err(|error| {
            // Not by its id: that would remove the keys before it as well.
            let remedy = format!(
                "where an entry of it was added, remove that with `authproxy key revoke {}`, and make another one",
                self.hash.short()
            );
            Failure::new(Exit::IO, format!("cannot show the key of {id}"))
                .remedy(remedy)
                .because(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_differ_and_use_all_digits() {
        let keys: HashSet<String> = (0..500).map(|_| NewKey::generate().unwrap().text).collect();
        assert_eq!(keys.len(), 500);
        let mut digits = HashSet::new();
        for key in &keys {
            let random = key.strip_prefix(PREFIX).unwrap();
            assert_eq!(random.len(), LENGTH);
            digits.extend(random.bytes());
        }
        assert_eq!(digits, DIGITS.iter().copied().collect());
    }
}
