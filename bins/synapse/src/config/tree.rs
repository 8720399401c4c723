//! YAML (hence JSON) as a tree in which every key and value knows where it was written.
//!
//! Owns parsing, anchors, merge keys and merging of files. What keys mean is not known here. Ruby wrote and read these
//! files before us, so plain scalars mean what they mean there: `yes` is true, `:name` is `name`.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use granit_parser::{Event, Options, Parser, ScalarStyle, ScanError, Span, Tag};

use super::context::{Context, Kind};

/// Nodes that aliases may add to a file: a few kilobytes of YAML can otherwise be gigabytes of tree.
const EXPANSION: usize = 2_000_000;

/// Collections inside collections; a configuration has about eight.
const DEPTH: usize = 64;

/// Where a node begins: file by number, line and column from 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    pub(super) file: u16,
    pub(super) column: u16,
    pub(super) line: u32,
}

/// A value and where it begins.
#[derive(Debug, Clone)]
pub(super) struct Node<'a> {
    pub(super) at: At,
    pub(super) value: Value<'a>,
}

/// What a node is.
#[derive(Debug, Clone)]
pub(super) enum Value<'a> {
    Scalar(Cow<'a, str>, Style),
    List(Vec<Node<'a>>),
    Map(Vec<Entry<'a>>),
}

/// How a scalar was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// Without quotes: it may be a number, a boolean, null or a symbol.
    Plain,
    /// Quoted or folded: text.
    Text,
    /// A literal block: text whose lines are lines of the file, the first of them at `at`.
    Literal,
}

/// A key of a map and its value.
#[derive(Debug, Clone)]
pub(super) struct Entry<'a> {
    pub(super) at: At,
    pub(super) key: Cow<'a, str>,
    pub(super) node: Node<'a>,
}

impl Node<'_> {
    /// The text of a scalar that is not null.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(text, Style::Plain) if is_null(text) => None,
            Value::Scalar(text, Style::Plain) => Some(unsymbol(text)),
            Value::Scalar(text, _) => Some(text),
            _ => None,
        }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(text, Style::Plain) if is_null(text))
    }

    /// What it is, for an error.
    pub(super) fn kind(&self) -> &'static str {
        match self.value {
            Value::Scalar(..) if self.is_null() => "empty",
            Value::Scalar(..) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    fn size(&self) -> usize {
        1 + match &self.value {
            Value::Scalar(..) => 0,
            Value::List(items) => items.iter().map(Self::size).sum(),
            Value::Map(entries) => entries.iter().map(|entry| entry.node.size()).sum(),
        }
    }
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// `name` of Ruby's `:name`.
pub(super) fn unsymbol(text: &str) -> &str {
    match text.strip_prefix(':') {
        Some(name)
            if name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_') =>
        {
            name
        }
        _ => text,
    }
}

/// Lays `over` upon `base`: maps merge, everything else replaces.
pub(super) fn overlay<'a>(base: &mut Node<'a>, over: Node<'a>) {
    let over = match (&mut base.value, over.value) {
        (Value::Map(entries), Value::Map(more)) => {
            for entry in more {
                match entries.iter_mut().find(|known| known.key == entry.key) {
                    Some(known) => overlay(&mut known.node, entry.node),
                    None => entries.push(entry),
                }
            }
            return;
        }
        (_, value) => Node { at: over.at, value },
    };
    *base = over;
}

/// Parses the first document of `text`; `None` is an empty one or an error that `context` now knows.
pub(super) fn parse<'a>(file: u16, text: &'a str, context: &mut Context) -> Option<Node<'a>> {
    super::plain::parse(file, text).or_else(|| parse_fully(file, text, context))
}

