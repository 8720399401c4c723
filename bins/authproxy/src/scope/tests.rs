//! Checks of grants, and matching of routes.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::settings::RouteRule;

fn grant() -> Grant {
    Grant {
        id: "eightball".to_owned(),
        rights: vec!["all".to_owned(), "write".to_owned()],
        hosts: Vec::new(),
        paths: Vec::new(),
        methods: Vec::new(),
        expires: None,
    }
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn request(path: &str) -> AccessRequest<'_> {
    AccessRequest {
        method: "GET",
        path,
        hosts: &[Cow::Borrowed("api.example.com:8080")],
        rights: &[],
        now: 1000,
    }
}

fn matches_host(pattern: &str, host: &str) -> bool {
    let grant = Grant {
        hosts: vec![normalize_host_pattern(pattern).unwrap()],
        ..grant()
    };
    let hosts = &[host.into()];
    let result = check_grant(
        &grant,
        &AccessRequest {
            hosts,
            ..request("/")
        },
    );
    assert!(matches!(result, Ok(()) | Err(RequestError::HostNotAllowed)));
    result.is_ok()
}

fn check_path(pattern: &str, path: &str) -> Result<(), RequestError> {
    let grant = Grant {
        paths: vec![normalize_path_prefix(pattern).unwrap()],
        ..grant()
    };
    check_grant(&grant, &request(path))
}

#[test]
fn grant_without_every_required_right_is_denied() {
    for (required, expected) in [
        (&[][..], Ok(())),
        (&["all"], Ok(())),
        (&["all", "write"], Ok(())),
        (&["all", "admin"], Err(RequestError::MissingRight)),
        (&["ALL"], Err(RequestError::MissingRight)),
        (&["al"], Err(RequestError::MissingRight)),
    ] {
        let rights = &strings(required);
        let result = check_grant(
            &grant(),
            &AccessRequest {
                rights,
                ..request("/")
            },
        );
        assert_eq!(result, expected, "{required:?}");
    }
}

#[test]
fn key_expires_at_the_second_of_its_expiry() {
    for (expires, expected) in [
        (None, Ok(())),
        (Some(1001), Ok(())),
        (Some(1000), Err(RequestError::ExpiredKey)),
        (Some(0), Err(RequestError::ExpiredKey)),
    ] {
        let grant = Grant { expires, ..grant() };
        assert_eq!(check_grant(&grant, &request("/")), expected, "{expires:?}");
    }
}

#[test]
fn host_match_ignores_case_port_and_final_dot() {
    for (pattern, host, expected) in [
        ("example.com", "example.com", true),
        ("Example.COM.", "eXample.com", true),
        ("example.com", "example.com:8080", true),
        ("example.com", "example.com:", true),
        ("example.com", "example.com.", true),
        ("example.com", "example.com.:80", true),
        ("example.com", "www.example.com", false),
        ("example.com", "badexample.com", false),
        ("example.com", "example.com.evil", false),
        ("example.com", "example.com:80:80", false),
        ("example.com", "example.com:x", false),
        ("example.com", "example.com..", false),
        ("example.com", "", false),
        ("*.example.com", "www.example.com", true),
        ("*.example.com", "A.B.example.com.:443", true),
        ("*.example.com", "example.com", false),
        ("*.example.com", ".example.com", false),
        ("*.example.com", "a..example.com", false),
        ("*.example.com", "badexample.com", false),
        ("*.example.com", "evil/.example.com", false),
        ("*.example.com", "evil@a.example.com", false),
        ("*.example.com", "é.example.com", false),
        ("10.0.0.1", "10.0.0.1:80", true),
        ("10.0.0.1", "10.0.0.10", false),
        ("::1", "[::1]:80", true),
        ("[::1]", "[0:0:0:0:0:0:0:1]", true),
        ("::1", "[::2]", false),
        ("::1", "[::1", false),
        ("::1", "[::1]x", false),
        ("*", "anything.at.all:1", true),
        ("*", "[::1]", true),
        ("*", "", false),
    ] {
        assert_eq!(matches_host(pattern, host), expected, "{pattern} {host}");
    }
}

