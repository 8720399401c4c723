//! Edits an ACL file by whole lines, which keeps comments and the formatting of all other entries.
//!
//! Pure. `editor` parses the result again, so that an edit that went wrong is rejected and never written.

use std::ops::Range;

use crate::permissions::file::AclEntry;

/// Replaces a range of lines.
#[derive(Debug)]
pub(super) struct LineEdit {
    lines: Range<usize>,
    replacement: String,
}

struct EntrySpan {
    /// From the line of its dash to its last line that is not empty or a comment.
    lines: Range<usize>,
    /// The white space before its dash.
    indent: String,
}

/// Adds an entry after the last one. `None` if entries are not on lines of their own.
pub(super) fn append(text: &str, entries: &[AclEntry], entry: &str) -> Option<LineEdit> {
    match entries.last() {
        Some(last) => insert_after(text, last, entry),
        None => {
            let (at, line) = find_list(text)?;
            let (indent, _) = line.split_once("keys:")?;
            let replacement = format!("{indent}keys:\n{}", indent_lines(entry, indent));
            // Only `keys: []` and a comment can be replaced.
            let rest = line.split_once("[]")?.1.trim();
            let is_replaceable = rest.is_empty() || rest.starts_with('#');
            is_replaceable.then_some(LineEdit {
                lines: at..at + 1,
                replacement,
            })
        }
    }
}

pub(super) fn insert_after(text: &str, other: &AclEntry, entry: &str) -> Option<LineEdit> {
    let EntrySpan { lines, indent } = find_span(text, other)?;
    Some(LineEdit {
        lines: lines.end..lines.end,
        replacement: indent_lines(entry, &indent),
    })
}

/// Removes entries; without any left, the list becomes `keys: []`.
pub(super) fn remove(text: &str, entries: &[AclEntry], indexes: &[usize]) -> Option<Vec<LineEdit>> {
    let removed = indexes.iter().map(|index| {
        let EntrySpan { lines, .. } = find_span(text, entries.get(*index)?)?;
        Some(LineEdit {
            lines,
            replacement: String::new(),
        })
    });
    let mut edits: Vec<LineEdit> = removed.collect::<Option<_>>()?;
    if indexes.len() == entries.len() {
        let (at, line) = find_list(text)?;
        let replacement = line.replacen("keys:", "keys: []", 1) + "\n";
        edits.push(LineEdit {
            lines: at..at + 1,
            replacement,
        });
    }
    Some(edits)
}

/// Sets the expiry of an entry. `new` replaces an entry in flow style (`{id: ..}`) as a whole.
pub(super) fn set_expiry(text: &str, entry: &AclEntry, end: &str, new: &str) -> Option<LineEdit> {
    let EntrySpan { lines, indent } = find_span(text, entry)?;
    let all: Vec<&str> = text.lines().collect();
    if all.get(entry.line)?.chars().nth(entry.column) == Some('{') {
        let replacement = indent_lines(new, &indent);
        return Some(LineEdit { lines, replacement });
    }
    // White space before a member, and in the first line the dash.
    let before = |line: &str| -> String { line.chars().take(entry.column).collect() };
    let is_expiry = |line: &&str| {
        let before = before(line);
        let is_member = before.trim_matches([' ', '-']).is_empty();
        is_member && line[before.len()..].starts_with("expires:")
    };
    let found = lines.clone().find(|at| is_expiry(&all[*at]));
    let (lines, before) = match found {
        Some(at) => (at..at + 1, before(all[at])),
        None => (lines.end..lines.end, " ".repeat(entry.column)),
    };
    let replacement = format!("{before}expires: {end}\n");
    Some(LineEdit { lines, replacement })
}

/// Applies edits that do not overlap; two insertions at one line keep their order.
pub(super) fn apply(text: &str, mut edits: Vec<LineEdit>) -> String {
    edits.sort_by_key(|edit| (edit.lines.start, edit.lines.end));
    let mut lines = text.split_inclusive('\n');
    let mut at = 0;
    let mut new = String::with_capacity(text.len() + 256);
    for LineEdit {
        lines: range,
        replacement,
    } in edits
    {
        new.extend(lines.by_ref().take(range.start.saturating_sub(at)));
        // The last line of a file may have no line feed.
        if !replacement.is_empty() && !new.is_empty() && !new.ends_with('\n') {
            new.push('\n');
        }
        new.push_str(&replacement);
        lines.by_ref().take(range.len()).for_each(drop);
        at = range.end;
    }
    new.extend(lines);
    new
}

/// The lines of an entry in a block sequence.
fn find_span(text: &str, entry: &AclEntry) -> Option<EntrySpan> {
    let lines: Vec<&str> = text.lines().collect();
    let dash = |line: &str| line.trim_start().starts_with('-');
    let start = (0..=entry.line)
        .rev()
        .find(|at| lines.get(*at).is_some_and(|line| dash(line)))?;
    let indent = indent(lines[start]);
    let mut end = start + 1;
    for (at, line) in lines.iter().enumerate().skip(start + 1) {
        let content = line.trim_start();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        if self::indent(line).len() <= indent.len() {
            break;
        }
        end = at + 1;
    }
    Some(EntrySpan {
        lines: start..end,
        indent: indent.to_owned(),
    })
}

/// The line with `keys:`.
fn find_list(text: &str) -> Option<(usize, &str)> {
    let mut lines = text.lines().enumerate();
    lines.find(|(_, line)| line.trim_start().starts_with("keys:"))
}

fn indent(line: &str) -> &str {
    &line[..line.len() - line.trim_start_matches(' ').len()]
}

