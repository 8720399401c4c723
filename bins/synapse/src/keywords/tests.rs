//! Looking lines up. Whether HAProxy agrees with the table is asked in the integration tests.

use super::table::{GONE, KEYWORDS, LEAVING};
use super::*;

fn name(line: &str) -> &'static str {
    match find(line) {
        Lookup::Known(keyword) => keyword.name,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn the_table_can_be_searched() {
    assert!(KEYWORDS.is_sorted_by(|a, b| a.0 < b.0));
    assert!(GONE.is_sorted_by(|a, b| a.0 < b.0));
    for (name, places) in KEYWORDS {
        assert!(name.split(' ').count() <= 3, "{name}");
        assert_eq!(places.trim_end_matches('!').len(), 3, "{name}");
        assert!(
            places.starts_with(['D', '-']) && places.contains(['F', 'B']),
            "{name}"
        );
        assert!(GONE.iter().all(|(gone, ..)| gone != name), "{name}");
    }
    for (name, _) in LEAVING {
        assert!(KEYWORDS.iter().any(|(known, _)| known == name), "{name}");
    }
}

#[test]
fn the_longest_keyword_counts() {
    assert_eq!(
        name("capture  request\theader Host len 64"),
        "capture request header"
    );
    assert_eq!(name("option httpchk GET /health"), "option httpchk");
    assert_eq!(name("stats uri /"), "stats uri");
    assert_eq!(name("mode http"), "mode");
    assert_eq!(name("no option httpclose"), "option httpclose");
    assert_eq!(name("default option httpclose"), "option httpclose");
    assert_eq!(name("no log"), "log");
}

#[test]
fn sections() {
    for (line, expected) in [
        ("balance source", "D-B"),
        ("maxconn 5", "DF-"),
        ("use_backend x", "-F-"),
        ("acl a b", "-FB"),
        ("timeout server 5s", "D-B"),
        ("dynamic-cookie-key x", "D-B"),
    ] {
        let Lookup::Known(keyword) = find(line) else {
            panic!("{line}");
        };
        let fits: String = [
            ('D', Section::Defaults),
            ('F', Section::Frontend),
            ('B', Section::Backend),
        ]
        .map(|(letter, section)| if keyword.fits(section) { letter } else { '-' })
        .into_iter()
        .collect();
        assert_eq!(fits, expected, "{line}");
    }
}

#[test]
fn what_is_no_keyword() {
    for (line, meant) in [
        ("option httpchck GET /", Some("option httpchk")),
        ("time-out server 3s", Some("timeout server")),
        ("blance roundrobin", Some("balance")),
        ("bogus directive", None),
        ("option", None),
        ("no", None),
        ("", None),
        ("timeout", None),
        ("backend evil", None),
    ] {
        assert_eq!(find(line), Lookup::Unknown(meant), "{line}");
    }
    assert!(matches!(find("no option forwardfor"), Lookup::NoInverse(_)));
    assert!(matches!(find("no balance"), Lookup::NoInverse(_)));
    assert_eq!(
        find("reqrep ^a b"),
        Lookup::Gone("2.1", "use `http-request replace-header` or `replace-path`")
    );
    assert!(matches!(find("option http-tunnel"), Lookup::Gone("2.1", _)));
}

#[test]
fn keywords_that_not_every_version_has() {
    let Lookup::Known(keyword) = find("bind-process 1") else {
        panic!("unknown");
    };
    assert!(keyword.leaving().unwrap().contains("2.7"));
    let Lookup::Known(keyword) = find("bind :80") else {
        panic!("unknown");
    };
    assert_eq!(keyword.leaving(), None);
}
