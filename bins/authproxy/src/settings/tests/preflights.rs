//! Where CORS preflights are answered, and for which origins.

use super::*;

#[test]
fn preflights_are_answered_where_there_is_cors_and_need_a_key_elsewhere() {
    use PreflightPolicy::{Answer, Off, Pass};
    const ROUTES: &str = "\
open: [/static]
routes:
- {path: /a, rights: a}
- {path: /b, rights: b, cors-preflight: pass}
- {path: /c, methods: GET, open: true}
- {path: /d, open: true}
- {path: /e, rights: e, cors-preflight: off}
";
    for (file, everywhere, routes) in [
        ("", Off, [Off, Pass, Off, Off, Off, Off]),
        (
            "cors-preflight: off\n",
            Off,
            [Off, Pass, Off, Off, Off, Off],
        ),
        (
            "cors: {allow-origin: '*'}\n",
            Answer,
            [Answer, Pass, Answer, Off, Off, Off],
        ),
        (
            "cors: {allow-origin: '*'}\ncors-preflight: off\n",
            Off,
            [Off, Pass, Off, Off, Off, Off],
        ),
        (
            "cors-preflight: pass\n",
            Pass,
            [Pass, Pass, Pass, Off, Off, Off],
        ),
    ] {
        let rules = &site(&format!("{file}{ROUTES}")).rules;
        let found: Vec<_> = rules.routes.iter().map(|route| route.preflight).collect();
        assert_eq!(rules.preflight, everywhere, "{file}");
        assert_eq!(found, routes, "{file}");
    }
}

#[test]
fn an_answer_names_the_origin_of_the_request_when_there_are_several() {
    let shown = |origins: &str, origin: &'static str| {
        let site = site(&format!("cors: {{allow-origin: {origins}, max-age: 5}}\n"));
        let request = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static(origin))]);
        let mut headers: Vec<String> = site
            .cors
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        headers.extend(
            site.cors
                .origin(&request)
                .map(|origin| format!("chosen {origin:?}")),
        );
        headers.join("; ")
    };
    for (origins, origin, expected) in [
        (
            "'*'",
            "https://a",
            "access-control-allow-origin: *; access-control-max-age: 5",
        ),
        (
            "[https://b]",
            "https://a",
            "access-control-allow-origin: https://b; access-control-max-age: 5",
        ),
        (
            "[https://a, https://b]",
            "https://b",
            "vary: origin; access-control-max-age: 5; chosen \"https://b\"",
        ),
        (
            "'https://a,https://b'",
            "https://B",
            "vary: origin; access-control-max-age: 5",
        ),
        (
            "[https://a, https://b]",
            "null",
            "vary: origin; access-control-max-age: 5",
        ),
    ] {
        assert_eq!(shown(origins, origin), expected, "{origins} {origin}");
    }
}
