//! What is wrong with a configuration, collected while it is read, and maps that know their keys.

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;

use hostkit::{Exit, Failure};

use super::schema::Section;
use super::tree::{At, Entry, Node, Style, Value};
use crate::settings::Place;

/// Errors that are listed; the rest are counted.
const LISTED: usize = 50;

/// Findings that are kept.
const KEPT: usize = 10_000;

/// Something about a configuration that its writer should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where it stands.
    pub place: Place,
    /// What it means.
    pub kind: Kind,
    /// What is the matter, and where Synapse is concerned what it did with it.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.place, self.message, self.remedy)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// What a finding means. All but `Error` and `Note` are errors unless the reader is lenient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It cannot be used, lenient or not.
    Error,
    /// Synapse, or HAProxy on Synapse's behalf, refused it.
    Refused,
    /// Synapse dropped the line.
    Dropped,
    /// Synapse ignored the key, or read it as something else than it says.
    Ignored,
    /// It works, and there is a better way to write it.
    Note,
}

/// Collects what is found while a configuration is read.
pub(super) struct Context {
    lenient: bool,
    files: Vec<PathBuf>,
    errors: Vec<Finding>,
    more_errors: usize,
    findings: Vec<Finding>,
}

impl Context {
    pub(super) fn new(lenient: bool) -> Self {
        Self {
            lenient,
            files: Vec::new(),
            errors: Vec::new(),
            more_errors: 0,
            findings: Vec::new(),
        }
    }

    /// Gives a file its number.
    pub(super) fn file(&mut self, path: &Path) -> u16 {
        self.files.push(path.to_owned());
        u16::try_from(self.files.len() - 1).unwrap_or(u16::MAX)
    }

    pub(super) fn place(&self, at: At) -> Place {
        Place {
            file: self
                .files
                .get(usize::from(at.file))
                .cloned()
                .unwrap_or_default(),
            line: at.line as usize,
            column: usize::from(at.column),
        }
    }

    pub(super) fn push(
        &mut self,
        kind: Kind,
        at: At,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.push_at(kind, self.place(at), message, remedy);
    }

    pub(super) fn push_at(
        &mut self,
        kind: Kind,
        place: Place,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let fatal = match kind {
            Kind::Error => true,
            Kind::Note => false,
            Kind::Refused | Kind::Dropped | Kind::Ignored => !self.lenient,
        };
        let finding = Finding {
            place,
            kind,
            message: message.into(),
            remedy: remedy.into(),
        };
        // An entry that is several services is read several times.
        if fatal && !self.errors.contains(&finding) {
            if self.errors.len() < LISTED {
                self.errors.push(finding);
            } else {
                self.more_errors += 1;
            }
        } else if !fatal && self.findings.len() < KEPT {
            self.findings.push(finding);
        }
    }

    pub(super) fn error(&mut self, at: At, message: impl Into<String>, remedy: impl Into<String>) {
        self.push(Kind::Error, at, message, remedy);
    }

    /// The findings, or all errors as one failure.
    pub(super) fn finish(mut self) -> Result<Vec<Finding>, Failure> {
        self.findings.sort_by(|a, b| a.place.cmp(&b.place));
        self.findings.dedup();
        if self.errors.is_empty() {
            return Ok(self.findings);
        }
        self.errors.sort_by(|a, b| a.place.cmp(&b.place));
        let count = self.errors.len() + self.more_errors;
        if let [only] = &self.errors[..]
            && count == 1
        {
            return Err(Failure::new(Exit::CONFIG, only.to_string()));
        }
        let mut message = format!("{count} errors in the configuration:");
        for error in &self.errors {
            message.push_str(&format!("\n  {error}"));
        }
        if self.more_errors > 0 {
            message.push_str(&format!("\n  and {} more", self.more_errors));
        }
        Err(Failure::new(Exit::CONFIG, message))
    }
}

/// A map whose keys a section declares. A key that is null is as good as absent, unless its reader says otherwise.
pub(super) struct Map<'t, 'a> {
    section: &'static Section,
    entries: &'t [Entry<'a>],
    pub(super) at: At,
    pub(super) path: Rc<str>,
}

impl<'t, 'a> Map<'t, 'a> {
    /// Reads `node`, which stands at `path`, as a map of `section`, and reports keys that do not belong there.
    pub(super) fn open(
        context: &mut Context,
        section: &'static Section,
        node: &'t Node<'a>,
        path: impl Into<Rc<str>>,
    ) -> Option<Self> {
        let path = path.into();
        let Value::Map(entries) = &node.value else {
            if !node.is_null() {
                let message = format!("`{path}` is {}, not a map", node.kind());
                context.error(node.at, message, "give it keys");
                return None;
            }
            return Some(Self {
                section,
                entries: &[],
                at: node.at,
                path,
            });
        };
        for entry in entries {
            if !section.keys.iter().any(|key| key.name == entry.key) {
                let message = format!("unknown key `{}`", join(&path, &entry.key));
                context.push(
                    Kind::Ignored,
                    entry.at,
                    message,
                    section.instead_of(&entry.key),
                );
            }
        }
        Some(Self {
            section,
            entries,
            at: node.at,
            path,
        })
    }