#[test]
fn request_with_one_host_not_allowed_is_denied() {
    let grant = Grant {
        hosts: strings(&["a.com", "*.b.com"]),
        ..grant()
    };
    for (hosts, expected) in [
        (&["a.com", "x.b.com:80"][..], true),
        (&["a.com", "c.com"], false),
        (&["c.com", "a.com"], false),
        (&["a.com", ""], false),
        (&[], false),
    ] {
        let hosts: Vec<Cow<'_, str>> = hosts.iter().map(|&host| host.into()).collect();
        let result = check_grant(
            &grant,
            &AccessRequest {
                hosts: &hosts,
                ..request("/")
            },
        );
        let expected = expected.then_some(()).ok_or(RequestError::HostNotAllowed);
        assert_eq!(result, expected, "{hosts:?}");
    }
}

#[test]
fn invalid_host_pattern_is_rejected() {
    for text in [
        "",
        ".",
        "*.",
        "**",
        "*.*.com",
        "a.*.com",
        "www*.com",
        "example.com:80",
        "*.[::1]",
        "[::1]:80",
        "http://a",
        "a b",
        "a..b",
        "é.fr",
        "[x]",
    ] {
        assert!(normalize_host_pattern(text).is_err(), "{text}");
    }
    assert!(normalize_host_pattern(&"a.".repeat(200)).is_err());
}

#[test]
fn path_prefix_matches_whole_segments() {
    for (pattern, path, expected) in [
        ("/a/b", "/a/b", true),
        ("/a/b", "/a/b/", true),
        ("/a/b", "/a/b/c", true),
        ("/a/b/", "/a/b", true),
        ("/a/b", "/a/bc", false),
        ("/a/b", "/a", false),
        ("/a/b", "/A/b", false),
        ("/a/b", "/x/a/b", false),
        ("/a/b", "/a/b/%63", true),
        ("/a/b", "/%61/%62", false),
        ("/a/b", "/a/%62", false),
        ("/%61/b", "/a/b", true),
        ("/caf%C3%A9", "/café/x", true),
        ("/a/b", "*", false),
        ("/", "/a//../b", true),
    ] {
        let expected = expected.then_some(()).ok_or(RequestError::PathNotAllowed);
        assert_eq!(check_path(pattern, path), expected, "{pattern} {path}");
    }
}

#[test]
fn path_that_servers_interpret_differently_is_ambiguous() {
    for path in [
        "",
        "a",
        "//",
        "//a",
        "/a//b",
        "/a//",
        "/.",
        "/..",
        "/a/.",
        "/a/..",
        "/a/../b",
        "/a/./b",
        "/%2e/a",
        "/%2E%2e/a",
        "/.%2e",
        "/a\\b",
        "/a%5cb",
        "/a%2fb",
        "/a%2Fb",
        "/a%00",
        "/a%0a",
        "/a%7f",
        "/a;b",
        "/a%3bb",
        "/;",
        "/a%",
        "/a%2",
        "/a%zz",
        "/a%+1",
        "/a%252e",
        "/a%252fb",
        "/a%25%32%66b",
        "/%25%36%31",
        "/a%252%65",
        "/a%3fb",
        "/a%23b",
        "/a%c0%af",
        "/a%e0%80%af",
        "/a%ff",
    ] {
        assert!(!is_unambiguous_path(path), "{path}");
        assert_eq!(
            check_path("/a", path),
            Err(RequestError::AmbiguousPath),
            "{path}"
        );
    }
    for path in [
        "/",
        "*",
        "/a",
        "/a/",
        "/a.b",
        "/a..b",
        "/...",
        "/.a",
        "/a%20b",
        "/100%25",
        "/a%25/b",
        "/a:b@c,d=e+f!$&'()*~",
        "/é",
    ] {
        assert!(is_unambiguous_path(path), "{path}");
    }
    for path in ["", "a", "*", "/a/../b", "/a;b", "/%"] {
        assert!(normalize_path_prefix(path).is_err(), "{path}");
    }
    assert!(normalize_path_prefix(&"/a".repeat(600)).is_err());
    assert_eq!(
        check_grant(&grant(), &request("/a/../b")),
        Ok(()),
        "the grant does not restrict paths"
    );
}

#[test]
fn methods_are_case_sensitive_and_get_includes_head() {
    for (method, expected) in [
        ("GET", true),
        ("HEAD", true),
        ("POST", false),
        ("get", false),
        ("OPTIONS", false),
    ] {
        let grant = Grant {
            methods: strings(&["PUT", "GET"]),
            ..grant()
        };
        let result = check_grant(
            &grant,
            &AccessRequest {
                method,
                ..request("/")
            },
        );
        let expected = expected.then_some(()).ok_or(RequestError::MethodNotAllowed);
        assert_eq!(result, expected, "{method}");
    }
}

