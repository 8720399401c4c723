//! Configuration files: `/etc/hostkit/<tool>.yaml` and the drop-ins beside it.
//!
//! Owns finding, parsing and merging, and the places of errors. Keys and values are declared by the tool.

mod files;
pub mod value;

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_saphyr::{MessageFormatter as _, UserMessageFormatter};

use crate::suggestion::nearest;
use crate::{Exit, Failure};

pub use files::{ConfigFiles, FileSetting};

/// Where the files of all tools are.
const DIRECTORY: &str = "/etc/hostkit";
/// The largest configuration file (bytes).
const LIMIT: u64 = 1 << 20;

/// Reads the configuration of `tool`. Drop-ins (`<tool>.d/*.yaml`) follow the main file in byte order: maps merge,
/// scalars and lists replace; the user's own file `personal` comes last. `explicit` (the `--config` flag) replaces all
/// of them. A missing file is an empty one, unless it was named by `explicit`.
///
/// # Errors
/// A file cannot be read, is not YAML, or has a key that is not a field of `T` (exit 78): the message names file, line,
/// column, the key and the nearest valid one.
pub fn load<T: DeserializeOwned>(
    tool: &str,
    explicit: Option<&Path>,
    personal: Option<&Path>,
) -> Result<T, Failure> {
    ConfigFiles::read(tool, explicit, personal)?.structured()
}

/// The files that [`load`] reads, the weakest first.
fn files(
    directory: &Path,
    tool: &str,
    explicit: Option<&Path>,
    personal: Option<&Path>,
) -> Vec<PathBuf> {
    if let Some(file) = explicit {
        return vec![file.to_owned()];
    }
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
    files
}

fn merge<T: DeserializeOwned>(texts: &[(PathBuf, String)]) -> Result<T, Failure> {
    let mut merged = Value::Object(serde_json::Map::new());
    for (file, text) in texts {
        // Once as `T`, whose errors know line and column; once as plain values, which can be merged.
        let parsed: Result<T, _> = serde_saphyr::from_str(text);
        let value: Result<Value, _> = serde_saphyr::from_str(text);
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
    let unreadable = |error: io::Error| {
        let remedy = match error.kind() {
            io::ErrorKind::InvalidInput => "write it to a regular file: it is read more than once",
            io::ErrorKind::FileTooLarge => "a configuration file has at most 1 MiB",
            _ => "name a file that exists and is readable",
        };
        let text = format!("cannot read configuration file {}", file.display());
        Failure::new(Exit::CONFIG, text)
            .remedy(remedy)
            .because(error)
    };
    let text = crate::file::read(file, LIMIT).map_err(unreadable)?;
    String::from_utf8(text).map_err(|error| unreadable(io::Error::other(error)))
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

/// The message of an error, in one line and without its place.
#[must_use]
pub fn message(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error;
    let text = match error.without_snippet() {
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("duplicate key `{key}`: remove one")
        }
        Error::InvalidScalar { ty, .. } if ty.starts_with(['u', 'i']) => {
            "invalid value: write a whole number".to_owned()
        }
        error => UserMessageFormatter.format_message(error).into_owned(),
    };
    text.replace(char::is_control, " ")
}

/// The failure for an invalid YAML file (exit 78): the message names file, line, column, key and the nearest valid key.
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
        return match nearest(field, expected.iter().copied()) {
            Some(key) => failure.remedy(format!("did you mean `{key}`?")),
            None => failure.remedy(format!("valid keys: {}", expected.join(", "))),
        };
    }
    let text = message(error);
    // A missing field has no place: the place is that of the whole map.
    let names_value = !matches!(
        error.without_snippet(),
        serde_saphyr::Error::SerdeMissingField { .. }
    );
    let key = error.location().and_then(|at| key_at(file, &at));
    let place = match key {
        Some(key) if names_value && !text.contains(&format!("`{key}`")) => {
            format!("{place}: `{key}`")
        }
        _ => place,
    };
    Failure::new(Exit::CONFIG, format!("{place}: {text}"))
}

/// The key whose value holds a place: before it on its line, or on one above that leaves its value to the next ones.
fn key_at(file: &Path, at: &serde_saphyr::Location) -> Option<String> {
    let text = read(file).ok()?;
    let above = usize::try_from(at.line()).ok()?.checked_sub(1)?;
    let line = text.lines().nth(above).unwrap_or_default();
    let before: String = line
        .chars()
        .take(usize::try_from(at.column()).ok()?.checked_sub(1)?)
        .collect();
    if let Some((key, _)) = last_key(&before) {
        return Some(key.to_owned());
    }
    let from_here = line.chars().skip(before.chars().count());
    let word: String = from_here.take_while(|c| is_plain(*c)).collect();
    if !word.is_empty() {
        let is_key = line.chars().nth(before.chars().count() + word.len()) == Some(':');
        return is_key.then_some(word);
    }
    let lines: Vec<&str> = text.lines().take(above).collect();
    let (key, value) = lines.iter().rev().find_map(|line| last_key(line))?;
    let is_open = value.is_empty() || value.starts_with(['[', '{', '"', '\'', '|', '>', '#']);
    is_open.then(|| key.to_owned())
}

