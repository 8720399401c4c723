//! HAProxy's lexical rules (configuration manual, section 2.2): words, quotes, escapes, comments. Owns no keyword.

use std::path::Path;

/// As many words as one line may have (2.6: `MAX_LINE_ARGS`, less the terminator).
pub(super) const MAX_WORDS: usize = 64;

/// Words that begin a section wherever they stand first, indented or not. Those of newer versions are here too, so that
/// a file does not change its meaning with an upgrade.
const SECTIONS: &[&str] = &[
    "acme",
    "backend",
    "cache",
    "crt-store",
    "defaults",
    "fcgi-app",
    "frontend",
    "global",
    "http-errors",
    "listen",
    "log-forward",
    "log-profile",
    "mailers",
    "peers",
    "program",
    "resolvers",
    "ring",
    "traces",
    "userlist",
];

/// The words of a line as HAProxy reads them. Environment variables are left as they are written.
pub(super) fn words(line: &str) -> Vec<String> {
    scan(line).0
}

/// A part of a line that others follow: without its comment, and without a last backslash, which would swallow what
/// comes next.
pub(super) fn fragment(text: &str) -> &str {
    let text = text[..scan(text).1].trim();
    text.trim_end_matches('\\').trim_end()
}

/// The words, and where in the line they end: at a comment, or at its end.
fn scan(line: &str) -> (Vec<String>, usize) {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut rest = line.chars();
    let mut end = line.len();
    while let Some(c) = rest.next() {
        match (c, quote) {
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, Some(open)) if c == open => quote = None,
            ('\\', None | Some('"')) => {
                let word = word.get_or_insert_default();
                match rest.next() {
                    Some('x') => {
                        let hex: String = rest.clone().take(2).collect();
                        match u8::from_str_radix(&hex, 16) {
                            Ok(byte) if hex.len() == 2 => {
                                word.push(char::from(byte));
                                rest.nth(1);
                            }
                            _ => word.push_str("\\x"),
                        }
                    }
                    Some(c @ (' ' | '#' | '\\' | '"' | '\'' | '$')) => word.push(c),
                    Some('n') => word.push('\n'),
                    Some('r') => word.push('\r'),
                    Some('t') => word.push('\t'),
                    Some(c) => word.extend(['\\', c]),
                    None => word.push('\\'),
                }
            }
            ('#', None) => {
                end = line.len() - rest.as_str().len() - 1;
                break;
            }
            (' ' | '\t', None) => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    (words, end)
}

/// Whether a line holds these words first, `no` before them or not: the user has decided.
pub(super) fn says(line: &str, keyword: &[&str]) -> bool {
    let words = words(line);
    let words = match words.first().map(String::as_str) {
        Some("no" | "default") => &words[1..],
        _ => &words[..],
    };
    words.len() >= keyword.len() && words.iter().zip(keyword).all(|(a, b)| a == b)
}

/// The word after `keyword` in the last line that begins with it.
pub(super) fn last_value<'a>(
    lines: impl IntoIterator<Item = &'a str>,
    keyword: &str,
) -> Option<String> {
    let values = lines.into_iter().filter_map(|line| {
        let mut words = words(line).into_iter();
        (words.next()? == keyword).then(|| words.next()).flatten()
    });
    values.last()
}

/// Whether `text` is one line of a file.
pub(super) fn one_line(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() && c != '\t')
}

/// Why a line cannot stand inside a section, if it cannot: it would be several, or would end the section.
pub(super) fn refusal(line: &str) -> Option<&'static str> {
    if !one_line(line) {
        return Some("holds a control character");
    }
    let words = words(line);
    let first = words.first().map_or("", String::as_str);
    if SECTIONS.contains(&first) {
        return Some("begins a new section");
    }
    if first.starts_with('.') {
        return Some("is a preprocessor directive");
    }
    first
        .contains('$')
        .then_some("takes its keyword from the environment")
}

/// A path as one word, or `None` where it cannot be written.
pub(super) fn quoted(path: &Path) -> Option<String> {
    let path = path.to_str().filter(|path| one_line(path))?;
    let mut word = String::with_capacity(path.len());
    for c in path.chars() {
        if " \t#\\\"'".contains(c) {
            word.push('\\');
        }
        word.push(c);
    }
    Some(word).filter(|word| !word.is_empty() && !word.contains('\t'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_haproxys() {
        for (line, expected) in [
            ("bind  :80\tssl", vec!["bind", ":80", "ssl"]),
            ("\"back end\" 'a\\b' # no", vec!["back end", "a\\b"]),
            (r"\x62ackend a\ b \s", vec!["backend", "a b", "\\s"]),
            ("a\"b\"'c' \"\"", vec!["abc", ""]),
            (r"\x6 \xé9 a\", vec!["\\x6", "\\xé9", "a\\"]),
            ("# only", vec![]),
        ] {
            assert_eq!(words(line), expected, "{line}");
        }
    }

    #[test]
    fn a_fragment_lets_what_follows_be_read() {
        for (text, expected) in [
            (" check inter 2s # often", "check inter 2s"),
            (r##"check sni "str(#)" \"##, r##"check sni "str(#)""##),
            (r"a\# b", r"a\# b"),
        ] {
            assert_eq!(fragment(text), expected);
        }
    }

    #[test]
    fn a_line_that_would_leave_its_section_is_refused() {
        for line in [
            "a\nb",
            "a\rb",
            "  backend x",
            "\"back\"end x",
            r"\x62ackend x",
            ".if 0",
            "\"$X\" y",
        ] {
            assert!(refusal(line).is_some(), "{line:?}");
        }
        for line in [
            "",
            "# x",
            "use_backend b if x",
            "http-request set-header x \"$Y\"",
        ] {
            assert_eq!(refusal(line), None, "{line:?}");
        }
    }
}
