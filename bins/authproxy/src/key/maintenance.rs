//! `key list`, `key revoke`, `key rotate`: the keys of an ACL file.

use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use hostkit::{Exit, Failure, clock, stdout, units};
use serde_json::{Value, json};

use super::creation::{NewKey, to_entry, to_yaml};
use super::editor::AclFileEditor;
use super::line_edit;
use crate::grant::{Grant, MAX_EXPIRY, format_expiry};
use crate::permissions::file::{self, AclEntry};

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct KeyListArgs {
    /// The ACL file
    #[arg(long, alias = "into", value_name = "FILE")]
    acl_file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct KeyRevokeArgs {
    /// Id whose keys are removed, or at least 8 leading digits of the SHA-256 of one key
    id: String,
    /// The ACL file
    #[arg(long, alias = "into", value_name = "FILE")]
    acl_file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct KeyRotateArgs {
    /// Id that gets a new key, or at least 8 leading digits of the SHA-256 of the key to replace
    id: String,
    /// The ACL file
    #[arg(long, alias = "into", value_name = "FILE")]
    acl_file: PathBuf,
    /// Time until the current keys expire
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, default_value = "24h")]
    keep: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn list(args: &KeyListArgs) -> Result<Exit, Failure> {
    let entries = file::read_entries(&args.acl_file, &file::read_text(&args.acl_file)?)?;
    match args.json {
        true => stdout::print_json(&entries_json(&entries))?,
        false => stdout::print_text(&render_table(&entries))?,
    }
    Ok(Exit::OK)
}

pub(super) fn revoke(args: &KeyRevokeArgs) -> Result<Exit, Failure> {
    let editor = AclFileEditor::open(&args.acl_file, false)?;
    let matches = find_entries(&editor, &args.id, &args.acl_file)?;
    let edits = line_edit::remove(&editor.text, &editor.entries, &matches);
    let mut keys = editor.keys();
    let revoked: Vec<AclEntry> = matches
        .iter()
        .map(|at| editor.entries[*at].clone())
        .collect();
    for at in matches.iter().rev() {
        keys.remove(*at);
    }
    editor.replace(edits.unwrap_or_default(), &keys)?;
    match args.json {
        true => stdout::print_json(&json!({ "revoked": entries_json(&revoked) }))?,
        false => {
            for entry in &revoked {
                stdout::print_line(format!("revoked {} {}", entry.grant.id, entry.key.short()))?;
            }
        }
    }
    Ok(Exit::OK)
}

pub(super) fn rotate(args: &KeyRotateArgs) -> Result<Exit, Failure> {
    let editor = AclFileEditor::open(&args.acl_file, false)?;
    let matches = find_entries(&editor, &args.id, &args.acl_file)?;
    let now = now();
    let end = now.saturating_add(args.keep.as_secs()).min(MAX_EXPIRY);
    let expires = |grant: &Grant| grant.expires.unwrap_or(u64::MAX);
    let newest = matches
        .iter()
        .copied()
        .max_by_key(|at| expires(&editor.entries[*at].grant));
    let Some(newest) = newest.filter(|at| expires(&editor.entries[*at].grant) > now) else {
        return Err(Failure::new(
            Exit::NOT_FOUND,
            format!("every key of {} has expired", args.id),
        )
        .remedy("create one with `authproxy key new --into FILE`"));
    };
    let key = NewKey::generate()?;
    let grant = editor.entries[newest].grant.clone();
    let mut keys = editor.keys();
    let mut edits = Vec::new();
    for at in matches.iter().copied() {
        let old = &editor.entries[at];
        if expires(&old.grant) > end {
            keys[at].1.expires = Some(end);
            let new = to_yaml(&to_entry(&old.key, &keys[at].1));
            edits.extend(line_edit::set_expiry(
                &editor.text,
                old,
                &format_expiry(end),
                &new,
            ));
        }
    }
    let entry = to_entry(&key.hash, &grant);
    edits.extend(line_edit::insert_after(
        &editor.text,
        &editor.entries[newest],
        &to_yaml(&entry),
    ));
    keys.insert(newest + 1, (key.hash, grant.clone()));
    editor.replace(edits, &keys)?;
    key.show(&grant.id)?;
    match args.json {
        true => stdout::print_json(&json!({ "entry": entry, "keep_until": format_expiry(end) }))?,
        false => {
            let (id, short) = (&grant.id, key.hash.short());
            stdout::print_line(format!(
                "added {id} {short}; its previous keys expire at {}",
                format_expiry(end)
            ))?;
        }
    }
    Ok(Exit::OK)
}

/// The entries of an id; if it has none, the entries whose hash starts with it.
fn find_entries(editor: &AclFileEditor, id: &str, path: &Path) -> Result<Vec<usize>, Failure> {
    let filter = |matches: &dyn Fn(&AclEntry) -> bool| -> Vec<usize> {
        let entries = editor.entries.iter().enumerate();
        entries
            .filter(|(_, entry)| matches(entry))
            .map(|(at, _)| at)
            .collect()
    };
    let mut found = filter(&|entry| entry.grant.id == id);
    if found.is_empty() && id.len() >= 8 {
        found = filter(&|entry| entry.key.to_string().starts_with(id));
    }
    match found.is_empty() {
        // The argument may be a key, which must not be shown.
        true => Err(Failure::new(
            Exit::NOT_FOUND,
            format!("no key with this id in {}", path.display()),
        )
        .remedy("`authproxy key list` shows the ids")),
        false => Ok(found),
    }
}

fn entries_json(entries: &[AclEntry]) -> Value {
    let entries = entries.iter();
    entries
        .map(|entry| to_entry(&entry.key, &entry.grant))
        .collect()
}

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
            Some(end) if *end <= now => format!("{} (expired)", format_expiry(*end)),
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
