//! `key new`: generates a key of 256 random bits and its ACL entry.

use std::io::Write as _;
use std::path::PathBuf;

use hostkit::{Exit, Failure, stdout};
use serde_json::{Value, json};

use super::editor::AclFileEditor;
use super::line_edit;
use super::maintenance::now;
use crate::grant::{Grant, KeyHash, format_expiry};

/// Secret scanners recognise keys by their prefix.
const PREFIX: &str = "hk_";
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// The fewest digits that hold 256 bits.
const LENGTH: usize = 43;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct KeyNewArgs {
    /// Owner of the key, sent to the upstream as X-Auth-Id and logged [default: key- and 8 digits of its hash]
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Rights of the key; repeatable or comma-separated
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "read"
    )]
    right: Vec<String>,
    /// Allowed hosts, `*.example.com` for all its subdomains; repeatable or comma-separated [default: all]
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    host: Vec<String>,
    /// Allowed path prefixes; repeatable or comma-separated [default: all]
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    path: Vec<String>,
    /// Allowed methods; repeatable or comma-separated [default: all]
    #[arg(long, value_name = "METHOD", value_delimiter = ',')]
    method: Vec<String>,
    /// Expiry, as 2027-01-31 or 2027-01-31T12:00:00Z [default: never]
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    /// Add the entry to this ACL file, which is created if it is missing
    #[arg(long, alias = "acl-file", value_name = "FILE")]
    into: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &KeyNewArgs) -> Result<Exit, Failure> {
    let key = NewKey::generate()?;
    let grant = build_grant(args, &key.hash)?;
    if let Some(end) = grant.expires.filter(|end| *end <= now()) {
        let message = format!(
            "invalid --expires={}: it is in the past",
            format_expiry(end)
        );
        return Err(Failure::new(Exit::USAGE, message).remedy("give a time in the future"));
    }
    let entry = to_entry(&key.hash, &grant);
    if let Some(path) = &args.into {
        let editor = AclFileEditor::open(path, true)?;
        let edit = line_edit::append(&editor.text, &editor.entries, &to_yaml(&entry));
        let mut keys = editor.keys();
        keys.push((key.hash, grant.clone()));
        editor.replace(edit.into_iter().collect(), &keys)?;
    }
    key.show(&grant.id)?;
    match (args.json, &args.into) {
        (true, _) => stdout::print_json(&json!({ "entry": entry }))?,
        (false, None) => stdout::print_text(&to_yaml(&entry))?,
        (false, Some(path)) => {
            let short = key.hash.short();
            stdout::print_line(format!("added {} {short} to {}", grant.id, path.display()))?;
        }
    }
    Ok(Exit::OK)
}

fn build_grant(args: &KeyNewArgs, hash: &KeyHash) -> Result<Grant, Failure> {
    let id = match &args.id {
        Some(id) => id.clone(),
        None => format!("key-{}", hash.short()),
    };
    let grant = json!({
        "id": id,
        "rights": args.right,
        "hosts": args.host,
        "paths": args.path,
        "methods": args.method,
        "expires": args.expires,
    });
    serde_json::from_value(grant).map_err(|error| Failure::new(Exit::USAGE, error.to_string()))
}

/// An entry of an ACL file.
pub(super) fn to_entry(hash: &KeyHash, grant: &Grant) -> Value {
    let mut entry = serde_json::to_value(grant).unwrap_or_default();
    entry["sha256"] = hash.to_string().into();
    entry
}

/// The members in the order of the README; JSON values are valid YAML.
pub(super) fn to_yaml(entry: &Value) -> String {
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

pub(super) struct NewKey {
    text: String,
    pub(super) hash: KeyHash,
}

impl NewKey {
    pub(super) fn generate() -> Result<Self, Failure> {
        let random = rustls::crypto::ring::default_provider().secure_random;
        let mut text = PREFIX.to_owned();
        while text.len() < PREFIX.len() + LENGTH {
            let mut bytes = [0; 64];
            random.fill(&mut bytes).map_err(|_| {
                Failure::new(
                    Exit::FAILED,
                    "cannot generate a key: the system returned no random bytes",
                )
            })?;
            // 248 is the largest multiple of 62 in a byte: larger bytes would make the first digits more likely.
            let uniform = bytes.iter().filter(|byte| **byte < 248);
            let missing = PREFIX.len() + LENGTH - text.len();
            text.extend(
                uniform
                    .take(missing)
                    .map(|byte| DIGITS[usize::from(byte % 62)] as char),
            );
        }
        let hash = KeyHash::of(text.as_bytes());
        Ok(Self { text, hash })
    }

    /// Shows the key on stderr, because stdout is often redirected to a file.
    pub(super) fn show(&self, id: &str) -> Result<(), Failure> {
        let text = format!("Key of {id} (shown only once):\n{}\n", self.text);
        let shown = std::io::stderr().write_all(text.as_bytes());
        shown.map_err(|error| {
            // Not by its id, which would revoke the other keys of the id, too.
            let remedy = format!(
                "if its entry was added to a file, remove it with `authproxy key revoke {}`, and create another key",
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
    fn generated_keys_are_unique_and_use_all_digits() {
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
