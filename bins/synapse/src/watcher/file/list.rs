//! Reading a list of servers from a YAML or JSON file, as a whole or not at all.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use hostkit::file_watcher::read_text;
use serde::Deserialize;

use crate::model::{Backend, Reject, Source, shown};
use crate::watcher::fields::Fields;

/// A larger file is not a list of servers (bytes).
pub(super) const LIMIT: u64 = 8 << 20;

/// What a list holds, and what of it was refused.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct List {
    /// In the order of the file.
    pub(super) backends: Vec<Arc<Backend>>,
    /// Entries that cannot be backends.
    pub(super) rejects: Vec<Reject>,
}

/// One entry, as `default_servers` have them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    host: String,
    port: u16,
    name: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    weight: Option<u64>,
    haproxy_server_options: Option<String>,
    id: Option<u64>,
}

/// Reads the list in `path`.
///
/// # Errors
/// The file cannot be read, changes meanwhile, is larger than [`LIMIT`] or is no list of servers: one line that names
/// the file and, where there is one, line and column.
pub(super) fn read(path: &Path) -> Result<List, String> {
    let text = read_text(path, LIMIT)?;
    let source = Source::from(path.display().to_string());
    let mut list = List::default();
    for entry in parse(path, &text)? {
        match entry.backend(&source) {
            Ok(backend) => list.backends.push(Arc::new(backend)),
            Err(reject) => list.rejects.push(reject),
        }
    }
    Ok(list)
}

impl Entry {
    fn backend(self, source: &Source) -> Result<Backend, Reject> {
        let fields = Fields {
            name: self.name,
            weight: self.weight,
            options: self.haproxy_server_options,
            labels: self.labels,
            server_id: None,
        };
        let mut backend = fields.put_on(Backend::new(&self.host, self.port, source.clone())?)?;
        backend.id = self.id;
        Ok(backend)
    }
}

