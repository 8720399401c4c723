//! What Synapse's users have runs as it is, and the migration report says what Synapse did not do of it.

use std::path::{Path, PathBuf};

use super::verbs::{Said, ask};
use hostkit_tests::workspace;

fn fixtures() -> PathBuf {
    workspace().join("tests/fixtures/synapse")
}

fn check(file: &Path, more: &[&str]) -> Said {
    let file = file.to_str().unwrap();
    ask(&[&["--check", "-c", file], more].concat(), &[])
}

#[test]
fn every_example_is_taken_as_it_is() {
    let mut seen = 0;
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let path = entry.unwrap().path();
        let file = match path.extension().and_then(|extension| extension.to_str()) {
            Some("yaml" | "json") => path,
            _ if path.ends_with("service-conf-dir") => path.join("synapse.yaml"),
            _ => continue,
        };
        seen += 1;
        let said = check(&file, &[]);
        assert_eq!(
            (said.code, said.err.as_str()),
            (0, ""),
            "{}",
            file.display()
        );
        let first = said.out.lines().next().unwrap();
        assert!(
            first.ends_with("service") || first.ends_with("services"),
            "{}",
            said.out
        );
        assert_eq!(
            check(&file, &["--lenient"]).out,
            said.out,
            "lenient finds nothing more"
        );
    }
    assert!(seen >= 9, "{seen} examples");
}

#[test]
fn the_report_names_all_that_synapse_did_not_do() {
    let file = fixtures().join("lenient/dropped.yaml");
    let refused = check(&file, &[]);
    assert_eq!(refused.code, 78);
    assert_eq!(refused.out, "");
    let report = check(&file, &["--lenient"]);
    assert_eq!((report.code, report.err.as_str()), (0, ""));
    // Line and words of each, in both.
    for (line, word) in [
        (9, "matches"),
        (10, "colour"),
        (17, "bogus directive"),
        (20, "balance roundrobin"),
        (22, "default_backend elsewhere"),
        (23, "option no-such-option"),
        (24, "nginx"),
        (28, "nonsense"),
        (32, "reload_comand"),
    ] {
        for text in [&refused.err, &report.out] {
            let place = format!("dropped.yaml:{line}:");
            assert!(
                text.lines()
                    .any(|found| found.contains(&place) && found.contains(word)),
                "{place} {word}\n{text}"
            );
        }
    }
    assert!(
        report.out.contains("did you mean `reload_command`?"),
        "{}",
        report.out
    );
    // The summary of what is left follows.
    assert!(report.out.contains("1 service\n"), "{}", report.out);
}

#[test]
fn what_is_not_here_is_an_error_even_so() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("synapse.yaml");
    for (service, word) in [
        ("discovery: {method: docker}", "docker"),
        (
            "discovery: {method: zookeeper_poll, path: /a, hosts: [z]}",
            "zookeeper",
        ),
        ("discovery: {method: base, path: <%= 1 %>}", "ERB"),
    ] {
        let text = format!("services:\n  web:\n    {service}\nhaproxy: {{do_writes: false}}\n");
        std::fs::write(&file, text).unwrap();
        let said = check(&file, &["--lenient"]);
        assert_eq!(said.code, 78, "{service}");
        assert!(
            said.err.contains("synapse.yaml:3:") && said.err.contains(word),
            "{}",
            said.err
        );
    }
}
