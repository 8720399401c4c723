//! The configuration files of a tool as a layer of settings: each key of the outermost map with its texts and its place.
//!
//! Owns reading, merging and places. Which keys there are, and what a text means, is the declaration's (`cli::settings`).

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::Value;
use serde_saphyr::{Location, Spanned};

use super::{DIRECTORY, explain, files, merge, read};
use crate::suggestion::nearest;
use crate::{Exit, Failure};

/// The configuration files of a tool, read once.
#[derive(Debug, Clone, Default)]
pub struct ConfigFiles {
    /// Path and text, the weakest first.
    texts: Vec<(PathBuf, String)>,
    settings: BTreeMap<String, FileSetting>,
}

/// What the files have for one key.
#[derive(Debug, Clone)]
pub struct FileSetting {
    file: PathBuf,
    key: Location,
    value: FileValue,
}

#[derive(Debug, Clone)]
enum FileValue {
    /// A key without a value sets nothing, and undoes what a weaker file sets.
    Empty,
    Scalar(SettingText),
    List(Vec<SettingText>),
    /// A map, or a list of something else than texts, for which the tool has a type of its own.
    Structure(Location),
}

/// One text and its place.
#[derive(Debug, Clone)]
pub(crate) struct SettingText {
    pub(crate) text: String,
    /// How a number or boolean is written, which is its value where a text is expected: `profile: 012345678901`.
    written: Option<String>,
    at: Location,
}

impl ConfigFiles {
    /// Reads the files of `tool`: see [`super::load`] for which those are.
    ///
    /// # Errors
    /// A file cannot be read or is not YAML (exit 78): the message names file, line and column.
    pub fn read(
        tool: &str,
        explicit: Option<&Path>,
        personal: Option<&Path>,
    ) -> Result<Self, Failure> {
        Self::parse(&files(Path::new(DIRECTORY), tool, explicit, personal))
    }

    pub(super) fn parse(files: &[PathBuf]) -> Result<Self, Failure> {
        let mut read_files = Self::default();
        for file in files {
            let text = read(file)?;
            // `off` stays a word.
            let options = serde_saphyr::options! { strict_booleans: true };
            let map: Option<SettingMap> = serde_saphyr::from_str_with_options(&text, options)
                .map_err(|error| explain(file, &error))?;
            for (key, value) in map.unwrap_or_default().0 {
                let setting = FileSetting {
                    file: file.clone(),
                    key: key.referenced,
                    value: FileValue::new(value, &text),
                };
                read_files.settings.insert(key.value, setting);
            }
            read_files.texts.push((file.clone(), text));
        }
        Ok(read_files)
    }

    /// Whether no file sets anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.settings.values().all(FileSetting::is_unset)
    }

    /// The setting of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&FileSetting> {
        self.settings.get(key).filter(|setting| !setting.is_unset())
    }

    /// The keys that have a type of their own. Maps of several files merge; scalars and lists replace.
    ///
    /// # Errors
    /// A value does not fit `T` (exit 78): the message names file, line, column and key.
    pub fn structured<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        merge(&self.texts)
    }

    /// Refuses the first key that is not one of `keys`.
    pub(crate) fn refuse_unknown(&self, keys: &[&str]) -> Result<(), Failure> {
        let unknown = self
            .settings
            .iter()
            .filter(|(key, _)| !keys.contains(&key.as_str()));
        let first = unknown.min_by_key(|(_, setting)| setting.key.line());
        let Some((key, setting)) = first else {
            return Ok(());
        };
        let failure = Failure::new(
            Exit::CONFIG,
            format!("{}: unknown key `{key}`", setting.place(&setting.key)),
        );
        Err(match nearest(key, keys.iter().copied()) {
            Some(key) => failure.remedy(format!("did you mean `{key}`?")),
            None => failure.remedy(format!("valid keys: {}", keys.join(", "))),
        })
    }
}

impl FileSetting {
    fn is_unset(&self) -> bool {
        matches!(self.value, FileValue::Empty)
    }

    /// `FILE:LINE`, for `--check` and for errors that are found only when the value is used.
    #[must_use]
    pub fn line(&self) -> String {
        format!("{}:{}", self.file.display(), self.key.line())
    }

    /// The texts of the value: those of a list as they are, a scalar split at `delimiter`. With `as_written` a number or
    /// boolean is the text that the file has.
    pub(crate) fn texts(
        &self,
        key: &str,
        is_list: bool,
        delimiter: Option<char>,
        as_written: bool,
    ) -> Result<Vec<SettingText>, Failure> {
        let expected = match is_list {
            true => "expected a list, or a text with commas",
            false => "expected one text, number or boolean",
        };
        let value_text = |part: &SettingText| match &part.written {
            Some(written) if as_written => SettingText {
                text: written.clone(),
                ..part.clone()
            },
            _ => part.clone(),
        };
        let texts = match &self.value {
            FileValue::Scalar(whole) => match delimiter {
                Some(delimiter) => {
                    let whole = value_text(whole);
                    let parts = whole.text.split(delimiter).map(str::trim);
                    let part = |part: &str| SettingText {
                        text: part.to_owned(),
                        written: None,
                        at: whole.at,
                    };
                    parts.map(part).collect()
                }
                None => vec![value_text(whole)],
            },
            FileValue::List(texts) if is_list => texts.iter().map(value_text).collect(),
            FileValue::List(texts) => {
                let at = texts.first().map_or(self.key, |first| first.at);
                return Err(self.error(&at, key, expected));
            }
            FileValue::Structure(at) => return Err(self.error(at, key, expected)),
            FileValue::Empty => Vec::new(),
        };
        match texts.iter().find(|part| part.text.trim().is_empty()) {
            Some(empty) => Err(self.error(
                &empty.at,
                key,
                "invalid empty value: write one, or remove the line",
            )),
            None => Ok(texts),
        }
    }

