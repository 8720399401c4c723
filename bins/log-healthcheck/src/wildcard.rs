//! Wildcards as in shells, over bytes: file names need not be text. `*` and `?` match neither slashes nor a leading
//! dot; `[a-z]` and `[!a-z]` are sets of bytes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use crate::log_files::{list_directory, or_current};

pub(crate) fn has_wildcards(name: &OsStr) -> bool {
    name.as_bytes().iter().any(|byte| b"*?[".contains(byte))
}

/// The paths that `pattern` matches, sorted, at most one more than `limit`. Unreadable directories have no matches.
pub(crate) fn expand(pattern: &Path, limit: usize) -> Vec<PathBuf> {
    let components: Vec<_> = pattern.components().collect();
    let mut paths = Vec::new();
    add_matches(Path::new(""), &components, limit, &mut paths);
    paths.sort();
    paths
}

/// Adds the paths below `path` that match. Only complete matches count towards the limit.
fn add_matches(path: &Path, components: &[Component<'_>], limit: usize, paths: &mut Vec<PathBuf>) {
    match components {
        [] if path.symlink_metadata().is_ok() => paths.push(path.to_owned()),
        [] => {}
        [Component::Normal(name), rest @ ..] if has_wildcards(name) => {
            for entry in list_directory(or_current(path))
                .into_iter()
                .flatten()
                .flatten()
            {
                let found = entry.file_name();
                if paths.len() <= limit && matches(name.as_bytes(), found.as_bytes()) {
                    add_matches(&path.join(found), rest, limit, paths);
                }
            }
        }
        [other, rest @ ..] => add_matches(&path.join(other), rest, limit, paths),
    }
}

/// Whether a name matches. Each star is retried from where it failed last, so the time is bounded for any pattern.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    if name.starts_with(b".") && !pattern.starts_with(b".") {
        return false;
    }
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p + 1, n));
            p += 1;
        } else if let Some(length) = match_byte(&pattern[p..], name[n]) {
            (p, n) = (p + length, n + 1);
        } else if let Some((behind, from)) = star {
            star = Some((behind, from + 1));
            (p, n) = (behind, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// The length of the part of `pattern` that matches this byte.
fn match_byte(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', set @ ..] => {
            let (negated, set) = match set {
                [b'!' | b'^', set @ ..] => (true, set),
                _ => (false, set),
            };
            // A leading bracket belongs to the set.
            let Some(end) = set.iter().skip(1).position(|byte| *byte == b']') else {
                return (byte == b'[').then_some(1);
            };
            let set = &set[..=end];
            let length = 1 + usize::from(negated) + set.len() + 1;
            (set_contains(set, byte) != negated).then_some(length)
        }
        [first, ..] => (*first == byte).then_some(1),
        [] => None,
    }
}

fn set_contains(mut set: &[u8], byte: u8) -> bool {
    loop {
        set = match set {
            [low, b'-', high, ..] if (*low..=*high).contains(&byte) => return true,
            [_, b'-', _, rest @ ..] => rest,
            [first, ..] if *first == byte => return true,
            [_, rest @ ..] => rest,
            [] => return false,
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn wildcards_match_as_in_shells() {
        for (pattern, yes, no) in [
            ("*", "a", ".a"),
            (".*", ".a", "a"),
            ("*.log", "a.b.log", "a.log.1"),
            ("a?c", "abc", "ac"),
            ("[a-c]x", "bx", "dx"),
            ("[!a-c]x", "dx", "bx"),
            ("[]x]y", "]y", "zy"),
            ("[a-]", "-", "b"),
            ("[x", "[x", "x"),
            ("a*b*c", "a--b-b-c", "a--b-b"),
            ("**", "abc", ".abc"),
        ] {
            assert!(
                matches(pattern.as_bytes(), yes.as_bytes()),
                "{pattern} {yes}"
            );
            assert!(
                !matches(pattern.as_bytes(), no.as_bytes()),
                "{pattern} {no}"
            );
        }
        assert!(matches(b"*", b"\xff\n"));
    }

    #[test]
    fn wildcards_in_directories_are_expanded() {
        let home = tempfile::tempdir().unwrap();
        for file in ["a/x.log", "b/y.log", "b/z.txt", "c"] {
            let path = home.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let find = |pattern: &str, limit| expand(&home.path().join(pattern), limit).len();
        assert_eq!(find("*/*.log", 9), 2);
        assert_eq!(find("[ab]/../c", 9), 2);
        assert_eq!(find("*/none", 9), 0);
        assert_eq!(
            find("*", 1),
            2,
            "one more than the limit tells that there are more"
        );
    }

    proptest! {
        #[test]
        fn name_matches_itself_and_its_prefixes_with_a_star(name in "[a-z]{1,12}", at in 0..12_usize) {
            let at = at.min(name.len());
            prop_assert!(matches(name.as_bytes(), name.as_bytes()));
            let starred = format!("{}*{}", &name[..at], &name[at..]);
            prop_assert!(matches(starred.as_bytes(), name.as_bytes()));
            let beginning = format!("{}*", &name[..at]);
            prop_assert!(matches(beginning.as_bytes(), name.as_bytes()));
        }

        #[test]
        fn any_bytes_do_not_panic(pattern in prop::collection::vec(prop::sample::select(&b"*?[]!-a"[..]), 0..20), name: Vec<u8>) {
            matches(&pattern, &name);
        }
    }
}
