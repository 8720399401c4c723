//! Untrusted text on terminals and in logs: detection and escaping of unprintable characters.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a terminal shows a character as it is: neither a control character nor one of Unicode's invisible and
/// bidirectional ones, which hide or reorder adjacent text (<https://trojansource.codes>).
#[must_use]
pub fn is_printable(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Escapes each unprintable character as Rust does: text of a peer must not control a terminal or forge a log line.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_printable) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_printable(c) {
            shown.push(c);
        } else {
            shown.extend(c.escape_default());
        }
    }
    Cow::Owned(shown)
}

/// Escapes each unprintable character of one line of JSON as JSON does; the values stay the same.
#[must_use]
pub fn escape_json(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_printable) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_printable(c) {
            shown.push(c);
        } else {
            // Such characters occur only in strings.
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(shown, "\\u{unit:04x}");
            }
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_hide_or_reorder_text_are_escaped() {
        let ranges = [
            0..=0x1f_u32,
            0x7f..=0x9f,
            0xad..=0xad,
            0x200b..=0x200f,
            0x202a..=0x202e,
            0x2066..=0x2069,
            0xfeff..=0xfeff,
            0xe0001..=0xe007f,
        ];
        for c in ranges.into_iter().flatten().filter_map(char::from_u32) {
            let text = format!("gr\u{fc}n {c}xep");
            let plain = escape(&text);
            assert!(plain.chars().all(is_printable), "{plain}");
            assert!(plain.starts_with("gr\u{fc}n \\"), "{plain}");
            let value = serde_json::Value::from(text);
            let line = value.to_string();
            let json = escape_json(&line);
            assert!(json.chars().all(is_printable), "{json}");
            assert_eq!(
                serde_json::from_str::<serde_json::Value>(&json).unwrap(),
                value
            );
        }
        assert!(matches!(escape("gr\u{fc}n"), Cow::Borrowed(_)));
    }
}
