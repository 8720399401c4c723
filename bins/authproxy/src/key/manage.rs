//! `key list`, `key revoke`, `key rotate`: the keys of an ACL file.

use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use hostkit::{Exit, Failure, clock, stdout, units};
use serde_json::{Value, json};

use super::edit;
use super::file::KeyFile;
use super::make::{self, NewKey};
use crate::grant::{Grant, MAX_EXPIRY, format_expiry};
use crate::permissions::file::{self, AclEntry};

/// Flags of `key list`.
#[derive(Debug, Clone, clap::Args)]
pub struct List {
    /// The ACL file
    #[arg(long, alias = "into", value_name = "FILE")]
    acl_file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Flags of `key revoke`.
#[derive(Debug, Clone, clap::Args)]
pub struct Revoke {
    /// The id whose keys are removed, or the first 8 or more digits of the SHA-256 of one key
    id: String,
    /// The ACL file
    #[arg(long, alias = "into", value_name = "FILE")]
    acl_file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Flags of `key rotate`.
#[derive(Debug, Clone, clap::Args)]
pub struct Rotate {
    /// The id that gets a new key, or the first 8 or more digits of the SHA-256 of the key that is replaced
    id: String,
    /// The ACL file
    #[arg(long, alias = "into", value_name = "FILE")]
    acl_file: PathBuf,
    /// How long the keys of today stay good
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, default_value = "24h")]
    keep: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn list(list: &List) -> Result<Exit, Failure> {
    let entries = file::read_entries(&list.acl_file, &file::read_text(&list.acl_file)?)?;
    match list.json {
        true => stdout::print_json(&entries_json(&entries))?,
        false => stdout::print_text(&render_table(&entries))?,
    }
    Ok(Exit::OK)
}

pub(super) fn revoke(revoke: &Revoke) -> Result<Exit, Failure> {
    let file = KeyFile::open(&revoke.acl_file, false)?;
    let which = find(&file, &revoke.id, &revoke.acl_file)?;
    let edits = edit::remove(&file.text, &file.entries, &which);
    let mut keys = file.keys();
    let revoked: Vec<AclEntry> = which.iter().map(|at| file.entries[*at].clone()).collect();
    for at in which.iter().rev() {
        keys.remove(*at);
    }
    file.replace(edits.unwrap_or_default(), &keys)?;
    match revoke.json {
        true => stdout::print_json(&json!({ "revoked": entries_json(&revoked) }))?,
        false => {
            for entry in &revoked {
                stdout::print_line(format!("revoked {} {}", entry.grant.id, entry.key.short()))?;
            }
        }
    }
    Ok(Exit::OK)
}

pub(super) fn rotate(rotate: &Rotate) -> Result<Exit, Failure> {
    let file = KeyFile::open(&rotate.acl_file, false)?;
    let which = find(&file, &rotate.id, &rotate.acl_file)?;
    let now = now();
    let end = now.saturating_add(rotate.keep.as_secs()).min(MAX_EXPIRY);
    let expires = |grant: &Grant| grant.expires.unwrap_or(u64::MAX);
    let newest = which
        .iter()
        .copied()
        .max_by_key(|at| expires(&file.entries[*at].grant));
    let Some(newest) = newest.filter(|at| expires(&file.entries[*at].grant) > now) else {
        return Err(Failure::new(
            Exit::NOT_FOUND,
            format!("every key of {} has expired", rotate.id),
        )
        .remedy("make one with `authproxy key new --into`"));
    };
    let key = NewKey::generate()?;
    let grant = file.entries[newest].grant.clone();
    let mut keys = file.keys();
    let mut edits = Vec::new();
    for at in which.iter().copied() {
        let old = &file.entries[at];
        if expires(&old.grant) > end {
            keys[at].1.expires = Some(end);
            let new = make::yaml(&make::entry(&old.key, &keys[at].1));
            edits.extend(edit::set_expiry(&file.text, old, &format_expiry(end), &new));
        }
    }
    let entry = make::entry(&key.hash, &grant);
    edits.extend(edit::insert_after(
        &file.text,
        &file.entries[newest],
        &make::yaml(&entry),
    ));
    keys.insert(newest + 1, (key.hash, grant.clone()));
    file.replace(edits, &keys)?;
    key.show(&grant.id)?;
    match rotate.json {
        true => stdout::print_json(&json!({ "entry": entry, "keep_until": format_expiry(end) }))?,
        false => {
            let (id, short) = (&grant.id, key.hash.short());
            stdout::print_line(format!(
                "added {id} {short}; its keys before are good until {}",
                format_expiry(end)
            ))?;
        }
    }
    Ok(Exit::OK)
}

/// The entries of an id; if it has none, that whose hash begins so.
fn find(file: &KeyFile, id: &str, path: &Path) -> Result<Vec<usize>, Failure> {
    let those = |is: &dyn Fn(&AclEntry) -> bool| -> Vec<usize> {
        let entries = file.entries.iter().enumerate();
        entries
            .filter(|(_, entry)| is(entry))
            .map(|(at, _)| at)
            .collect()
    };
    let mut found = those(&|entry| entry.grant.id == id);
    if found.is_empty() && id.len() >= 8 {
        found = those(&|entry| entry.key.to_string().starts_with(id));
    }
    match found.is_empty() {
        // What was given may be a key: it is not repeated.
        true => Err(Failure::new(
            Exit::NOT_FOUND,
            format!("no key in {} has this id", path.display()),
        )
        .remedy("`authproxy key list` shows those that there are")),
        false => Ok(found),
    }
}

fn entries_json(entries: &[AclEntry]) -> Value {
    let entries = entries.iter();
    entries
        .map(|entry| make::entry(&entry.key, &entry.grant))
        .collect()
}

/// A line for each key, in columns.
fn render_table(entries: &[AclEntry]) -> String {
    let now = now();
    let row = |entry: &AclEntry| {
        let Grant {
            id,
            rights,
            hosts,
            paths,
            methods,
            expires,
        } = &entry.grant;
        let only = [("hosts", hosts), ("paths", paths), ("methods", methods)];
        let only = only.iter().filter(|(_, values)| !values.is_empty());
        let only: Vec<String> = only
            .map(|(name, values)| format!("{name}={}", values.join(",")))
            .collect();
        let expires = match expires {
            Some(end) if *end <= now => format!("{} (over)", format_expiry(*end)),
            Some(end) => format_expiry(*end),
            None => "never".to_owned(),
        };
        let only = stdout::replace_unprintable(&only.join(" "));
        [
            id.clone(),
            entry.key.short(),
            rights.join(","),
            expires,
            only,
        ]
    };
    let head = ["ID", "SHA256", "RIGHTS", "EXPIRES", "ONLY"].map(str::to_owned);
    let rows: Vec<[String; 5]> = std::iter::once(head)
        .chain(entries.iter().map(row))
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3, 4].map(width);
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(widths);
            let cells: Vec<String> = cells
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            format!("{}\n", cells.join("  ").trim_end())
        })
        .collect()
}

/// Seconds since 1970 UTC.
pub(super) fn now() -> u64 {
    clock::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs())
}
