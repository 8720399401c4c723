//! The plain part of YAML, read fast: what programs write, and most of what people do.
//!
//! Block and flow collections of plain and quoted words that stay on their line, in ASCII. Whatever else a file holds
//! (anchors, merge keys, block scalars, tags, a key twice, an error), this gives up and the full parser reads it from the
//! beginning: so there is one place that explains errors, and a property test holds the two against each other. It is
//! there because the full parser takes 0.2 s for the 6 MB of a thousand services.

use std::borrow::Cow;
use std::collections::HashSet;

use super::tree::{At, Entry, Node, Style, Value, unsymbol};

/// Collections inside collections.
const DEPTH: usize = 32;

/// The longest key; longer ones are the full parser's to judge.
const KEY: usize = 256;

/// The tree of `text`, if all of it is plain.
pub(super) fn parse(file: u16, text: &str) -> Option<Node<'_>> {
    let plain = |byte: &u8| matches!(byte, b' '..=b'~' | b'\n');
    if !text.as_bytes().iter().all(plain) {
        return None;
    }
    let mut reader = Reader {
        text,
        bytes: text.as_bytes(),
        file,
        position: 0,
        line: 1,
        line_start: 0,
        depth: 0,
    };
    let mut indent = reader.next_line()?;
    if reader.line_is("---") {
        reader.position += 3;
        indent = reader.next_line()?;
    }
    let root = reader.block(indent)?;
    (reader.next_line().is_none() && reader.position == text.len()).then_some(root)
}