/// The last key of a line and what follows it.
fn last_key(line: &str) -> Option<(&str, &str)> {
    let (before, after) = line.rsplit_once(": ").or_else(|| {
        let before = line.trim_end().strip_suffix(':')?;
        Some((before, ""))
    })?;
    let key = before.rsplit(|c| !is_plain(c)).next()?;
    (!key.is_empty() && !line.trim_start().starts_with('#')).then(|| (key, after.trim()))
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.".contains(c)
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
        #[serde(default, deserialize_with = "duration")]
        timeout: Option<std::time::Duration>,
        room: Option<u64>,
        #[serde(default)]
        names: Vec<String>,
        #[serde(default)]
        map: std::collections::BTreeMap<String, u32>,
    }

    fn duration<'de, D: serde::Deserializer<'de>>(
        from: D,
    ) -> Result<Option<std::time::Duration>, D::Error> {
        value::parsed(from, crate::units::parse_timeout)
    }

    fn tree(files: &[(&str, &str)]) -> TempDir {
        let temp = TempDir::new().unwrap();
        temp.child("t.d").create_dir_all().unwrap();
        for (name, text) in files {
            temp.child(name).write_str(text).unwrap();
        }
        temp
    }

    fn load_from(directory: &Path) -> Result<Raw, Failure> {
        ConfigFiles::parse(&files(directory, "t", None, None))?.structured()
    }

    #[test]
    fn missing_files_are_an_empty_configuration() {
        let temp = tree(&[]);
        assert_eq!(load_from(temp.path()).unwrap().cache_dir, None);
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
        let raw = load_from(temp.path()).unwrap();
        assert_eq!(raw.cache_dir.as_deref(), Some("/c"));
        let read_files = ConfigFiles::parse(&files(temp.path(), "t", None, None)).unwrap();
        for (key, line) in [("cache-dir", "20.yaml:2"), ("names", "10.yaml:1")] {
            let setting = read_files.get(key).unwrap();
            assert!(setting.line().ends_with(line), "{key}: {setting:?}");
        }
        assert_eq!(raw.names, ["z"]);
        assert_eq!(
            raw.map.into_iter().collect::<Vec<_>>(),
            [("one".into(), 1), ("two".into(), 22)]
        );
    }

    #[test]
    fn unknown_key_is_an_error_with_place_and_nearest_key() {
        let temp = tree(&[("t.yaml", "max-size: 1G\ncache-dri: /a\n")]);
        let failure = load_from(temp.path()).unwrap_err();
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
        let text = load_from(temp.path()).unwrap_err().to_string();
        assert!(text.contains("valid keys: cache-dir, max-size"), "{text}");
    }

    #[test]
    fn invalid_value_is_an_error_with_its_place() {
        for (value, says) in [
            (
                "timeout: soon",
                "`timeout`: invalid value `soon`: unknown unit",
            ),
            (
                "{timeout: 0}",
                "`timeout`: invalid value `0`: a timeout of 0",
            ),
            // The message is not cut off at words that look like the place.
            ("timeout: soon at line 3", "invalid value `soon at line 3`"),
            (
                "timeout: [1]",
                "`timeout`: invalid type: sequence, expected a text",
            ),
            ("names: [", "`names`: "),
            (
                "map: {one: some}",
                "`one`: invalid value: write a whole number",
            ),
        ] {
            let temp = tree(&[("t.yaml", &format!("# A comment.\n\n{value}\n"))]);
            let text = load_from(temp.path()).unwrap_err().to_string();
            assert!(text.contains("t.yaml:3:"), "{text}");
            assert!(text.contains(says), "{text}");
        }
        let temp = tree(&[
            ("t.yaml", "timeout:\nroom: 1536\n"),
            ("t.d/1.yaml", "timeout: 250ms\n"),
        ]);
        let raw = load_from(temp.path()).unwrap();
        assert_eq!(raw.timeout, Some(std::time::Duration::from_millis(250)));
        assert_eq!(raw.room, Some(1536));
    }

    #[test]
    fn error_in_a_value_of_several_lines_names_its_key() {
        for (text, says) in [
            (
                "names:\n  - x\nmap:\n  one: 1\nnames: [y]\n",
                "t.yaml:5:1: duplicate key `names`: remove one",
            ),
            ("names: [\n  x,\n  {y: z}\n]\n", "t.yaml:3:"),
            ("names:\n  # Ours.\n  - [x]\n", "t.yaml:3:5: `names`"),
            ("cache-dir: /a\nroom: [\n", "`room`"),
            ("cache-dir: /a\n- x\n", "t.yaml:2:"),
        ] {
            let temp = tree(&[("t.yaml", text)]);
            let failure = load_from(temp.path()).unwrap_err().to_string();
            assert!(failure.contains(says), "{failure}");
            assert!(
                !failure.contains("`cache-dir`") && !failure.contains("Policy"),
                "{failure}"
            );
        }
    }

    #[test]
    fn file_over_the_limit_is_refused() {
        use std::os::fd::AsRawFd as _;
        assert!(load::<Raw>("t", Some(Path::new("/dev/null")), None).is_ok());
        let temp = tree(&[("long.yaml", &" ".repeat(LIMIT as usize + 1))]);
        let (reader, _writer) = std::io::pipe().unwrap();
        let pipe = PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
        for (path, says) in [
            ("/dev/zero".into(), "write it to a regular file"),
            (pipe, "write it to a regular file"),
            (temp.path().join("long.yaml"), "has at most 1 MiB"),
        ] {
            let failure = load::<Raw>("t", Some(&path), None).unwrap_err().to_string();
            assert!(failure.contains(says), "{failure}");
            assert!(failure.contains(path.to_str().unwrap()), "{failure}");
        }
    }

    #[test]
    fn missing_explicit_file_is_an_error() {
        let failure = load::<Raw>("t", Some(Path::new("/nowhere/t.yaml")), None).unwrap_err();
        let text = failure.to_string();
        assert!(text.contains("/nowhere/t.yaml: name a file"), "{text}");
    }
}
