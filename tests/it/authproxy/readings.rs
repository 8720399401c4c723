//! Requests that servers read differently: one table, each row of which is sent to the servers it names, directly and
//! through authproxy. The README has the same table.

use std::path::Path;

use hostkit_tests::authproxy::{AuthproxyProcess, send_request};
use hostkit_tests::web::{WebServer, WebServerKind};
use hostkit_tests::{or_skip, permissions, workspace};

/// The expected result of a request.
enum ExpectedResponse {
    /// authproxy answers.
    Refused(u16, &'static str),
    /// The upstream answers, with a text that begins so.
    Passed(&'static str),
}

/// A request that servers read in two ways.
struct AmbiguousRequest {
    /// Its oddity, for the README.
    request: &'static str,
    /// The servers that read it otherwise, and their response.
    servers: &'static [(WebServerKind, &'static str)],
    /// Their reading, for the README.
    means: &'static str,
    /// What authproxy does, for the README.
    reading: &'static str,
    method: &'static str,
    target: &'static str,
    headers: &'static [&'static str],
    verdict: ExpectedResponse,
}

use ExpectedResponse::{Passed, Refused};
use WebServerKind::{Express, Gunicorn, Hypercorn, Nginx, Node};

/// Keys with the right `read`, the second on one host only. Only [`RULES`] demand more.
const READER: &str = "X-API-Key: reader";
const HERE: &str = "X-API-Key: here";
const RULES: &str = "\
right: read
routes:
  - {path: /admin, rights: [admin]}
  - {path: /open, open: true}
  - {path: /, methods: [POST, DELETE, PURGE], rights: [write]}
";

const ROWS: &[AmbiguousRequest] = &[
    AmbiguousRequest {
        request: "`OPTIONS` with the headers of a CORS preflight",
        servers: &[
            (Node, "OPTIONS admin"),
            (Express, "OPTIONS admin"),
            (Hypercorn, "OPTIONS admin"),
            (Gunicorn, "OPTIONS admin"),
            (Nginx, "OPTIONS admin"),
        ],
        means: "a `GET`, if the application does not look at the method",
        reading: "needs a key, as every request (`--cors-preflight`)",
        method: "OPTIONS",
        target: "/admin",
        headers: &[
            "Origin: https://a.example",
            "Access-Control-Request-Method: GET",
        ],
        verdict: Refused(401, "missing_key"),
    },
    AmbiguousRequest {
        request: "`post`",
        servers: &[(Hypercorn, "POST other"), (Gunicorn, "POST other")],
        means: "`POST`",
        reading: "refused, as every standard method in another case",
        method: "post",
        target: "/x",
        headers: &[READER],
        verdict: Refused(400, "invalid_request"),
    },
    AmbiguousRequest {
        request: "`purge`, of a server that knows `PURGE`",
        servers: &[(Hypercorn, "PURGE other"), (Gunicorn, "PURGE other")],
        means: "`PURGE`",
        reading: "needs the rights of both",
        method: "purge",
        target: "/x",
        headers: &[READER],
        verdict: Refused(403, "missing_right"),
    },
    AmbiguousRequest {
        request: "`X-HTTP-Method-Override: DELETE`, `X-HTTP-Method`, `X-Method-Override`",
        servers: &[(Express, "DELETE other")],
        means: "`DELETE`",
        reading: "needs the rights of both, and a key's `methods` must have both",
        method: "GET",
        target: "/x",
        headers: &["X-HTTP-Method-Override: DELETE", READER],
        verdict: Refused(403, "missing_right"),
    },
    AmbiguousRequest {
        request: "`/ADMIN`",
        servers: &[(Express, "GET admin"), (Nginx, "GET admin")],
        means: "`/admin`",
        reading: "needs the rights of both, and is open only if both are; a key's `paths` are compared with their case",
        method: "GET",
        target: "/ADMIN",
        headers: &[READER],
        verdict: Refused(403, "missing_right"),
    },
    AmbiguousRequest {
        request: "`/%61dmin`",
        servers: &[
            (Hypercorn, "GET admin"),
            (Gunicorn, "GET admin"),
            (Nginx, "GET admin"),
        ],
        means: "`/admin`",
        reading: "needs the rights of both, and is open only if both are; a key's `paths` must fit both",
        method: "GET",
        target: "/%61dmin",
        headers: &[READER],
        verdict: Refused(403, "missing_right"),
    },
    AmbiguousRequest {
        request: "`/%6fpen`",
        servers: &[(Node, "GET other"), (Express, "GET other")],
        means: "another path than `/open`",
        reading: "needs the rights of both, and is open only if both are",
        method: "GET",
        target: "/%6fpen",
        headers: &[],
        verdict: Refused(401, "missing_key"),
    },
    AmbiguousRequest {
        request: "`/open/../admin`, `/open/%2e%2e/admin`",
        servers: &[(Nginx, "GET admin")],
        means: "`/admin`",
        reading: "refused where a rule is about paths",
        method: "GET",
        target: "/open/../admin",
        headers: &[READER],
        verdict: Refused(400, "ambiguous_path"),
    },
    AmbiguousRequest {
        request: "`//admin`",
        servers: &[(Nginx, "GET admin")],
        means: "`/admin`",
        reading: "refused where a rule is about paths",
        method: "GET",
        target: "//admin",
        headers: &[READER],
        verdict: Refused(400, "ambiguous_path"),
    },
    AmbiguousRequest {
        request: "`/open%2f..%2fadmin`",
        servers: &[(Nginx, "GET admin")],
        means: "`/admin`",
        reading: "refused where a rule is about paths",
        method: "GET",
        target: "/open%2f..%2fadmin",
        headers: &[READER],
        verdict: Refused(400, "ambiguous_path"),
    },
    AmbiguousRequest {
        request: "`/admin;x`",
        servers: &[],
        means: "`/admin`, in servlet containers",
        reading: "refused where a rule is about paths",
        method: "GET",
        target: "/admin;x",
        headers: &[READER],
        verdict: Refused(400, "ambiguous_path"),
    },
    AmbiguousRequest {
        request: "`X-Forwarded-Host`, `Forwarded`, `X-Host`, `X-Original-Host` or `X-HTTP-Host-Override` beside `Host`",
        servers: &[(Express, "GET other b.example")],
        means: "the host",
        reading: "every host that is named must be one of the key's `hosts`; from peers that are not trusted they are \
                  removed",
        method: "GET",
        target: "/x",
        headers: &["Host: a.example", "X-Forwarded-Host: b.example", HERE],
        verdict: Refused(403, "host_not_allowed"),
    },
    AmbiguousRequest {
        request: "`X_Auth_Id: root`",
        servers: &[
            (Gunicorn, "GET other localhost root"),
            (Nginx, "GET other localhost root"),
        ],
        means: "`X-Auth-Id`",
        reading: "removed, in every spelling",
        method: "GET",
        target: "/x",
        headers: &["X_Auth_Id: root", READER],
        verdict: Passed("GET other localhost reader"),
    },
    AmbiguousRequest {
        request: "`Connection: X-SSL-Client-CN`",
        servers: &[],
        means: "nothing of that header, to proxies",
        reading: "refused: Connection may not name what proxies in front set (`--protected-headers`)",
        method: "GET",
        target: "/x",
        headers: &["X-SSL-Client-CN: a", "Connection: X-SSL-Client-CN", READER],
        verdict: Refused(400, "invalid_request"),
    },
];

