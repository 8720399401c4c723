//! The table of proxy keywords, held against what the installed HAProxy says of each of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use synapse::keywords::{self, Section};

/// Keywords that HAProxy 2.6 does not have yet.
const NEWER: [&str; 11] = [
    "force-be-switch",
    "guid",
    "hash-preserve-affinity",
    "log-steps",
    "option accept-unsafe-violations-in-http-request",
    "option accept-unsafe-violations-in-http-response",
    "option forwarded",
    "option http-drop-request-trailers",
    "option http-drop-response-trailers",
    "quic-initial",
    "timeout client-hs",
];

/// Keywords that the manual gives to one side only and that HAProxy swallows on the other, where they do nothing.
const SWALLOWED: [&str; 26] = [
    "error-log-format",
    "external-check command",
    "external-check path",
    "hash-balance-factor",
    "http-check comment",
    "http-check connect",
    "http-check disable-on-404",
    "http-check expect",
    "http-check send",
    "http-check send-state",
    "http-check set-var",
    "http-reuse",
    "http-send-name-header",
    "ignore-persist",
    "load-server-state-from-file",
    "log-format",
    "log-format-sd",
    "option external-check",
    "option httplog",
    "option httpslog",
    "persist rdp-cookie",
    "stick-table",
    "timeout client-hs",
    "transparent",
    "unique-id-format",
    "unique-id-header",
];

/// What HAProxy says when a keyword does not belong where it stands, as opposed to what it says of arguments.
const REFUSALS: [&str; 9] = [
    "unknown keyword '",
    "unknown option '",
    "not allowed",
    "only allowed in",
    "only available in",
    "not available in",
    "capability",
    "not supported any",
    "doesn't exist anymore",
];

#[test]
fn haproxy_agrees_on_where_each_keyword_stands() {
    let Some(haproxy) =
        hostkit_tests::or_skip("proxy keywords", hostkit_tests::find_program("haproxy"))
    else {
        return;
    };
    let names: Vec<&str> = keywords::all().map(|keyword| keyword.name).collect();
    let mut wrong = Vec::new();
    for section in [Section::Defaults, Section::Frontend, Section::Backend] {
        let said = ask(&haproxy, section, &names);
        for keyword in keywords::all() {
            let refused = said.get(keyword.name);
            let known = !NEWER.contains(&keyword.name) || refused.is_none();
            let agreed = keyword.fits(section) == refused.is_none();
            if known && !agreed && !(refused.is_none() && SWALLOWED.contains(&keyword.name)) {
                wrong.push(format!(
                    "{} in {}: {refused:?}",
                    keyword.name,
                    section.word()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn haproxy_has_none_of_the_keywords_that_are_gone() {
    let Some(haproxy) =
        hostkit_tests::or_skip("proxy keywords", hostkit_tests::find_program("haproxy"))
    else {
        return;
    };
    let names: Vec<&str> = keywords::gone().collect();
    let said = ask(&haproxy, Section::Frontend, &names);
    let taken: Vec<&&str> = names
        .iter()
        .filter(|name| !said.contains_key(**name))
        .collect();
    assert!(taken.is_empty(), "{taken:?}");
}

/// What HAProxy refuses of these keywords in a section of this kind, by keyword.
fn ask(haproxy: &Path, section: Section, names: &[&'static str]) -> BTreeMap<&'static str, String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("haproxy.cfg");
    let head = match section {
        Section::Defaults => "defaults",
        Section::Frontend => "frontend f",
        Section::Backend => "backend b",
    };
    let mut refused = BTreeMap::new();
    // HAProxy stops listening to what it reads after too many errors.
    for names in names.chunks(10) {
        let mut text = format!("{head}\n");
        for name in names {
            // Options are looked at only when nothing follows them that they do not take.
            let argument = if name.starts_with("option ") {
                ""
            } else {
                " 1"
            };
            text.push_str(&format!("  {name}{argument}\n"));
        }
        std::fs::write(&file, text).unwrap();
        let output = Command::new(haproxy)
            .arg("-c")
            .arg("-f")
            .arg(&file)
            .output()
            .unwrap();
        for line in String::from_utf8_lossy(&output.stderr).lines() {
            let Some((_, rest)) = line.split_once("haproxy.cfg:") else {
                continue;
            };
            let Some((number, message)) = rest.split_once(']') else {
                continue;
            };
            // `1` is our own argument.
            let about_keyword = !message.contains("unknown keyword '1'")
                && REFUSALS.iter().any(|refusal| message.contains(refusal));
            if let (Ok(number), true) = (number.parse::<usize>(), about_keyword) {
                refused.insert(names[number - 2], message.to_owned());
            }
        }
    }
    refused
}