/// Prefix, methods, rights.
type RouteRow<'a> = (&'a str, &'a [&'a str], Option<&'a [&'a str]>);

fn rules(routes: &[RouteRow<'_>]) -> AccessRules {
    let route = |(at, (prefix, methods, rights)): (usize, &RouteRow<'_>)| RouteRule {
        name: Arc::from(at.to_string()),
        prefix: normalize_path_prefix(prefix).unwrap(),
        methods: strings(methods),
        rights: rights.map(strings),
        preflight: PreflightPolicy::Off,
    };
    AccessRules {
        rights: strings(&["all"]),
        routes: routes.iter().enumerate().map(route).collect(),
        preflight: PreflightPolicy::Off,
        host_parameter: None,
    }
}

#[test]
fn longest_prefix_with_matching_method_wins() {
    let rules = rules(&[
        ("/", &["POST"], Some(&["write"])),
        ("/public", &[], None),
        ("/public/not", &[], Some(&["more", "all"])),
        ("/public/not", &["GET"], Some(&["less"])),
        ("/public/not/", &["GET"], Some(&["never"])),
    ]);
    let all = strings(&["all"]);
    for (method, path, name, rights) in [
        ("GET", "/", None, Some(&all[..])),
        ("GET", "/publicly", None, Some(&all)),
        ("POST", "/publicly", Some("0"), Some(&strings(&["write"]))),
        ("GET", "/public", Some("1"), None),
        (
            "POST",
            "/public/not/x",
            Some("2"),
            Some(&strings(&["more", "all"])),
        ),
        ("GET", "/public/not/x", Some("3"), Some(&strings(&["less"]))),
        ("HEAD", "/public/not", Some("3"), Some(&strings(&["less"]))),
        ("OPTIONS", "*", None, Some(&all)),
    ] {
        let matched = match_route(&rules, method, path).unwrap();
        assert_eq!(matched.name.map(|name| &**name), name, "{method} {path}");
        assert_eq!(matched.rights.as_deref(), rights, "{method} {path}");
    }
    let result = match_route(&rules, "GET", "/public/../private");
    assert_eq!(result, Err(RequestError::AmbiguousPath));
}

#[test]
fn request_requires_rights_of_every_interpretation() {
    let rules = rules(&[
        ("/", &["POST", "PURGE"], Some(&["write"])),
        ("/admin", &[], Some(&["admin"])),
        ("/admin/logs", &[], Some(&["logs"])),
        ("/open", &[], None),
        ("/Mixed", &[], Some(&["mixed"])),
    ]);
    for (method, path, name, rights) in [
        ("GET", "/admin", Some("1"), Some(&["admin"][..])),
        ("GET", "/ADMIN", Some("1"), Some(&["all", "admin"])),
        ("GET", "/aDmin/x", Some("1"), Some(&["all", "admin"])),
        ("GET", "/admin/LOGS", Some("1"), Some(&["admin", "logs"])),
        ("GET", "/%61dmin", Some("1"), Some(&["admin", "all"])),
        ("GET", "/admin/%6cogs", Some("2"), Some(&["logs", "admin"])),
        ("GET", "/%41dmin", Some("1"), Some(&["all", "admin"])),
        ("GET", "/administrator", None, Some(&["all"])),
        ("GET", "/open", Some("3"), None),
        ("GET", "/open/%61", Some("3"), None),
        ("GET", "/OPEN", Some("3"), Some(&["all"])),
        ("GET", "/%6fpen", Some("3"), Some(&["all"])),
        ("GET", "/Mixed", Some("4"), Some(&["mixed"])),
        ("GET", "/mixed", Some("4"), Some(&["all", "mixed"])),
        ("PURGE", "/x", Some("0"), Some(&["write"])),
        ("purge", "/x", Some("0"), Some(&["all", "write"])),
        ("purge", "/open", Some("3"), None),
        ("purge", "/OPEN", Some("3"), Some(&["all", "write"])),
    ] {
        let matched = match_route(&rules, method, path).unwrap();
        assert_eq!(matched.name.map(|name| &**name), name, "{method} {path}");
        let rights = rights.map(strings);
        assert_eq!(
            matched.rights.as_deref(),
            rights.as_deref(),
            "{method} {path}"
        );
    }
}

#[test]
fn ambiguous_path_is_allowed_where_routes_do_not_depend_on_it() {
    let methods = rules(&[("/", &["POST"], Some(&["write"]))]);
    let matched = match_route(&methods, "POST", "/a/../b").unwrap();
    assert_eq!(matched.rights.as_deref(), Some(&strings(&["write"])[..]));
    let none = rules(&[]);
    let matched = match_route(&none, "POST", "/a/../b").unwrap();
    assert_eq!(
        (matched.name, matched.rights.as_deref()),
        (None, Some(&none.rights[..]))
    );
}

/// The path that a server resolves which decodes `times`, drops parameters and removes dot segments.
fn resolve(path: &str, times: usize) -> Vec<u8> {
    let mut bytes = path.as_bytes().to_vec();
    for _ in 0..times {
        let mut decoded = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let digits = bytes
                .get(at + 1..at + 3)
                .and_then(|two| std::str::from_utf8(two).ok());
            match digits.and_then(|two| u8::from_str_radix(two, 16).ok()) {
                Some(byte) if bytes[at] == b'%' => {
                    decoded.push(byte);
                    at += 3;
                }
                _ => {
                    decoded.push(bytes[at]);
                    at += 1;
                }
            }
        }
        bytes = decoded;
    }
    for byte in &mut bytes {
        if *byte == b'\\' {
            *byte = b'/';
        }
    }
    let end = bytes
        .iter()
        .position(|byte| matches!(byte, b'?' | b'#' | 0));
    bytes.truncate(end.unwrap_or(bytes.len()));
    let mut segments: Vec<&[u8]> = Vec::new();
    for segment in bytes.split(|byte| *byte == b'/') {
        match segment
            .split(|byte| *byte == b';')
            .next()
            .unwrap_or_default()
        {
            b"" | b"." => {}
            b".." => {
                segments.pop();
            }
            name => segments.push(name),
        }
    }
    [b"/".as_slice(), &segments.join(&b'/')].concat()
}