/// The entries of a JSON file (by its name) or a YAML one. A file without a value is a half-written one: an empty list
/// is `[]`.
fn parse(path: &Path, text: &str) -> Result<Vec<Entry>, String> {
    let path = path.display();
    if path.to_string().ends_with(".json") {
        return serde_json::from_str(text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            let what = error.to_string();
            // The place stands in front already.
            let place = format!(" at line {line} column {column}");
            let what = what.strip_suffix(&place).unwrap_or(&what);
            format!("{path}:{line}:{column}: {}", shown(what))
        });
    }
    let entries: Option<Vec<Entry>> = serde_saphyr::from_str(text).map_err(|error| {
        let what = hostkit::config::message(&error);
        match error.location() {
            Some(at) => format!("{path}:{}:{}: {}", at.line(), at.column(), shown(&what)),
            None => format!("{path}:1:1: {}", shown(&what)),
        }
    })?;
    entries.ok_or_else(|| format!("{path}:1:1: no list: an empty one is `[]`"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Reason;

    fn list(name: &str, bytes: impl AsRef<[u8]>) -> Result<List, String> {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        read(&path).map_err(|why| why.replace(&format!("{}/", temp.path().display()), ""))
    }

    const FULL: &str = "\
- host: 10.0.0.1
  port: 80
  name: one
  labels: {az: a}
  weight: 7
  haproxy_server_options: backup
  id: 3
- {host: web.example.com, port: 81}
";

    #[test]
    fn a_value_that_names_a_line_is_shown_whole_and_the_place_once() {
        for (name, text, value) in [
            (
                "l.json",
                r#"[{"host": "h", "port": "x at line 3"}]"#,
                "x at line 3",
            ),
            ("l.yaml", "- {host: h, port: x at line 3}", "invalid"),
        ] {
            let why = list(name, text).unwrap_err();
            assert!(why.starts_with(&format!("{name}:1:")), "{why}");
            assert!(why.contains(value), "{why}");
            assert!(!why.contains("column"), "{why}");
        }
    }

    #[test]
    fn yaml_and_json_have_the_keys_of_default_servers() {
        let yaml = list("l.yaml", FULL).unwrap();
        let json = list(
            "l.json",
            "[\n\t{\"host\": \"10.0.0.1\", \"port\": 80, \"name\": \"one\", \"labels\": {\"az\": \"a\"}, \"weight\": 7,\
             \n\t\"haproxy_server_options\": \"backup\", \"id\": 3},\n\t{\"host\": \"web.example.com\", \"port\": 81}\n]",
        )
        .unwrap();
        let plain = |list: List| -> Vec<Backend> {
            list.backends
                .into_iter()
                .map(|backend| Backend {
                    source: "".into(),
                    ..Backend::clone(&backend)
                })
                .collect()
        };
        let backends = plain(yaml);
        assert_eq!(backends[0].rare.labels["az"], "a");
        assert_eq!((backends[0].id, backends[0].weight), (Some(3), Some(7)));
        assert_eq!(backends[1].endpoint(), "web.example.com:81");
        assert_eq!(backends, plain(json));
    }

    #[test]
    fn an_empty_list_is_written_as_one() {
        assert_eq!(list("l.yaml", "[]\n"), Ok(List::default()));
        assert_eq!(list("l.json", "[]"), Ok(List::default()));
        for half in ["", "\n", "# written soon\n", "---\n"] {
            let why = list("l.yaml", half).unwrap_err();
            assert!(why.starts_with("l.yaml:1:1: "), "{why}");
        }
        assert!(list("l.json", "").is_err());
    }

    #[test]
    fn what_is_wrong_is_named_with_line_and_column() {
        let cases: [(&str, &[u8], &str); 7] = [
            ("l.yaml", b"- host: a\n  prot: 1\n", "l.yaml:2:3: "),
            ("l.yaml", b"- host: a\n  port: x\n", "l.yaml:2:9: "),
            ("l.yaml", b"- host: a\n  port: 70000\n", "l.yaml:2:9: "),
            ("l.yaml", b"- [", "l.yaml:"),
            ("l.yaml", b"host: a\n", "l.yaml:1:"),
            ("l.json", b"[\n {\"host\": \"a\",}]", "l.json:2:"),
            ("l.yaml", b"- host: a\n  n\xff", "l.yaml:2:4: not UTF-8"),
        ];
        for (name, bytes, place) in cases {
            let why = list(name, bytes).unwrap_err();
            assert!(why.starts_with(place), "{why}");
            assert!(!why.contains('\n'), "{why}");
        }
    }

    #[test]
    fn an_entry_that_cannot_be_a_backend_does_not_spoil_the_others() {
        let list = list(
            "l.yaml",
            "- {host: a, port: 0}\n- {host: \"a b\", port: 1}\n- {host: a, port: 1, name: \"x y\"}\n- {host: a, port: 2}\n",
        )
        .unwrap();
        let reasons: Vec<Reason> = list.rejects.iter().map(|reject| reject.reason).collect();
        assert_eq!(reasons, [Reason::Port, Reason::Host, Reason::Unsafe]);
        assert_eq!(list.backends.len(), 1);
    }

    #[test]
    fn a_file_of_more_than_8_mib_is_not_parsed() {
        let mut large = FULL.to_owned();
        large.push_str(&"#".repeat(LIMIT as usize));
        let why = list("l.yaml", large).unwrap_err();
        assert!(why.contains("larger than 8 MiB"), "{why}");
    }

    #[test]
    fn what_is_not_a_file_is_not_waited_for() {
        let temp = tempfile::tempdir().unwrap();
        let fifo = temp.path().join("fifo");
        let status = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(status.unwrap().success());
        assert!(read(&fifo).unwrap_err().ends_with("is not a regular file"));
        assert!(
            read(temp.path())
                .unwrap_err()
                .contains("is not a regular file")
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_say_more_than_a_line(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for name in ["l.yaml", "l.json"] {
                if let Err(why) = list(name, &bytes) {
                    prop_assert!(!why.contains('\n'), "{}", why);
                }
            }
        }
    }
}