struct Reader<'a> {
    text: &'a str,
    bytes: &'a [u8],
    file: u16,
    position: usize,
    line: u32,
    line_start: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.position).copied()
    }

    fn at(&self) -> At {
        At {
            file: self.file,
            line: self.line,
            column: u16::try_from(self.column() + 1).unwrap_or(u16::MAX),
        }
    }

    fn column(&self) -> usize {
        self.position - self.line_start
    }

    fn line_is(&self, text: &str) -> bool {
        self.text[self.position..]
            .strip_prefix(text)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('\n'))
    }

    /// Skips spaces and a comment. Whether the line ends here.
    fn rest_is_blank(&mut self) -> bool {
        let before = self.position;
        while self.peek() == Some(b' ') {
            self.position += 1;
        }
        if self.peek() == Some(b'#') && (self.position > before || self.column() == 0) {
            while self.peek().is_some_and(|byte| byte != b'\n') {
                self.position += 1;
            }
        }
        matches!(self.peek(), None | Some(b'\n'))
    }

    fn newline(&mut self) {
        self.position += 1;
        self.line += 1;
        self.line_start = self.position;
    }

    /// Goes to the first word from here on; its indentation, or `None` at the end of the file.
    fn next_line(&mut self) -> Option<usize> {
        while self.rest_is_blank() {
            self.peek()?;
            self.newline();
        }
        Some(self.column())
    }

    /// A key and its colon are here; leaves the position behind the colon.
    fn key(&mut self) -> Option<(At, Cow<'a, str>)> {
        let at = self.at();
        let begin = self.position;
        let key = match self.peek()? {
            b'"' | b'\'' => self.quoted()?,
            _ => Cow::Borrowed(unsymbol(self.plain(false)?)),
        };
        let known = self.position - begin <= KEY && key != "<<" && self.peek() == Some(b':');
        self.position += 1;
        (known && matches!(self.peek(), None | Some(b' ' | b'\n'))).then_some((at, key))
    }

    /// The node of which the first word is here, at `indent`.
    fn block(&mut self, indent: usize) -> Option<Node<'a>> {
        self.depth += 1;
        // A document marker stands in the first column.
        let marker = indent == 0 && (self.line_is("---") || self.line_is("..."));
        if self.depth > DEPTH || marker {
            return None;
        }
        let node = if self.is_item() {
            self.items(indent)
        } else if matches!(self.peek()?, b'[' | b'{') {
            self.inline(indent)
        } else {
            let begin = self.position;
            let is_key = self.key().is_some();
            self.position = begin;
            if is_key {
                self.entries(indent)
            } else {
                self.inline(indent)
            }
        };
        self.depth -= 1;
        node
    }

    fn is_item(&self) -> bool {
        self.peek() == Some(b'-')
            && matches!(self.bytes.get(self.position + 1), None | Some(b' ' | b'\n'))
    }

    fn items(&mut self, indent: usize) -> Option<Node<'a>> {
        let at = self.at();
        let mut items = Vec::new();
        loop {
            self.position += 1;
            if self.rest_is_blank() {
                items.push(self.below(indent, false)?);
            } else {
                items.push(self.block(self.column())?);
            }
            match self.next_line() {
                Some(next) if next == indent && self.is_item() => {}
                // A list that is a value may stand as far left as its key.
                Some(next) if next > indent => return None,
                _ => break,
            }
        }
        let value = Value::List(items);
        Some(Node { at, value })
    }

    fn entries(&mut self, indent: usize) -> Option<Node<'a>> {
        let at = self.at();
        let mut entries: Vec<Entry<'a>> = Vec::new();
        loop {
            let (at, key) = self.key()?;
            let node = if self.rest_is_blank() {
                self.below(indent, true)?
            } else {
                self.inline(indent)?
            };
            entries.push(Entry { at, key, node });
            match self.next_line() {
                Some(next) if next == indent => {}
                Some(next) if next > indent => return None,
                _ => break,
            }
        }
        unique(&entries)?;
        let value = Value::Map(entries);
        Some(Node { at, value })
    }

    /// The value that begins on a later line than its key or dash, further right.
    fn below(&mut self, indent: usize, key: bool) -> Option<Node<'a>> {
        // Where nothing is, the full parser says where that is.
        let next = self.next_line()?;
        let deep = next > indent || key && next == indent && self.is_item();
        if !deep {
            return None;
        }
        let mut node = self.block(next)?;
        if next == indent
            && let Value::List(items) = &node.value
        {
            // The full parser places a list that is not indented at its first item, and knows best where that is when
            // the item begins on a later line than its dash.
            let first = items.first()?.at;
            if first.line != node.at.line {
                return None;
            }
            node.at = first;
        }
        Some(node)
    }

    /// A flow collection or a scalar that ends on its line, inside a block of this indentation.
    fn inline(&mut self, indent: usize) -> Option<Node<'a>> {
        let node = match self.peek()? {
            b'[' | b'{' => self.flow()?,
            _ => self.scalar(false)?,
        };
        if !self.rest_is_blank() {
            return None;
        }
        // A deeper line would continue a plain word.
        let here = (self.position, self.line, self.line_start);
        let next = self.next_line();
        (self.position, self.line, self.line_start) = here;
        next.is_none_or(|next| next <= indent).then_some(node)
    }

    fn scalar(&mut self, flow: bool) -> Option<Node<'a>> {
        let at = self.at();
        let value = match self.peek()? {
            b'"' | b'\'' => Value::Scalar(self.quoted()?, Style::Text),
            _ => Value::Scalar(Cow::Borrowed(self.plain(flow)?), Style::Plain),
        };
        Some(Node { at, value })
    }

    /// A word without quotes, without the spaces behind it.
    fn plain(&mut self, flow: bool) -> Option<&'a str> {
        let ends = |byte: Option<&u8>| match byte {
            None | Some(b' ' | b'\n') => true,
            Some(b',' | b'[' | b']' | b'{' | b'}') => flow,
            _ => false,
        };
        let begin = self.position;
        match self.bytes.get(begin)? {
            b'-' | b':' if !ends(self.bytes.get(begin + 1)) => {}
            b'-' | b':' | b'?' | b',' | b'[' | b']' | b'{' | b'}' | b'#' | b'&' | b'*' | b'!'
            | b'|' | b'>' | b'\'' | b'"' | b'%' | b'@' | b'`' | b' ' | b'\n' => return None,
            _ => {}
        }
        let mut end = begin;
        while let Some(byte) = self.bytes.get(end) {
            match byte {
                b'\n' => break,
                b',' | b'[' | b']' | b'{' | b'}' if flow => break,
                b':' if ends(self.bytes.get(end + 1)) => break,
                b'#' if self.bytes[end - 1] == b' ' => break,
                _ => end += 1,
            }
        }
        while self.bytes[end - 1] == b' ' {
            end -= 1;
        }
        self.position = end;
        Some(&self.text[begin..end])
    }

    /// A quoted word that ends on its line.
    fn quoted(&mut self) -> Option<Cow<'a, str>> {
        let quote = self.peek()?;
        self.position += 1;
        let begin = self.position;
        let mut owned: Option<String> = None;
        loop {
            let byte = self.peek()?;
            let next = self.bytes.get(self.position + 1).copied();
            let replaced = match byte {
                b'\n' => return None,
                b'\'' if quote == b'\'' && next == Some(b'\'') => Some('\''),
                b'\\' if quote == b'"' => Some(match next? {
                    b'"' => '"',
                    b'\\' => '\\',
                    b'/' => '/',
                    _ => return None,
                }),
                _ => None,
            };
            if let Some(replaced) = replaced {
                owned
                    .get_or_insert_with(|| self.text[begin..self.position].to_owned())
                    .push(replaced);
                self.position += 2;
                continue;
            }
            if byte == quote {
                let text = &self.text[begin..self.position];
                self.position += 1;
                return Some(owned.map_or(Cow::Borrowed(text), Cow::Owned));
            }
            if let Some(owned) = &mut owned {
                owned.push(char::from(byte));
            }
            self.position += 1;
        }
    }

    /// `[..]` or `{..}`, over as many lines as it takes.
    fn flow(&mut self) -> Option<Node<'a>> {
        let at = self.at();
        self.depth += 1;
        if self.depth > DEPTH {
            return None;
        }
        let is_map = self.peek() == Some(b'{');
        let close = if is_map { b'}' } else { b']' };
        self.position += 1;
        let mut items = Vec::new();
        let mut entries = Vec::new();
        loop {
            self.next_flow_word()?;
            if self.peek() == Some(close) {
                self.position += 1;
                break;
            }
            if is_map {
                entries.push(self.flow_entry()?);
            } else {
                items.push(self.flow_node()?);
            }
            self.next_flow_word()?;
            match self.peek()? {
                b',' => self.position += 1,
                byte if byte == close => {}
                _ => return None,
            }
        }
        self.depth -= 1;
        unique(&entries)?;
        let value = if is_map {
            Value::Map(entries)
        } else {
            Value::List(items)
        };
        Some(Node { at, value })
    }

    fn flow_node(&mut self) -> Option<Node<'a>> {
        match self.peek()? {
            b'[' | b'{' => self.flow(),
            _ => self.scalar(true),
        }
    }

    fn flow_entry(&mut self) -> Option<Entry<'a>> {
        let at = self.at();
        let begin = self.position;
        let (key, quoted) = match self.peek()? {
            b'"' | b'\'' => (self.quoted()?, true),
            _ => (Cow::Borrowed(unsymbol(self.plain(true)?)), false),
        };
        if self.position - begin > KEY || key == "<<" || self.peek() != Some(b':') {
            return None;
        }
        self.position += 1;
        // Only behind a quoted key may the value follow at once, as in JSON.
        if !quoted && !matches!(self.peek()?, b' ' | b'\n') {
            return None;
        }
        self.next_flow_word()?;
        let node = self.flow_node()?;
        Some(Entry { at, key, node })
    }

    fn next_flow_word(&mut self) -> Option<()> {
        self.next_line()?;
        // A document marker stands in the first column.
        (self.column() != 0 || !(self.line_is("---") || self.line_is("..."))).then_some(())
    }
}