/// The table as in the README.
fn render_table() -> String {
    let mut table =
        "| the request has | and means | to | authproxy | answers |\n|---|---|---|---|---|\n"
            .to_owned();
    for row in ROWS {
        let names: Vec<&str> = row.servers.iter().map(|(kind, _)| kind.name()).collect();
        let verdict = match row.verdict {
            Refused(status, word) => format!("{status} `{word}`"),
            Passed(_) => "passes".to_owned(),
        };
        table += &format!(
            "| {} | {} | {} | {} | {verdict} |\n",
            row.request,
            row.means,
            names.join(", "),
            row.reading
        );
    }
    table
}

/// authproxy in front of a server, with the rules and keys of the table.
fn proxy(directory: &Path, port: u16) -> AuthproxyProcess {
    let (keys, config) = (
        directory.join("keys.yaml"),
        directory.join("authproxy.yaml"),
    );
    let [reader, here] = ["reader", "here"].map(permissions::hash_key);
    let text = format!(
        "keys:\n  - {{id: reader, sha256: {reader}, rights: [read]}}\n  - {{id: here, sha256: {here}, rights: [read], \
         hosts: [a.example]}}\n"
    );
    std::fs::write(&keys, text).unwrap();
    let text = format!(
        "server: http://127.0.0.1:{port}\nacl-file: {}\n{RULES}",
        keys.display()
    );
    std::fs::write(&config, text).unwrap();
    AuthproxyProcess::start(&["--config", config.to_str().unwrap()])
}

#[test]
fn ambiguous_request_is_rejected_when_any_server_reads_it_otherwise() {
    let scratch = tempfile::tempdir().unwrap();
    for kind in WebServerKind::ALL {
        let Some(web) = or_skip(kind.name(), WebServer::start(kind)) else {
            continue;
        };
        let proxy = proxy(scratch.path(), web.port());
        for row in ROWS {
            let what = format!("{} {} {:?}", row.method, row.target, row.headers);
            let own = row.servers.iter().find(|(own, _)| *own == kind);
            if let Some((_, read)) = own {
                let direct = send_request(web.port(), row.method, row.target, row.headers);
                assert!(direct.body.contains(read), "{kind:?}, {what}: {direct:?}");
            }
            let answer = send_request(proxy.port(), row.method, row.target, row.headers);
            match row.verdict {
                Refused(status, word) => {
                    let found = (answer.status, answer.reason());
                    assert_eq!(found, (status, Some(word.to_owned())), "{kind:?}, {what}");
                }
                Passed(read) if own.is_some() => {
                    assert!(answer.body.contains(read), "{kind:?}, {what}: {answer:?}");
                }
                Passed(_) => assert_eq!(answer.status, 200, "{kind:?}, {what}: {answer:?}"),
            }
        }
        // An unambiguous request passes.
        let open = send_request(proxy.port(), "GET", "/open/x", &[]);
        assert!(open.body.contains("GET open"), "{kind:?}: {open:?}");
        for headers in [&[READER][..], &[HERE, "Host: a.example"]] {
            let passed = send_request(proxy.port(), "GET", "/x", headers);
            assert!(passed.body.contains("GET other"), "{kind:?}: {passed:?}");
        }
    }
}

#[test]
fn readme_has_table_of_readings() {
    let file = workspace().join("bins/authproxy/README.md");
    let page = std::fs::read_to_string(&file).unwrap();
    let start = "<!-- readings: generated, see CONTRIBUTING.md -->\n";
    let end = "<!-- end of readings -->";
    let (before, rest) = page.split_once(start).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    let wanted = format!("{before}{start}\n{}\n{end}{after}", render_table());
    if std::env::var("HOSTKIT_BLESS").is_ok_and(|value| value == "1") {
        std::fs::write(&file, wanted).unwrap();
    } else {
        assert!(
            page == wanted,
            "the table of readings of {} differs from the test: HOSTKIT_BLESS=1 writes it",
            file.display()
        );
    }
}