fn indent_lines(entry: &str, indent: &str) -> String {
    entry
        .lines()
        .map(|line| format!("{indent}{line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::permissions::file;

    /// Replaces each `@` with another SHA-256.
    fn with_hashes(text: &str) -> String {
        let mut parts = text.split('@');
        let mut whole = parts.next().unwrap().to_owned();
        for (number, part) in parts.enumerate() {
            whole.push_str(&format!("{number:064x}{part}"));
        }
        whole
    }

    fn entries(text: &str) -> Vec<AclEntry> {
        file::read_entries(Path::new("keys.yaml"), text).unwrap()
    }

    const NEW: &str = "- id: new\n  sha256: ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff\n  rights: [x]\n";

    #[test]
    fn edit_keeps_all_other_lines() {
        let block = with_hashes(
            "# Ours.\nkeys:\n  # Alice's.\n  - id: a   # the first\n    sha256: \"@\"\n    rights:\n    - x\n\n  # Bob's.\n  - sha256: \"@\"\n    id: b\n    expires: 2999-01-01  # soon\n    rights: [x]\n# The end.\n",
        );
        let found = entries(&block);
        assert_eq!(
            found.iter().map(|entry| entry.line).collect::<Vec<_>>(),
            [3, 9]
        );
        let new: String = NEW.lines().map(|line| format!("  {line}\n")).collect();

        let added = apply(&block, vec![append(&block, &found, NEW).unwrap()]);
        assert_eq!(
            added,
            block.replace("# The end.\n", &format!("{new}# The end.\n"))
        );

        let without = apply(&block, remove(&block, &found, &[0]).unwrap());
        let (start, end) = (
            block.find("  - id: a").unwrap(),
            block.find("\n  # Bob's").unwrap(),
        );
        assert_eq!(without, format!("{}{}", &block[..start], &block[end..]));
        let none = apply(&block, remove(&block, &found, &[0, 1]).unwrap());
        assert_eq!(
            none,
            "# Ours.\nkeys: []\n  # Alice's.\n\n  # Bob's.\n# The end.\n"
        );
        assert_eq!(entries(&none), []);

        let ended = apply(
            &block,
            vec![
                set_expiry(&block, &found[0], "2030-01-01", "").unwrap(),
                set_expiry(&block, &found[1], "2030-01-01", "").unwrap(),
                insert_after(&block, &found[0], NEW).unwrap(),
            ],
        );
        let expected = block
            .replace(
                "    - x\n",
                &format!("    - x\n    expires: 2030-01-01\n{new}"),
            )
            .replace(
                "    expires: 2999-01-01  # soon\n",
                "    expires: 2030-01-01\n",
            );
        assert_eq!(ended, expected);
    }

    #[test]
    fn block_lists_are_edited_and_flow_lists_are_not() {
        for (text, can) in [
            ("keys: []\n", true),
            ("keys: []", true),
            ("keys: [] # none yet\n", true),
            ("keys:\n- id: a\n  sha256: '@'\n  rights: [x]", true),
            ("keys:\n- {id: a, sha256: '@', rights: [x]}\n", true),
            (
                "keys:\n- {id: a, sha256: '@',\n   rights: [x]}\n- id: b\n  sha256: '@'\n  rights: []\n",
                true,
            ),
            (
                "keys:\n-\n  id: a\n  sha256: '@'\n  rights:\n  - x\n  - y\n",
                true,
            ),
            (
                "keys:\r\n- id: a\r\n  sha256: '@'\r\n  rights: [x]\r\n",
                true,
            ),
            (
                "---\nkeys:\n- rights: [x]\n  expires: 2040-01-01\n  id: a\n  sha256: '@'\n...\n",
                true,
            ),
            (
                "keys:\n- expires: 2040-01-01\n  rights: [x]\n  id: a\n  sha256: '@'\n",
                true,
            ),
            ("keys: [{id: a, sha256: '@', rights: [x]}]\n", false),
            (
                "{\"keys\": [\n  {\"id\": \"a\", \"sha256\": \"@\", \"rights\": [\"x\"]}\n]}\n",
                false,
            ),
            ("keys: [\n]\n", false),
        ] {
            let text = with_hashes(text);
            let before = entries(&text);
            let keys = |text: &str| {
                let parsed = file::read_entries(Path::new("keys.yaml"), text);
                let keys = parsed.unwrap_or_default();
                keys.into_iter()
                    .map(|entry| (entry.grant.id, entry.grant.expires))
                    .collect::<Vec<_>>()
            };
            let added = append(&text, &before, NEW).map(|edit| apply(&text, vec![edit]));
            let mut expected = keys(&text);
            expected.push(("new".to_owned(), None));
            assert_eq!(
                added.is_some_and(|added| keys(&added) == expected),
                can,
                "{text}"
            );
            let Some(last) = before.last() else { continue };
            let removed =
                remove(&text, &before, &[before.len() - 1]).map(|edits| apply(&text, edits));
            let expected = &keys(&text)[..before.len() - 1];
            let is_gone = removed.is_some_and(|removed| {
                file::read_entries(Path::new("keys.yaml"), &removed).is_ok()
                    && keys(&removed) == expected
            });
            assert_eq!(is_gone, can, "{text}");
            let new = format!(
                "- {{id: {}, sha256: '{}', rights: [x], expires: 2030-01-01}}\n",
                last.grant.id, last.key
            );
            let ended =
                set_expiry(&text, last, "2030-01-01", &new).map(|edit| apply(&text, vec![edit]));
            let mut expected = keys(&text);
            expected[before.len() - 1].1 = Some(1_893_456_000);
            assert_eq!(
                ended.is_some_and(|ended| keys(&ended) == expected),
                can,
                "{text}"
            );
        }
    }
}
