//! Load by external tools: h2load, slowhttptest, and the bytes that a browser sends.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use hostkit_tests::authproxy::{AuthproxyProcess, RawResponse, exchange_bytes};
use hostkit_tests::load::{ConnectionReuse, LoadGenerator, LoadPlan};
use hostkit_tests::nginx::NginxServer;
use hostkit_tests::permissions::{self, PermissionsBehavior, PermissionsServer};
use hostkit_tests::tls::CertificateAuthority;
use hostkit_tests::upstream::parser::{FramingPreference, LineEnding, ParserProfile};
use hostkit_tests::upstream::{RESPONSE_BODY, RecordingUpstream};
use hostkit_tests::{ChildGuard, find_program, or_skip, wait_limit, wait_until};
use tempfile::TempDir;

const KEY: &str = "browser-key";

const PERSONALITY: ParserProfile = ParserProfile {
    ends: LineEnding::Crlf,
    framing: FramingPreference::Chunked,
};

/// An nginx with a small file and a large one, which answers preflights as an API does.
struct NginxRig {
    nginx: NginxServer,
    directory: TempDir,
}

impl NginxRig {
    fn start() -> Result<Self, String> {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(root.join("small"), "ok here").unwrap();
        std::fs::write(root.join("large"), vec![b'x'; 8 << 20]).unwrap();
        let authority = CertificateAuthority::new();
        let nginx = NginxServer::start_with(&authority, &root, PREFLIGHT)?;
        permissions::write_acl_file(&directory.path().join("acl.yaml"), &[(KEY, &["all"])]);
        Ok(Self { nginx, directory })
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn proxy(&self, args: &[&str]) -> AuthproxyProcess {
        let file = format!("--acl-file={}", self.path("acl.yaml"));
        let mut all = vec![file.as_str(), "--access-log=off"];
        all.extend(args);
        AuthproxyProcess::start_for_upstream(self.nginx.port(), &all)
    }
}

const PREFLIGHT: &str = r#"
        location / {
            error_page 405 =200 $uri;
            add_header Access-Control-Allow-Origin $http_origin;
            if ($request_method = OPTIONS) {
                add_header Access-Control-Allow-Origin $http_origin;
                add_header Access-Control-Allow-Headers "x-api-key";
                return 204;
            }
        }"#;

/// The output of a program, whatever its exit code.
fn run_to_end(program: &Path, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let both = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// The number before a word in a line of a report, as in `requests: 10 total, 9 succeeded`.
fn read_count(report: &str, line: &str, word: &str) -> u64 {
    let line = report.lines().find(|one| one.starts_with(line));
    let fields: Vec<&str> = line
        .unwrap_or_else(|| panic!("{report}"))
        .split([' ', ','])
        .filter(|field| !field.is_empty())
        .collect();
    let at = fields.iter().position(|field| *field == word);
    let before = fields[at.unwrap_or_else(|| panic!("no {word}: {report}")) - 1];
    before.parse().unwrap()
}

#[test]
fn h2load_loses_no_request_and_cold_key_is_queried_once() {
    let Some(h2load) = or_skip("h2load", find_program("h2load")) else {
        return;
    };
    let backend = RecordingUpstream::start(PERSONALITY);
    let acl = PermissionsServer::start();
    acl.add_keys([KEY]);
    // Long enough for many concurrent queries of the same key.
    acl.set_behavior(PermissionsBehavior::After(Duration::from_millis(100)));
    let engine = format!("--acl-server={}", acl.url());
    let proxy =
        AuthproxyProcess::start_for_upstream(backend.port(), &[&engine, "--access-log=off"]);
    let header = format!("X-API-Key: {KEY}");
    let url = proxy.url("/small");
    let args = ["--h1", "-n", "3000", "-c", "1000", "-H", &header, &url];
    let report = run_to_end(&h2load, &args);
    assert_eq!(
        read_count(&report, "requests:", "succeeded"),
        3000,
        "{report}"
    );
    assert_eq!(
        read_count(&report, "status codes:", "2xx"),
        3000,
        "{report}"
    );
    assert_eq!(acl.request_count(), 1);
    // Without a key, no request may pass.
    let report = run_to_end(&h2load, &["--h1", "-n", "1000", "-c", "10", &url]);
    assert_eq!(
        read_count(&report, "status codes:", "4xx"),
        1000,
        "{report}"
    );
    assert_eq!(backend.requests().len(), 3000);
}

/// Runs slowhttptest in front of a server beside regular clients, until authproxy has closed its connections. The tool
/// itself would go on for much longer.
#[track_caller]
fn run_slowhttptest(server: u16, args: &[&str], path: &str) {
    let Some(slowhttptest) = or_skip("slowhttptest", find_program("slowhttptest")) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("acl.yaml");
    permissions::write_acl_file(&file, &[(KEY, &["all"])]);
    let file = format!("--acl-file={}", file.display());
    // Longer than the pause of the tool, so that the rate, not the silence, ends them.
    let times = [
        "--client-timeout=2s",
        "--idle-timeout=2s",
        "--access-log=off",
    ];
    let proxy =
        AuthproxyProcess::start_for_upstream(server, &[&[file.as_str()], &times[..]].concat());
    let files = || {
        let directory = format!("/proc/{}/fd", proxy.pid());
        std::fs::read_dir(directory).unwrap().count()
    };
    let target = SocketAddr::from(([127, 0, 0, 1], proxy.port()));
    let load = LoadGenerator::start(LoadPlan {
        path: format!("/small?apikey={KEY}"),
        clients: 4,
        rate: 20.0,
        timeout: wait_limit(),
        ..LoadPlan::new(target, RESPONSE_BODY, ConnectionReuse::KeepAlive)
    });
    load.await_attempts(20);
    let before = files();
    let limit = (10 * wait_limit().as_secs()).to_string();
    let url = proxy.url(&format!("{path}?apikey={KEY}"));
    let child = Command::new(slowhttptest)
        .args([
            "-c", "200", "-r", "400", "-i", "1", "-p", "5", "-l", &limit, "-u", &url,
        ])
        .args(args)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let _tool = ChildGuard(child);
    wait_until("the slow connections are open", || files() > before + 150);
    // Idle upstream connections are not among those.
    wait_until("all slow connections are closed", || {
        load.await_attempts(1);
        files() < before + 20
    });
    load.await_attempts(20);
    let report = load.stop();
    assert!(report.clean(), "{report}");
}

#[test]
fn slow_request_heads_are_closed_while_other_clients_are_served() {
    let backend = RecordingUpstream::start(PERSONALITY);
    run_slowhttptest(backend.port(), &["-H", "-x", "24"], "/");
}

#[test]
fn slow_request_bodies_are_closed_while_other_clients_are_served() {
    let backend = RecordingUpstream::start(PERSONALITY);
    run_slowhttptest(backend.port(), &["-B", "-s", "8192", "-x", "16"], "/");
}

#[test]
fn slow_readers_are_closed_while_other_clients_are_served() {
    let Some(rig) = or_skip("nginx", NginxRig::start()) else {
        return;
    };
    let windows = [
        "-X", "-w", "512", "-y", "1024", "-n", "1", "-z", "32", "-k", "3",
    ];
    run_slowhttptest(rig.nginx.port(), &windows, "/large");
}

/// What Chromium sends before `fetch(url, {headers: {"X-API-Key": ..}})`, and then.
const CHROMIUM: &[&str] = &[
    "Connection: keep-alive",
    "Accept: */*",
    "Access-Control-Request-Headers: x-api-key",
    "Access-Control-Request-Method: GET",
    "Origin: https://example.com",
    "Sec-Fetch-Dest: empty",
    "Sec-Fetch-Mode: cors",
    "Sec-Fetch-Site: cross-site",
    "Referer: https://example.com/",
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Accept-Language: en-US,en;q=0.9",
];

#[test]
fn browser_preflight_passes_without_key_and_denial_is_readable() {
    let Some(rig) = or_skip("nginx", NginxRig::start()) else {
        return;
    };
    let config = rig.path("authproxy.yaml");
    let cors = "cors:\n  allow-origin: https://example.com\n  allow-headers: x-api-key\n";
    std::fs::write(&config, cors).unwrap();
    let proxy = rig.proxy(&[&format!("--config={config}")]);
    let send = |line: &str, skip: &str, more: &[&str]| {
        let mut text = format!("{line}\r\nHost: 127.0.0.1:{}\r\n", proxy.port());
        let lines = CHROMIUM.iter().filter(|one| !one.starts_with(skip));
        for line in lines.chain(more) {
            text.push_str(&line.replace("keep-alive", "close"));
            text.push_str("\r\n");
        }
        let bytes = exchange_bytes(proxy.port(), format!("{text}\r\n").as_bytes());
        RawResponse::parse(&bytes).unwrap_or_else(|| panic!("no answer to {text}"))
    };
    let origin = Some("https://example.com");
    let asked = send("OPTIONS /small HTTP/1.1", "none", &[]);
    assert_eq!(asked.status, 204, "{asked:?}");
    assert_eq!(asked.header("access-control-allow-origin"), origin);
    assert_eq!(
        asked.header("access-control-allow-headers"),
        Some("x-api-key")
    );
    let key = format!("X-API-Key: {KEY}");
    let got = send("GET /small HTTP/1.1", "Access-Control", &[&key]);
    assert_eq!((got.status, got.body.as_str()), (200, "ok here"));
    assert_eq!(got.header("access-control-allow-origin"), origin);
    for (more, status) in [(&[][..], 401), (&["X-API-Key: other"], 403)] {
        let refused = send("GET /small HTTP/1.1", "Access-Control", more);
        assert_eq!(refused.status, status, "{refused:?}");
        assert_eq!(
            refused.header("access-control-allow-origin"),
            origin,
            "{refused:?}"
        );
    }
    // OPTIONS without the headers of a browser is not a preflight.
    let plain = send(
        "OPTIONS /small HTTP/1.1",
        "Access-Control-Request-Method",
        &[],
    );
    assert_eq!(plain.status, 401, "{plain:?}");
}
