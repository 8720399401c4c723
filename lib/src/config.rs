//! Configuration files: `/etc/hostkit/<tool>.yaml` and the drop-ins beside it, read into one raw structure.
//!
//! Owns finding, parsing and merging. What the values mean is the tool's second stage.

pub mod value;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_saphyr::{DefaultMessageFormatter, MessageFormatter as _};

use crate::{Exit, Failure};

/// A configuration file larger than this is not one (bytes).
const LIMIT: u64 = 1 << 20;

/// Reads the configuration of `tool`. Drop-ins (`<tool>.d/*.yaml`) follow the main file in byte order: maps merge,
/// scalars and lists replace; the user's own file `personal` comes last. `explicit` (the `--config` flag) replaces all
/// of them. A missing file is an empty one, unless it was named by `explicit`.
///
/// # Errors
/// A file cannot be read, is not YAML, or has a key that `T` does not know (exit 78): the message names file, line,
/// column, the key and the nearest valid one.
pub fn load<T: DeserializeOwned>(
    tool: &str,
    explicit: Option<&Path>,
    personal: Option<&Path>,
) -> Result<T, Failure> {
    match explicit {
        Some(file) => merge::<T>(&[file.to_owned()]),
        None => load_from(Path::new("/etc/hostkit"), tool, personal),
    }
}

fn load_from<T: DeserializeOwned>(
    directory: &Path,
    tool: &str,
    personal: Option<&Path>,
) -> Result<T, Failure> {
    let main = directory.join(format!("{tool}.yaml"));
    let mut files: Vec<PathBuf> = main.exists().then_some(main).into_iter().collect();
    let drop_ins = directory.join(format!("{tool}.d"));
    if let Ok(entries) = std::fs::read_dir(&drop_ins) {
        let mut found: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "yaml")
            })
            .collect();
        found.sort();
        files.extend(found);
    }
    files.extend(personal.filter(|file| file.exists()).map(Path::to_owned));
    merge(&files)
}

fn merge<T: DeserializeOwned>(files: &[PathBuf]) -> Result<T, Failure> {
    let mut merged = Value::Object(serde_json::Map::new());
    for file in files {
        let text = read(file)?;
        // Once as `T`, whose errors know line and column; once as plain values, which can be merged.
        let parsed: Result<T, _> = serde_saphyr::from_str(&text);
        let value: Result<Value, _> = serde_saphyr::from_str(&text);
        match (parsed, value) {
            (_, Ok(Value::Null)) => {}
            (Ok(_), Ok(value)) => overlay(&mut merged, value),
            (Err(error), _) | (_, Err(error)) => return Err(explain(file, &error)),
        }
    }
    serde_json::from_value(merged).map_err(|error| {
        Failure::new(
            Exit::CONFIG,
            format!("configuration does not fit together: {error}"),
        )
    })
}

fn read(file: &Path) -> Result<String, Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::new(
            Exit::CONFIG,
            format!("cannot read configuration file {}", file.display()),
        )
        .because(error)
    };
    let length = std::fs::metadata(file).map_err(unreadable)?.len();
    if length > LIMIT {
        return Err(Failure::new(
            Exit::CONFIG,
            format!("{} is {length} bytes", file.display()),
        )
        .remedy("a configuration file has at most 1 MiB"));
    }
    std::fs::read_to_string(file).map_err(unreadable)
}

fn overlay(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                overlay(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

/// What an error says, in one line and without the place, which its reader puts in front.
#[must_use]
pub fn message(error: &serde_saphyr::Error) -> String {
    let text = DefaultMessageFormatter.format_message(error.without_snippet());
    text.replace(char::is_control, " ")
}

/// What is wrong with a YAML file (exit 78): the message names file, line, column, the key and the nearest valid one.
#[must_use]
pub fn explain(file: &Path, error: &serde_saphyr::Error) -> Failure {
    let place = match error.location() {
        Some(at) => format!("{}:{}:{}", file.display(), at.line(), at.column()),
        None => file.display().to_string(),
    };
    if let serde_saphyr::Error::SerdeUnknownField {
        field, expected, ..
    } = error.without_snippet()
    {
        let failure = Failure::new(Exit::CONFIG, format!("{place}: unknown key `{field}`"));
        return match nearest(field, expected) {
            Some(key) => failure.remedy(format!("did you mean `{key}`?")),
            None => failure.remedy(format!("the keys are {}", expected.join(", "))),
        };
    }
    let text = message(error);
    let place = match error.location().and_then(|at| key_at(file, &at)) {
        Some(key) => format!("{place}: `{key}`"),
        None => place,
    };
    Failure::new(Exit::CONFIG, format!("{place}: {text}"))
}

/// The key whose value stands at a place, on the same line.
fn key_at(file: &Path, at: &serde_saphyr::Location) -> Option<String> {
    let text = read(file).ok()?;
    let line = text
        .lines()
        .nth(usize::try_from(at.line()).ok()?.checked_sub(1)?)?;
    let before: String = line
        .chars()
        .take(usize::try_from(at.column()).ok()?.checked_sub(1)?)
        .collect();
    let key = before.trim_end().strip_suffix(':')?;
    let key = key
        .rsplit(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)))
        .next()?;
    (!key.is_empty()).then(|| key.to_owned())
}

