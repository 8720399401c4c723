//! Whole configurations: files in, settings or errors out.

use std::path::{Path, PathBuf};

use super::*;

mod discovery;
mod every_key;
mod examples;
mod generated;
mod haproxy;
mod services;
mod yaml;

/// What `text` says, as a file of its own.
fn load_text(text: &str, lenient: bool) -> Result<(Settings, Vec<Finding>), Failure> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("synapse.yaml");
    std::fs::write(&file, text).unwrap();
    load(&only(file), lenient)
}

fn only(file: PathBuf) -> Sources {
    Sources {
        file: Some(file),
        host: "lb1.example.com".to_owned(),
        ..Sources::default()
    }
}

const HAPROXY: &str = "
haproxy:
  global: [daemon]
  defaults: [mode http]
  config_file_path: /etc/haproxy/haproxy.cfg
  socket_file_path: /run/haproxy.sock
  reload_command: 'true'
";

/// Settings of these services, under a plain `haproxy`.
fn services(text: &str) -> Vec<Arc<Service>> {
    let (settings, _) = load_text(&format!("services:\n{text}\n{HAPROXY}"), false).unwrap();
    settings.services
}

/// The one error of these services: place within them, message and remedy.
fn error(text: &str) -> String {
    error_of(&format!("services:\n{text}\n{HAPROXY}"))
}

/// The error of a whole file, without the directory.
fn error_of(text: &str) -> String {
    let failure = load_text(text, false).unwrap_err();
    assert_eq!(failure.exit(), Exit::CONFIG);
    let text = failure.to_string();
    let mut shown = String::new();
    for line in text.lines() {
        let line = match line.find("synapse.yaml:") {
            Some(at) => &line[at..],
            None => line,
        };
        shown.push_str(line);
        shown.push('\n');
    }
    shown.trim_end().to_owned()
}

/// What lenient reading makes of these services, and the kinds of what it finds.
fn lenient(text: &str) -> (Vec<Arc<Service>>, Vec<Kind>) {
    let (settings, findings) = load_text(&format!("services:\n{text}\n{HAPROXY}"), true).unwrap();
    let kinds = findings.iter().map(|finding| finding.kind).collect();
    (settings.services, kinds)
}

fn texts(lines: &[crate::settings::Line]) -> Vec<&str> {
    lines.iter().map(|line| line.text.as_str()).collect()
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/synapse")
}