    /// The error of one of the texts of a value, or of the whole value.
    pub(crate) fn invalid(&self, key: &str, text: &str, why: &str) -> Failure {
        let at = match &self.value {
            FileValue::Scalar(whole) => whole.at,
            FileValue::List(texts) => texts
                .iter()
                .find(|part| part.text == text || part.written.as_deref() == Some(text))
                .map_or(self.key, |part| part.at),
            FileValue::Structure(at) => *at,
            FileValue::Empty => self.key,
        };
        let shown = crate::mask::mask_refused(text);
        // A reason may quote the value.
        let why = why.replace(text, &shown);
        let text = format!("invalid value `{}`: {why}", shown.escape_debug());
        self.error(&at, key, &text)
    }

    fn error(&self, at: &Location, key: &str, text: &str) -> Failure {
        Failure::new(Exit::CONFIG, format!("{}: `{key}`: {text}", self.place(at)))
    }

    fn place(&self, at: &Location) -> String {
        format!("{}:{}:{}", self.file.display(), at.line(), at.column())
    }
}

/// The outermost map.
#[derive(Default)]
struct SettingMap(Vec<(Spanned<String>, Spanned<ParsedValue>)>);

impl<'de> Deserialize<'de> for SettingMap {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct SettingMapVisitor;
        impl<'de> Visitor<'de> for SettingMapVisitor {
            type Value = SettingMap;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of settings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut settings = Vec::new();
                while let Some(setting) = map.next_entry()? {
                    settings.push(setting);
                }
                Ok(SettingMap(settings))
            }
        }
        from.deserialize_map(SettingMapVisitor)
    }
}

/// A value before its place is known.
enum ParsedValue {
    Empty,
    Scalar(String),
    /// A number or boolean, in one spelling.
    Typed(String),
    List(Vec<Spanned<ParsedValue>>),
    Structure,
}

impl FileValue {
    fn new(value: Spanned<ParsedValue>, source: &str) -> Self {
        let at = value.referenced;
        match value.value {
            ParsedValue::Empty => Self::Empty,
            ParsedValue::Structure => Self::Structure(at),
            ParsedValue::List(items) => {
                let place = items
                    .iter()
                    .find(|item| {
                        matches!(item.value, ParsedValue::List(_) | ParsedValue::Structure)
                    })
                    .map(|item| item.referenced);
                match place {
                    Some(at) => Self::Structure(at),
                    None => Self::List(
                        items
                            .into_iter()
                            .filter_map(|item| SettingText::new(item, source))
                            .collect(),
                    ),
                }
            }
            ParsedValue::Scalar(_) | ParsedValue::Typed(_) => {
                SettingText::new(value, source).map_or(Self::Empty, Self::Scalar)
            }
        }
    }
}

impl SettingText {
    fn new(value: Spanned<ParsedValue>, source: &str) -> Option<Self> {
        let written = match value.value {
            ParsedValue::Typed(_) => written(&value.defined, source),
            _ => None,
        };
        let text = match value.value {
            ParsedValue::Scalar(text) | ParsedValue::Typed(text) => text,
            ParsedValue::Empty => String::new(),
            ParsedValue::List(_) | ParsedValue::Structure => return None,
        };
        Some(Self {
            text,
            written,
            at: value.referenced,
        })
    }
}

/// The characters of a plain scalar. One with a tag has none of its own: `!!int "5"`.
fn written(at: &Location, source: &str) -> Option<String> {
    let span = at.span();
    let begin = usize::try_from(span.byte_offset()?).ok()?;
    let length = usize::try_from(span.byte_len()?).ok()?;
    let plain = source.get(begin..begin.checked_add(length)?)?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "+-._".contains(c);
    (!plain.is_empty() && plain.chars().all(is_plain)).then(|| plain.to_owned())
}

impl<'de> Deserialize<'de> for ParsedValue {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct ValueVisitor;
        impl<'de> Visitor<'de> for ValueVisitor {
            type Value = ParsedValue;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a number, a boolean, a list or a map")
            }
            fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
                Ok(ParsedValue::Empty)
            }
            fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
                Ok(ParsedValue::Empty)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(ParsedValue::Scalar(text.to_owned()))
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
                Ok(ParsedValue::Typed(value.to_string()))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
                Ok(ParsedValue::Typed(number.to_string()))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                Ok(ParsedValue::Typed(number.to_string()))
            }
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
                Ok(ParsedValue::Typed(number.to_string()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(ParsedValue::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                while map.next_entry::<Value, Value>()?.is_some() {}
                Ok(ParsedValue::Structure)
            }
        }
        from.deserialize_any(ValueVisitor)
    }
}