fn nearest<'a>(wrong: &str, keys: &[&'a str]) -> Option<&'a str> {
    keys.iter()
        .map(|key| (strsim::jaro_winkler(wrong, key), *key))
        .filter(|(likeness, _)| *likeness > 0.85)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, key)| key)
}

#[cfg(test)]
mod tests {
    use assert_fs::TempDir;
    use assert_fs::prelude::*;

    use super::*;

    #[derive(Debug, serde::Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    struct Raw {
        cache_dir: Option<String>,
        max_size: Option<String>,
        #[serde(default, deserialize_with = "value::timeout")]
        timeout: Option<std::time::Duration>,
        #[serde(default, deserialize_with = "value::size")]
        room: Option<u64>,
        #[serde(default)]
        names: Vec<String>,
        #[serde(default)]
        map: std::collections::BTreeMap<String, u32>,
    }

    fn tree(files: &[(&str, &str)]) -> TempDir {
        let temp = TempDir::new().unwrap();
        temp.child("t.d").create_dir_all().unwrap();
        for (name, text) in files {
            temp.child(name).write_str(text).unwrap();
        }
        temp
    }

    #[test]
    fn nothing_there_is_an_empty_configuration() {
        let temp = tree(&[]);
        assert_eq!(
            load_from::<Raw>(temp.path(), "t", None).unwrap().cache_dir,
            None
        );
    }

    #[test]
    fn drop_ins_merge_maps_and_replace_lists_in_byte_order() {
        let temp = tree(&[
            (
                "t.yaml",
                "cache-dir: /a\nnames: [x, y]\nmap: {one: 1, two: 2}\n",
            ),
            ("t.d/20.yaml", "map: {two: 22}\ncache-dir: /c\n"),
            ("t.d/10.yaml", "names: [z]\ncache-dir: /b\n"),
            ("t.d/ignored.txt", "nonsense: ["),
            ("t.d/30-empty.yaml", "# nothing\n"),
        ]);
        let raw: Raw = load_from(temp.path(), "t", None).unwrap();
        assert_eq!(raw.cache_dir.as_deref(), Some("/c"));
        assert_eq!(raw.names, ["z"]);
        assert_eq!(
            raw.map.into_iter().collect::<Vec<_>>(),
            [("one".into(), 1), ("two".into(), 22)]
        );
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place_and_the_nearest_one() {
        let temp = tree(&[("t.yaml", "max-size: 1G\ncache-dri: /a\n")]);
        let failure = load_from::<Raw>(temp.path(), "t", None).unwrap_err();
        let text = failure.to_string();
        assert_eq!(failure.exit(), Exit::CONFIG);
        assert!(
            text.contains("t.yaml:2:") && text.contains("cache-dri"),
            "{text}"
        );
        assert!(text.ends_with("did you mean `cache-dir`?"), "{text}");
    }

    #[test]
    fn unlike_key_is_not_suggested() {
        let temp = tree(&[("t.yaml", "endpoint-url: x\n")]);
        let text = load_from::<Raw>(temp.path(), "t", None)
            .unwrap_err()
            .to_string();
        assert!(text.contains("the keys are cache-dir, max-size"), "{text}");
    }

    #[test]
    fn bad_value_is_named_with_its_place() {
        for (value, says) in [
            (
                "timeout: soon",
                "`timeout`: invalid value `soon`: unknown unit",
            ),
            (
                "{timeout: 0}",
                "`timeout`: invalid value `0`: a timeout of 0",
            ),
            // What it says is not cut off at words that look like the place.
            ("timeout: soon at line 3", "invalid value `soon at line 3`"),
            ("timeout: [1]", "a text, a number or a boolean"),
            ("room: 1X", "`1X`: unknown unit"),
            ("room: -1.5", "`-1.5`: too large or negative"),
        ] {
            let temp = tree(&[("t.yaml", &format!("# A comment.\n\n{value}\n"))]);
            let text = load_from::<Raw>(temp.path(), "t", None)
                .unwrap_err()
                .to_string();
            assert!(text.contains("t.yaml:3:"), "{text}");
            assert!(text.contains(says), "{text}");
        }
        let temp = tree(&[
            ("t.yaml", "timeout:\nroom: 1.5K\n"),
            ("t.d/1.yaml", "timeout: 250ms\n"),
        ]);
        let raw: Raw = load_from(temp.path(), "t", None).unwrap();
        assert_eq!(raw.timeout, Some(std::time::Duration::from_millis(250)));
        assert_eq!(raw.room, Some(1536));
    }

    #[test]
    fn a_named_file_that_is_missing_is_an_error() {
        let failure = load::<Raw>("t", Some(Path::new("/nowhere/t.yaml")), None).unwrap_err();
        assert!(failure.to_string().contains("/nowhere/t.yaml"));
    }
}