/// Parses whatever YAML there is.
pub(super) fn parse_fully<'a>(file: u16, text: &'a str, context: &mut Context) -> Option<Node<'a>> {
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.flow_nesting_limit = DEPTH;
    options.block_nesting_limit = DEPTH;
    let mut builder = Builder {
        file,
        context,
        open: Vec::new(),
        root: None,
        anchors: HashMap::new(),
        expanded: 0,
        documents: 0,
    };
    for event in Parser::new_from_str_with_options(text, options) {
        let step = match event {
            Ok((event, span)) => builder.event(event, &span),
            Err(error) => Err(builder.syntax(&error)),
        };
        if step.is_err() {
            return None;
        }
    }
    builder.root
}

/// The rest of the file cannot be read; the context has been told why.
struct Unreadable;

struct Builder<'a, 'c> {
    file: u16,
    context: &'c mut Context,
    open: Vec<Open<'a>>,
    root: Option<Node<'a>>,
    anchors: HashMap<usize, Node<'a>>,
    expanded: usize,
    documents: usize,
}

/// A collection that has begun.
struct Open<'a> {
    at: At,
    anchor: usize,
    inside: Inside<'a>,
}

enum Inside<'a> {
    List(Vec<Node<'a>>),
    Map(Vec<Entry<'a>>, Option<(At, Cow<'a, str>)>),
}