/// Nothing when a key is there twice: the full parser says so.
fn unique(entries: &[Entry<'_>]) -> Option<()> {
    let unique = if entries.len() <= 16 {
        (1..entries.len()).all(|i| entries[..i].iter().all(|known| known.key != entries[i].key))
    } else {
        let mut seen = HashSet::with_capacity(entries.len());
        entries.iter().all(|entry| seen.insert(&*entry.key))
    };
    unique.then_some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::context::Context;
    use super::super::tree;
    use super::*;

    /// What both readers make of it: the same, or this one nothing.
    fn compare(text: &str) -> bool {
        let Some(plain) = parse(0, text) else {
            return false;
        };
        let mut context = Context::new(true);
        let number = context.file("f".as_ref());
        let full = tree::parse_fully(number, text, &mut context);
        assert!(
            context.finish().is_ok_and(|found| found.is_empty()),
            "{text}"
        );
        assert_eq!(format!("{full:?}"), format!("{:?}", Some(plain)), "{text}");
        true
    }

    #[test]
    fn plain_files() {
        for text in [
            "a: b",
            "---\na: b\n",
            "# note\n\na: b # note\nc: d#e\n",
            "a:\n  b: c\n  d:\n    - e\n    - f: g\n      h: i\n    -\n      j: k\n",
            "a:\n- b\n- c\nd: e\n",
            "- - a\n  - b\n- c\n",
            "a: [b, c, {d: e}, [], {}]\nf: {g: h, i: [j]}\n",
            "{\n  \"a\": [\n    1, \"b\\\"c\\\\d\\/e\"\n  ],\n  \"f\":{\"g\":true}\n}\n",
            "a: 'b''c'\n'd e': \"f # g\"\n",
            "a: -1\nb: :c\nd: e:f\ng: http://h:1/i\n",
            "http-request set-header X: y\n",
            "a: b  \n  \nc:   d\n",
            ":a: :b\n",
            "a: [b:1, c:2 ,d]\n",
            "a: [b,\n# note\n  c, ]\n",
            "plain words",
        ] {
            assert!(compare(text), "{text}");
        }
    }

    #[test]
    fn what_is_left_to_the_full_parser() {
        for text in [
            "",
            "a: &b c",
            "a: *b",
            "a: !c d",
            "a: |\n  b",
            "a: >\n  b",
            "? a",
            "a: b\n  c",
            "a: 'b\n  c'",
            "a: b: c",
            "a:\n",
            "a: b\na: c",
            "<<: {a: b}",
            "a: \"\\n\"",
            "a: [b: c]",
            "a: {b}",
            "a: {b:c}",
            "a: [b c\n d]",
            "- a\n---\n- b",
            "a: b\n...\n",
            "\ta: b",
            "a: \u{e9}",
            "a: b\n c: d",
            "a:\n  b: c\n d: e",
            "a:\n-\n  b",
            "[a]: b",
            "- a\nb: c",
            "a: %b",
            "a: @b",
        ] {
            assert!(parse(0, text).is_none(), "{text}");
        }
    }

    #[test]
    fn every_example_is_read_the_same_way() {
        let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/synapse");
        let mut plain = 0;
        for entry in std::fs::read_dir(examples).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                plain += usize::from(compare(&std::fs::read_to_string(path).unwrap()));
            }
        }
        assert!(plain >= 6, "{plain}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// Whatever the plain reader takes, the full parser reads the same, with the same places.
        #[test]
        fn the_two_agree(text in "([ab]{0,2}[:\\-,#\"'\\[\\]{}\n ] ?(\n {0,3})?){0,14}") {
            compare(&text);
        }

        #[test]
        fn the_two_agree_on_nested_blocks(lines in proptest::collection::vec((0usize..4, "(- )?[ab](: ?)?[ab]?( #c)?"), 0..8)) {
            let text: String = lines.iter().map(|(indent, line)| format!("{}{line}\n", " ".repeat(*indent))).collect();
            compare(&text);
        }

        #[test]
        fn the_two_agree_on_flow(text in "[\\[{]([ab:,\\[\\]{}\"'\n #-]|: |, |\"a\":){0,16}[\\]}]\n?") {
            compare(&text);
        }
    }
}
