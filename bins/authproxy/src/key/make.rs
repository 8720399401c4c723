//! `key new`: 256 random bits, and the entry of the ACL file that lets them in.

use hostkit::{Exit, Failure, out};
use serde_json::{Value, json};

use crate::grant::{Grant, KeyHash};

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
        default_value = "all"
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
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(new: &New) -> Result<Exit, Failure> {
    let key = key()?;
    let hash = KeyHash::of(key.as_bytes());
    let grant = grant(new, &hash)?;
    let mut entry = serde_json::to_value(&grant).unwrap_or_default();
    entry["sha256"] = hash.to_string().into();
    if new.json {
        out::json(&json!({ "key": key, "entry": entry }))?;
    } else {
        out::text(&format!(
            "{key}\n\n# Above: the key, shown this once. Below: its entry among the `keys` of the ACL file.\n{}",
            yaml(&entry)
        ))?;
    }
    Ok(Exit::OK)
}

fn grant(new: &New, hash: &KeyHash) -> Result<Grant, Failure> {
    let id = match &new.id {
        Some(id) => id.clone(),
        None => format!("key-{}", &hash.to_string()[..8]),
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

/// The members in the order of the page that describes them. Values as in JSON, which is YAML.
fn yaml(entry: &Value) -> String {
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

/// A new key. Every digit is as likely as every other.
fn key() -> Result<String, Failure> {
    let random = rustls::crypto::ring::default_provider().secure_random;
    let mut key = PREFIX.to_owned();
    while key.len() < PREFIX.len() + LENGTH {
        let mut bytes = [0; 64];
        random
            .fill(&mut bytes)
            .map_err(|_| Failure::new(Exit::FAILED, "the system has no randomness"))?;
        // 248 is the largest multiple of 62 in a byte; the rest would make the first digits likelier.
        let fair = bytes.iter().filter(|byte| **byte < 248);
        let wanted = PREFIX.len() + LENGTH - key.len();
        key.extend(
            fair.take(wanted)
                .map(|byte| DIGITS[usize::from(byte % 62)] as char),
        );
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_differ_and_use_all_digits() {
        let keys: HashSet<String> = (0..500).map(|_| key().unwrap()).collect();
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