    fn entry(&self, key: &'static str) -> Option<&'t Entry<'a>> {
        debug_assert!(
            self.section.keys.iter().any(|known| known.name == key),
            "{} does not declare {key}",
            self.section.path
        );
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// The value of a key, null or not.
    pub(super) fn raw(&self, key: &'static str) -> Option<&'t Node<'a>> {
        self.entry(key).map(|entry| &entry.node)
    }

    /// The value of a key that is not null.
    pub(super) fn get(&self, key: &'static str) -> Option<&'t Node<'a>> {
        self.raw(key).filter(|node| !node.is_null())
    }

    /// Where the key is, or else the map: for an error about it.
    pub(super) fn at(&self, key: &'static str) -> At {
        self.entry(key).map_or(self.at, |entry| entry.at)
    }

    /// The full name of a key.
    pub(super) fn name(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// The map under a key.
    pub(super) fn map(
        &self,
        context: &mut Context,
        key: &'static str,
        section: &'static Section,
    ) -> Option<Map<'t, 'a>> {
        Map::open(context, section, self.get(key)?, self.name(key))
    }

    /// The items of a list; a single value is an error.
    pub(super) fn list(&self, context: &mut Context, key: &'static str) -> &'t [Node<'a>] {
        match self.get(key) {
            None => &[],
            Some(Node {
                value: Value::List(items),
                ..
            }) => items,
            Some(node) => {
                let message = format!("`{}` is {}, not a list", self.name(key), node.kind());
                context.error(node.at, message, "write it as a list");
                &[]
            }
        }
    }

    /// The text of a key, with control characters refused: nothing that is configured has any.
    pub(super) fn text(&self, context: &mut Context, key: &'static str) -> Option<&'t str> {
        let node = self.get(key)?;
        match node.text() {
            Some(text) if text.contains(|c: char| c.is_control()) => {
                let message = format!("`{}` holds a control character", self.name(key));
                context.error(node.at, message, "write it on one line");
                None
            }
            Some(text) => Some(text),
            None => {
                let message = format!("`{}` is {}, not text", self.name(key), node.kind());
                context.error(node.at, message, "write one value");
                None
            }
        }
    }

    /// The text of a key that must be there.
    pub(super) fn required(&self, context: &mut Context, key: &'static str) -> Option<&'t str> {
        if self.get(key).is_none() {
            self.missing(context, key);
        }
        self.text(context, key)
    }

    /// Reports a key that must be there.
    pub(super) fn missing(&self, context: &mut Context, key: &'static str) {
        let message = format!("`{}` is missing", self.name(key));
        let remedy = self
            .section
            .keys
            .iter()
            .find(|known| known.name == key)
            .map_or("add it", |known| known.doc);
        context.error(self.at, message, remedy);
    }

    /// A boolean as Ruby has it: null is false, and quoted text is true whatever it says.
    pub(super) fn flag(&self, context: &mut Context, key: &'static str, default: bool) -> bool {
        let Some(node) = self.raw(key) else {
            return default;
        };
        let at = node.at;
        let Value::Scalar(text, style) = &node.value else {
            let message = format!("`{}` is {}, not true or false", self.name(key), node.kind());
            context.error(at, message, "write true or false");
            return default;
        };
        match (text.to_ascii_lowercase().as_str(), style) {
            ("true" | "yes" | "on", _) => true,
            ("false" | "no" | "off" | "~" | "null" | "", Style::Plain) => false,
            ("false" | "no" | "off", _) => {
                let message = format!(
                    "`{}` is the text \"{text}\", which Synapse takes as true",
                    self.name(key)
                );
                context.push(Kind::Ignored, at, message, "leave the quotes out");
                true
            }
            _ => {
                let message = format!("`{}` is `{text}`", self.name(key));
                context.error(at, message, "write true or false");
                default
            }
        }
    }

    /// A number within a range; text that is one is accepted, as Synapse does.
    pub(super) fn number<N>(
        &self,
        context: &mut Context,
        key: &'static str,
        range: RangeInclusive<N>,
    ) -> Option<N>
    where
        N: FromStr + PartialOrd + fmt::Display,
    {
        let text = self.text(context, key)?;
        let digits = match text.contains('_') {
            true => Cow::Owned(text.replace('_', "")),
            false => Cow::Borrowed(text.trim()),
        };
        match digits.parse() {
            Ok(number) if range.contains(&number) => Some(number),
            _ => {
                let message = format!("`{}` is `{text}`", self.name(key));
                let remedy = format!("write a number from {} to {}", range.start(), range.end());
                context.error(self.value_at(key), message, remedy);
                None
            }
        }
    }

    /// A duration: a bare number is seconds.
    pub(super) fn duration(&self, context: &mut Context, key: &'static str) -> Option<Duration> {
        let text = self.text(context, key)?;
        match hostkit::units::parse_duration(text) {
            Ok(duration) => Some(duration),
            Err(why) => {
                let message = format!("`{}` is `{text}`", self.name(key));
                context.error(self.value_at(key), message, why);
                None
            }
        }
    }

    /// Where the value of a key begins, or else the map.
    pub(super) fn value_at(&self, key: &'static str) -> At {
        self.raw(key).map_or(self.at, |node| node.at)
    }
}

/// The name of a key inside what stands at `path`.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}