proptest! {
    /// No server, however it decodes, serves anything outside of `/a` for a path that the prefix `/a` allowed, nor
    /// anything inside for a path that it denied.
    #[test]
    fn every_server_resolves_unambiguous_path_alike(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "/", "a", "b", ".", "..", "%2e", "%2f", "%61", "%25", "%32", "%65", "2e", "61", ";", "%3b", "\\", "%5c", "%00", "%3f",
                "%", "//", "A", "%23",
            ]),
            0..9,
        ),
        times in 1usize..3,
    ) {
        let path = format!("/{}", parts.concat());
        // Some servers do not decode at all.
        let inside = [0, times].map(|times| {
            let resolved = resolve(&path, times);
            resolved == b"/a" || resolved.starts_with(b"/a/")
        });
        match check_path("/a", &path) {
            Ok(()) => prop_assert!(inside == [true; 2], "{path} leads out"),
            Err(RequestError::PathNotAllowed) => prop_assert!(inside != [true; 2], "{path} leads in"),
            Err(_) => {}
        }
    }

    #[test]
    fn any_text_is_checked(host in ".{0,40}", path in ".{0,40}", method in ".{0,8}") {
        let _ = (normalize_host_pattern(&host), normalize_path_prefix(&path));
        let grant = Grant {
            hosts: strings(&["*.example.com", "::1"]),
            paths: strings(&["/a"]),
            methods: strings(&["GET"]),
            ..grant()
        };
        let hosts = &[host.into()];
        let _ = check_grant(&grant, &AccessRequest { hosts, path: &path, method: &method, ..request("/") });
    }

    #[test]
    fn normalized_forms_are_stable(host in "(\\*\\.)?[a-zA-Z0-9.:\\[\\]-]{0,12}", path in "/[a-z/%0-9.]{0,12}") {
        if let Ok(pattern) = normalize_host_pattern(&host) {
            prop_assert_eq!(normalize_host_pattern(&pattern), Ok(pattern));
        }
        if let Ok(prefix) = normalize_path_prefix(&path) {
            let interpretations = path::parse_path(&path).unwrap().interpretations().count();
            prop_assert!(interpretations == 2 || check_path(&path, &path).is_ok());
            prop_assert!(prefix == "/" || !prefix.ends_with('/'));
        }
    }
}
