//! One bad service among many: found by its line, or by halving, and never at the expense of another.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use hostkit_tests::haproxy::{HaproxyInstance, HaproxyMode};
use hostkit_tests::or_skip;
use synapse::haproxy::quarantine::{Candidate, Checker, QuarantineError, Quarantined};

/// Services by name, each with the lines of its backend.
type Services = BTreeMap<String, String>;

fn services(bad: &[(usize, &str)]) -> Services {
    let mut services: Services = (0..40)
        .map(|n| (format!("s{n:02}"), "    server s 127.0.0.1:1\n".to_owned()))
        .collect();
    for (n, lines) in bad {
        services.insert(format!("s{n:02}"), (*lines).to_owned());
    }
    services
}

fn render(head: &str, services: &Services, without: &BTreeSet<String>, blame: bool) -> Candidate {
    let mut candidate = Candidate {
        text: head.to_owned(),
        ..Candidate::default()
    };
    for (name, lines) in services.iter().filter(|(name, _)| !without.contains(*name)) {
        let first = candidate.text.lines().count() + 1;
        write!(candidate.text, "backend {name}\n{lines}").unwrap();
        if blame {
            let last = candidate.text.lines().count();
            candidate
                .lines
                .extend((first..=last).map(|line| (line, name.clone())));
        }
    }
    candidate
}

fn quarantine(
    haproxy: &HaproxyInstance,
    head: &str,
    services: &Services,
    blame: bool,
    limit: usize,
) -> Result<Quarantined, QuarantineError> {
    let checker = Checker {
        binary: haproxy.binary(),
        file: haproxy.directory().join("quarantine"),
        deadline: Duration::from_secs(30),
        limit,
    };
    let names = services.keys().cloned().collect();
    super::block_on(checker.quarantine(&names, |without| render(head, services, without, blame)))
}

fn without(found: &Quarantined) -> Vec<&str> {
    found.without.keys().map(String::as_str).collect()
}

#[test]
fn bad_services_are_left_out_and_no_other() {
    let Some(haproxy) = or_skip("haproxy", HaproxyInstance::prepare(HaproxyMode::Daemon)) else {
        return;
    };
    let head = haproxy.head();
    let bad = services(&[
        (7, "    bogus\n"),
        (31, "    server a 127.0.0.1:1\n    server a 127.0.0.1:x\n"),
    ]);
    let found = quarantine(&haproxy, &head, &bad, true, 20).unwrap();
    assert_eq!(without(&found), ["s07", "s31"]);
    assert!(
        found.without["s07"].contains("'bogus'"),
        "{:?}",
        found.without
    );
    assert!(!found.candidate.text.contains("backend s07"));
    assert!(found.candidate.text.contains("backend s08"));
    assert_eq!(found.runs, haproxy.runs().len());
    assert!(found.runs <= 4, "{}", found.runs);
}

#[test]
fn without_a_line_to_blame_they_are_found_by_halving() {
    let Some(haproxy) = or_skip("haproxy", HaproxyInstance::prepare(HaproxyMode::Daemon)) else {
        return;
    };
    let bad = services(&[(7, "    bogus\n"), (31, "    bogus\n")]);
    let found = quarantine(&haproxy, &haproxy.head(), &bad, false, 40).unwrap();
    assert_eq!(without(&found), ["s07", "s31"]);
    assert!(found.runs <= 20, "{}", found.runs);
}

#[test]
fn good_services_are_all_kept() {
    let Some(haproxy) = or_skip("haproxy", HaproxyInstance::prepare(HaproxyMode::Daemon)) else {
        return;
    };
    let found = quarantine(&haproxy, &haproxy.head(), &services(&[]), true, 20).unwrap();
    assert!(found.without.is_empty());
    assert_eq!(found.runs, 1);
}

#[test]
fn one_that_was_blamed_for_anothers_fault_is_taken_back() {
    let Some(haproxy) = or_skip("haproxy", HaproxyInstance::prepare(HaproxyMode::Daemon)) else {
        return;
    };
    // A second proxy of the same name: HAProxy blames whoever comes second, and both lines are bad besides.
    let bad = services(&[
        (1, "backend twin\n    bogus\n"),
        (2, "backend twin\n    server s 127.0.0.1:1\n"),
    ]);
    let found = quarantine(&haproxy, &haproxy.head(), &bad, true, 20).unwrap();
    assert_eq!(without(&found), ["s01"]);
}

#[test]
fn a_fault_of_nobodys_is_said() {
    let Some(haproxy) = or_skip("haproxy", HaproxyInstance::prepare(HaproxyMode::Daemon)) else {
        return;
    };
    let head = haproxy.head().replace("global\n", "global\n    bogus\n");
    for blame in [true, false] {
        let error = quarantine(&haproxy, &head, &services(&[]), blame, 40).unwrap_err();
        assert!(matches!(error, QuarantineError::NoService(_)), "{error}");
    }
}

#[test]
fn the_search_is_bounded() {
    let Some(haproxy) = or_skip("haproxy", HaproxyInstance::prepare(HaproxyMode::Daemon)) else {
        return;
    };
    let all: Vec<(usize, &str)> = (0..40).map(|n| (n, "    bogus\n")).collect();
    let error = quarantine(&haproxy, &haproxy.head(), &services(&all), false, 15).unwrap_err();
    assert!(matches!(error, QuarantineError::TooMany { .. }), "{error}");
    assert!(haproxy.runs().len() <= 16, "{}", haproxy.runs().len());
    let found = quarantine(&haproxy, &haproxy.head(), &services(&all), true, 15);
    let kept = found
        .map(|found| found.without.len())
        .map_err(|error| error.to_string());
    assert_eq!(kept, Ok(40), "all are blamed at once");
}