impl<'a> Builder<'a, '_> {
    fn event(&mut self, event: Event<'a>, span: &Span) -> Result<(), Unreadable> {
        let at = self.at(span.start.line(), span.start.col());
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents == 2 {
                    self.context.push(
                        Kind::Ignored,
                        at,
                        "a second document begins",
                        "only the first is read: leave the others out",
                    );
                }
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                let style = match style {
                    ScalarStyle::Plain => Style::Plain,
                    ScalarStyle::Literal => Style::Literal,
                    _ => Style::Text,
                };
                let style = self.tagged(tag.as_deref(), style, at)?;
                let node = Node {
                    at,
                    value: Value::Scalar(text, style),
                };
                self.place(node, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.tagged(tag.as_deref(), Style::Plain, at)?;
                self.begin(at, anchor, Inside::List(Vec::new()))
            }
            Event::MappingStart(_, anchor, tag) => {
                self.tagged(tag.as_deref(), Style::Plain, at)?;
                self.begin(at, anchor, Inside::Map(Vec::new(), None))
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return Err(self.fail(
                        at,
                        "an alias inside what it stands for",
                        "write it out",
                    ));
                };
                self.expand(&node, at)?;
                self.place(node, 0)
            }
            _ => Ok(()),
        }
    }

    /// Tags say what the plain text says anyway, or name a Ruby class.
    fn tagged(&mut self, tag: Option<&Tag>, style: Style, at: At) -> Result<Style, Unreadable> {
        match tag.map(|tag| (tag, tag.core_suffix())) {
            None => Ok(style),
            Some((_, Some("str"))) if style == Style::Plain => Ok(Style::Text),
            Some((_, Some("str" | "int" | "float" | "bool" | "null" | "map" | "seq"))) => Ok(style),
            Some((tag, _)) => {
                let message = format!("unknown tag `{}`", tag.original());
                Err(self.fail(at, message, "write a plain value"))
            }
        }
    }

    fn begin(&mut self, at: At, anchor: usize, inside: Inside<'a>) -> Result<(), Unreadable> {
        if let Some(Inside::Map(_, None)) = self.open.last().map(|open| &open.inside) {
            return Err(self.fail(at, "a key that is a collection", "a key is a word"));
        }
        self.open.push(Open { at, anchor, inside });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Unreadable> {
        let Some(open) = self.open.pop() else {
            return Ok(());
        };
        let value = match open.inside {
            Inside::List(mut items) => {
                items.shrink_to_fit();
                Value::List(items)
            }
            Inside::Map(entries, _) => Value::Map(self.settle(entries)?),
        };
        self.place(Node { at: open.at, value }, open.anchor)
    }

    fn place(&mut self, node: Node<'a>, anchor: usize) -> Result<(), Unreadable> {
        if anchor != 0 {
            self.expand(&node, node.at)?;
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut().map(|open| &mut open.inside) {
            None if self.documents == 1 => self.root = Some(node),
            None => {}
            Some(Inside::List(items)) => items.push(node),
            Some(Inside::Map(entries, key)) => match (key.take(), node.value) {
                (Some((at, key)), value) => entries.push(Entry {
                    at,
                    key,
                    node: Node { at: node.at, value },
                }),
                (None, Value::Scalar(text, style)) => {
                    let text = match text {
                        Cow::Borrowed(text) if style == Style::Plain => {
                            Cow::Borrowed(unsymbol(text))
                        }
                        text => text,
                    };
                    *key = Some((node.at, text));
                }
                (None, _) => {
                    return Err(self.fail(
                        node.at,
                        "a key that is a collection",
                        "a key is a word",
                    ));
                }
            },
        }
        Ok(())
    }

    /// The entries of a map that has ended: no key twice, merge keys (`<<`) resolved.
    fn settle(&mut self, mut entries: Vec<Entry<'a>>) -> Result<Vec<Entry<'a>>, Unreadable> {
        self.no_duplicates(&mut entries);
        if entries.iter().any(|entry| entry.key == "<<") {
            let (merges, own): (Vec<_>, Vec<_>) =
                entries.into_iter().partition(|entry| entry.key == "<<");
            entries = own;
            for merge in merges {
                let maps = match merge.node.value {
                    Value::List(maps) => maps,
                    _ => vec![merge.node],
                };
                for map in maps {
                    let Value::Map(more) = map.value else {
                        return Err(self.fail(
                            merge.at,
                            "`<<` merges maps",
                            "give it a map, or a list of maps",
                        ));
                    };
                    for entry in more {
                        if entries.iter().all(|known| known.key != entry.key) {
                            entries.push(entry);
                        }
                    }
                }
            }
        }
        entries.shrink_to_fit();
        Ok(entries)
    }

    fn no_duplicates(&mut self, entries: &mut Vec<Entry<'a>>) {
        // Small maps are the many, and comparing their few keys is cheaper than hashing them.
        let unique = if entries.len() <= 16 {
            (1..entries.len()).all(|i| entries[..i].iter().all(|known| known.key != entries[i].key))
        } else {
            let mut seen = HashSet::with_capacity(entries.len());
            entries.iter().all(|entry| seen.insert(&*entry.key))
        };
        if unique {
            return;
        }
        let mut first: HashMap<Cow<'a, str>, At> = HashMap::new();
        for entry in entries.iter() {
            if let Some(known) = first.get(&entry.key) {
                let message = format!("`{}` is already set on line {}", entry.key, known.line);
                self.context.push(
                    Kind::Ignored,
                    entry.at,
                    message,
                    "leave one of them: Ruby takes the last",
                );
            } else {
                first.insert(entry.key.clone(), entry.at);
            }
        }
        let mut last = HashSet::new();
        entries.reverse();
        entries.retain(|entry| last.insert(entry.key.clone()));
        entries.reverse();
    }

    fn expand(&mut self, node: &Node<'a>, at: At) -> Result<(), Unreadable> {
        self.expanded += node.size();
        if self.expanded > EXPANSION {
            return Err(self.fail(
                at,
                "the aliases stand for too much",
                "2,000,000 values are allowed",
            ));
        }
        Ok(())
    }

    fn syntax(&mut self, error: &ScanError) -> Unreadable {
        let marker = error.marker();
        let at = self.at(marker.line(), marker.col());
        let message = format!("this is not YAML: {}", error.info());
        self.fail(at, message, "correct it")
    }

    fn fail(&mut self, at: At, message: impl Into<String>, remedy: &str) -> Unreadable {
        self.context.push(Kind::Error, at, message, remedy);
        Unreadable
    }

    fn at(&self, line: usize, column: usize) -> At {
        At {
            file: self.file,
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: u16::try_from(column + 1).unwrap_or(u16::MAX),
        }
    }
}
