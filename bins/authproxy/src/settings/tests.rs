//! Settings from files and command lines, and which are refused.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use hostkit::{Exit, Failure};

use super::*;

mod preflights;
mod secrets;

/// The required settings.
const LEAST: &str = "port: 1\nserver: unix:/s\nright: all\nacl-file: /acl\n";

/// Settings from the text of a file and a command line behind `authproxy`.
pub(crate) fn loaded(file: &str, line: &str) -> Result<LoadedSettings, Failure> {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("authproxy.yaml");
    std::fs::write(&path, file).unwrap();
    let words = ["authproxy", "--config", path.to_str().unwrap()];
    let words = words.into_iter().chain(line.split_whitespace());
    let (args, line) = hostkit::cli::parse::<crate::Args, _>(words).unwrap();
    load(&args, &line)
}

/// The site settings of a file with the required settings in front.
pub(crate) fn site(file: &str) -> Arc<SiteSettings> {
    least(file, "").unwrap().settings.site
}

fn least(file: &str, line: &str) -> Result<LoadedSettings, Failure> {
    loaded(&format!("{LEAST}{file}"), line)
}

fn shown(loaded: &LoadedSettings) -> String {
    // The hash is of the values as they were written.
    let mut settings = loaded.settings.clone();
    settings.hash.clear();
    format!("{settings:?}")
}

fn secret(directory: &Path, bytes: &[u8], mode: u32) -> String {
    let path = directory.join("secret");
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn flag_overrides_the_file_which_overrides_the_default() {
    let timeout = |file: &str, line: &str| {
        let loaded = least(file, line).unwrap();
        loaded.settings.site.timeouts.server.as_secs()
    };
    assert_eq!(timeout("", ""), 15);
    assert_eq!(timeout("timeout: 20\n", ""), 20);
    assert_eq!(timeout("timeout: 20\n", "--timeout=1m"), 60);
    let hides = |file: &str, line: &str| least(file, line).unwrap().settings.site.credentials.hide;
    assert!(hides("hide-credentials: true\n", ""));
    assert!(!hides(
        "hide-credentials: true\n",
        "--hide_credentials=False"
    ));
    assert!(hides("hide-credentials: false\n", "--hide_credentials"));
    let drain = |file: &str, line: &str| least(file, line).unwrap().settings.drain_timeout;
    assert_eq!(drain("drain-timeout: 3s\n", ""), Duration::from_secs(3));
    assert_eq!(
        drain("drain-timeout: 3s\n", "--drain-timeout=4"),
        Duration::from_secs(4)
    );
    let admin = |file: &str, line: &str| {
        least(file, line)
            .unwrap()
            .settings
            .admin
            .map(|at| at.to_string())
    };
    assert_eq!(admin("admin: unix:/a\n", "").as_deref(), Some("unix:/a"));
    assert_eq!(
        admin("admin: unix:/a\n", "--admin=unix:/b").as_deref(),
        Some("unix:/b")
    );
}

#[test]
fn every_flag_is_a_key_of_the_file() {
    let temp = tempfile::tempdir().unwrap();
    let secret = secret(temp.path(), &[7; 32], 0o600);
    let command = hostkit::cli::command::<crate::Args>();
    let only_flags = [
        "help",
        "version",
        "config",
        "check",
        "loglevel",
        "console",
        "logstash-format",
        "logstash-tags",
    ];
    for flag in command.get_arguments().filter_map(clap::Arg::get_long) {
        if only_flags.contains(&flag) {
            continue;
        }
        let value = match flag {
            "listen" => "127.0.0.1",
            "server" => "http://h:1",
            "acl-file" => "/other",
            // Only one engine can be.
            "acl-server" | "use-liveconf-aclserver" => continue,
            "fail-open" | "hide-credentials" | "stream-all" => "true",
            "cache" => "false",
            "memcache-servers" => "h:1",
            "cache-secret-file" => &secret,
            "trusted-proxies" => "10.0.0.0/8",
            "key-header" => "x-key",
            "health-path" => "/health",
            "access-log" => "off",
            "cors-preflight" => "pass",
            "protected-headers" => "x-tenant",
            "admin" => "unix:/a",
            "right" | "liveconf" | "cache-prefix" | "key-parameter" => "stats",
            _ => "5000",
        };
        let least = "port: 1\nserver: unix:/s\nright: all\nacl-file: /acl\n";
        let kept: String = least
            .lines()
            .filter(|line| !line.starts_with(&format!("{flag}:")))
            .map(|line| format!("{line}\n"))
            .collect();
        let in_file = loaded(&format!("{kept}{flag}: {value}\n"), "").unwrap();
        let on_line = loaded(&kept, &format!("--{flag}={value}")).unwrap();
        assert_eq!(shown(&in_file), shown(&on_line), "{flag}");
    }
}

#[test]
fn permissions_url_without_a_scheme_is_an_error_with_a_remedy() {
    for text in ["localhost", "acl.example.com/", "http://"] {
        let error = parse_permissions_url(text).unwrap_err();
        assert!(
            error.ends_with("write http://HOST:PORT/, https://HOST/ or unix:/PATH"),
            "{error}"
        );
    }
}

#[test]
fn command_line_without_a_file_is_complete() {
    let line = "authproxy --port=80 --server=http://localhost:81 --right=a,b --right=c --acl-file=/acl --threads=1";
    let (args, parsed) = hostkit::cli::parse::<crate::Args, _>(line.split_whitespace()).unwrap();
    let settings = load(&args, &parsed).unwrap().settings;
    assert_eq!(settings.listen, ["[::]:80".parse().unwrap()]);
    assert_eq!(settings.site.rules.rights, ["a", "b", "c"]);
    assert_eq!(settings.access_log, Some(AccessLogFormat::Plain));
    assert!(settings.site.trusts("10.1.2.3".parse().unwrap()));
    assert!(settings.site.trusts("::ffff:127.0.0.1".parse().unwrap()));
    assert!(!settings.site.trusts("192.0.2.1".parse().unwrap()));
    let words = line.split_whitespace().chain(["--logstash_format=True"]);
    let (args, parsed) = hostkit::cli::parse::<crate::Args, _>(words).unwrap();
    let settings = load(&args, &parsed).unwrap().settings;
    assert_eq!(settings.access_log, Some(AccessLogFormat::Json));
}

#[test]
fn contradictory_settings_are_refused_with_name_and_remedy() {
    for (line, expected) in [
        ("", "missing --server"),
        ("--server=unix:/s", "missing --port"),
        ("--server=unix:/s --listen=127.0.0.1", "missing --port"),
        (
            "--server=unix:/s --port=1 --listen=::1,::1",
            "names [::1]:1 twice",
        ),
        ("--port=1 --server=http://localhost:1", "itself listens"),
        ("--port=1 --server=http://127.0.0.1:1", "itself listens"),
        (
            "--listen=127.0.0.1:1 --server=http://localhost:1",
            "itself listens",
        ),
        ("--port=1 --server=unix:/s", "missing permissions backend"),
        (
            "--port=1 --server=unix:/s --acl-server=ftp://h/",
            "write http://, https:// or unix:/PATH",
        ),
    ] {
        let failure = loaded("", &format!("{line} --right=all")).unwrap_err();
        assert_eq!(failure.exit(), Exit::USAGE, "{line}");
        assert!(failure.to_string().contains(expected), "{line}: {failure}");
    }
    for (file, expected) in [
        ("acl-server: http://h/", "more than one permissions backend"),
        (
            "use-liveconf-aclserver: true",
            "more than one permissions backend",
        ),
        ("timeout: 0", "`timeout`: invalid value `0`: a timeout of 0"),
        (
            "client-timeout: 0ms",
            "`client-timeout`: invalid value `0ms`",
        ),
        ("idle-timeout: 0", "`idle-timeout`: invalid value `0`"),
        ("stream-timeout: 0", "`stream-timeout`: invalid value `0`"),
        ("max-head: 100", "give 1K to 64K"),
        ("max-connections: 0", "0 is not in 1..=10000000"),
        ("key-header: host", "has another meaning"),
        ("key-header: X-Auth-Id", "has another meaning"),
        ("key-header: x_forwarded_for", "has another meaning"),
        ("key-header: content_length", "has another meaning"),
        ("key-header: origin", "has another meaning"),
        ("key-header: X-HTTP-Method-Override", "has another meaning"),
        ("protected-headers: 'a b'", "is not the name of a header"),
        ("protected-headers: [x-*-y]", "is not the name of a header"),
        ("protected-headers: ['*']", "is not the name of a header"),
        ("key-parameter: a=b", "not the name of a query parameter"),
        ("host-param: ''", "not the name of a query parameter"),
        ("host-param: apikey", "is the parameter of the key"),
        ("cache: true\nmemcache-servers: h:x", "is not a server"),
        ("cache: true\nmemcache-servers: h/y", "is not a server"),
        (
            "cache: true\nmemcache-servers: h\ncache-prefix: 'a b'",
            "cannot begin a memcached key",
        ),
        (
            "cache: true\nmemcache-servers: h\ncache-secret-file: /nowhere",
            "cannot read --cache-secret-file=/nowhere",
        ),
        ("health-path: health", "read in different ways"),
        ("health-path: /a/../b", "read in different ways"),
        (
            "routes: [{path: admin, rights: a}]",
            "must begin with a slash",
        ),
        ("routes: [{path: /a//b, rights: a}]", "ambiguous path"),
        ("routes: [{path: /a}]", "the route for /a has neither"),
        (
            "routes: [{path: /a, rights: []}]",
            "the route for /a has neither",
        ),
        (
            "routes: [{path: /a, rights: x, open: true}]",
            "has both `rights` and `open`",
        ),
        (
            "routes: [{path: /a, rights: x, methods: get}]",
            "in upper case",
        ),
        ("routes: [{path: /a, rights: 'x y'}]", "invalid right"),
        (
            "routes: [{path: /a, rights: x}, {path: /a/, rights: z}]",
            "two routes are for /a",
        ),
        (
            "routes: [{path: /a, rights: x, methods: [GET, PUT]}, {path: /a, rights: z, methods: PUT}]",
            "two routes are for /a",
        ),
        (
            "routes: [{path: /a, rights: x}]\nopen: /a",
            "two routes are for /a",
        ),
        (
            "routes: [{path: /Admin, rights: x}, {path: /admin, rights: x, methods: GET}]",
            "the routes for /Admin and /admin differ only in case",
        ),
        (
            "routes: [{path: /A, rights: x}]\nopen: /a",
            "the routes for /A and /a differ only in case",
        ),
        ("cors: {allow-orgin: '*'}", "unknown key `allow-orgin`"),
        ("cors-preflight: answer", "needs `cors`"),
        ("cors: {max-age: 5}", "missing allow-origin"),
        (
            "cors: {allow-origin: a.example}",
            "not an origin as browsers send it",
        ),
        (
            "cors: {allow-origin: 'https://a.example/'}",
            "not an origin as browsers send it",
        ),
        (
            "cors: {allow-origin: 'https://A.example'}",
            "not an origin as browsers send it",
        ),
        (
            "cors: {allow-origin: ['*', 'https://a']}",
            "not an origin as browsers send it",
        ),
        (
            "cors: {allow-origin: 'https://a https://b'}",
            "not an origin as browsers send it",
        ),
        (
            "cors: {allow-origin: []}",
            "not an origin as browsers send it",
        ),
        ("routes: [{path: '/a*', rights: x}]", "match nothing"),
        ("open: ['/a/*']", "match nothing"),
        ("open: ['/a?b=c']", "match nothing"),
        (
            "routes: [{path: /a, rights: x, cors-preflight: answer}]",
            "needs `cors`",
        ),
        (
            "cors: {allow-origin: \"a\\nb\"}",
            "cannot stand in a header",
        ),
    ] {
        let failure = least(file, "").unwrap_err();
        assert_eq!(failure.exit(), Exit::CONFIG, "{file}");
        assert!(failure.to_string().contains(expected), "{file}: {failure}");
    }
}

#[test]
fn invalid_file_is_an_error_with_file_line_and_column() {
    for (file, expected) in [
        (
            "prot: 1",
            "authproxy.yaml:1:1: unknown key `prot`: did you mean `port`?",
        ),
        (
            "port: 1\ntimeout: 3y",
            "authproxy.yaml:2:10: `timeout`: invalid value `3y`: unknown unit \"y\"",
        ),
        (
            "server: https://h:1",
            "authproxy.yaml:1:9: `server`: invalid value `https://h:1`: TLS to the upstream server is not supported",
        ),
        ("listen: [nowhere]", "authproxy.yaml:1:"),
        ("trusted-proxies: 10.0.0.0/99", "write a network like"),
        ("routes: [{path: /a, right: x}]", "did you mean `rights`?"),
        ("access-log: loud", "expected one of plain, json, off"),
        ("cors-preflight: on", "expected one of off, answer, pass"),
    ] {
        let failure = loaded(file, "").unwrap_err();
        assert_eq!(failure.exit(), Exit::CONFIG, "{file}");
        assert!(failure.to_string().contains(expected), "{file}: {failure}");
    }
}

#[test]
fn rules_come_from_the_file() {
    let file = "\
host_param: host
open: [/static, /robots.txt]
routes:
- {path: /admin/, methods: [POST, PUT], rights: [admin, all], name: admin}
- path: /stats
  rights: stats
";
    let site = site(file);
    let seen: Vec<(&str, &str, usize, Option<usize>)> = site
        .rules
        .routes
        .iter()
        .map(|route| {
            let rights = route.rights.as_ref().map(Vec::len);
            (
                &*route.name,
                route.prefix.as_str(),
                route.methods.len(),
                rights,
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("admin", "/admin", 2, Some(2)),
            ("/stats", "/stats", 0, Some(1)),
            ("/static", "/static", 0, None),
            ("/robots.txt", "/robots.txt", 0, None),
        ]
    );
    assert_eq!(site.rules.host_parameter.as_deref(), Some("host"));
}

#[test]
fn path_that_needs_no_right_must_be_declared_open() {
    let bare = "port: 1\nserver: unix:/s\nacl-file: /acl\n";
    let with = |routes: &str| loaded(&format!("{bare}{routes}"), "");
    for routes in [
        "",
        "routes: [{path: /a, rights: x}]",
        "routes: [{path: /, rights: x, methods: GET}]",
    ] {
        let failure = with(routes).unwrap_err();
        assert!(
            failure.to_string().contains("missing --right"),
            "{routes}: {failure}"
        );
    }
    assert!(with("routes: [{path: /, rights: x}]").is_ok());
    assert!(with("open: /").is_ok());
}

/// What `--check` prints of the settings.
fn check_text(loaded: &LoadedSettings) -> String {
    format!("{}{}", loaded.table, describe_effects(&loaded.settings))
}

#[test]
fn check_text_shows_each_rule_of_the_file() {
    let before = check_text(&least("", "").unwrap());
    for (file, line) in [
        ("routes: [{path: /a, rights: x}]", "/a: x ("),
        (
            "routes: [{path: /a, rights: x, methods: PUT}]",
            "/a PUT: x (",
        ),
        (
            "routes: [{path: /a, rights: x, name: of-a}]",
            "/a [of-a]: x (",
        ),
        (
            "routes: [{path: /a, rights: x, cors-preflight: pass}]",
            "/a: x; preflights pass (",
        ),
        ("open: /a", "  /a ("),
        ("host-param: of", "  of ("),
        ("host_param: of", "  of ("),
        (
            "cors: {allow-origin: '*'}",
            "access-control-allow-origin: * (",
        ),
    ] {
        let after = check_text(&least(&format!("{file}\n"), "").unwrap());
        assert!(
            after.contains(line) && after.contains("authproxy.yaml:5)"),
            "{after}"
        );
        assert!(!before.contains(line), "{before}");
    }
}

#[test]
fn changed_setting_that_needs_a_restart_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let secret_of = |bytes: &[u8]| {
        let path = secret(temp.path(), bytes, 0o600);
        least(
            &format!("cache: true\nmemcache-servers: h\ncache-secret-file: {path}\n"),
            "",
        )
    };
    let names = |before: &str, after: &str| {
        let of = |text: &str| loaded(&format!("server: unix:/s\nright: all\n{text}"), "").unwrap();
        restarts(&of(before), &of(after)).join(" ")
    };
    let acl = "acl-file: /acl\n";
    for (before, after, expected) in [
        ("port: 1", "port: 2", "port"),
        ("port: 1", "listen: '[::]:2'", "port listen"),
        ("port: 1", "listen: '[::]:1'", ""),
        ("port: 1\nlame-duck: 3000ms", "port: 1", ""),
        ("port: 1\nthreads: 1", "port: 1", ""),
        (
            "port: 1",
            "port: 1\nttl-denied: 3s\ncache-entries: 7",
            "cache-entries ttl-denied",
        ),
        (
            "port: 1",
            "port: 1\nlame-duck: 1\nmax-connections: 9",
            "lame-duck max-connections",
        ),
        (
            "port: 1",
            "port: 1\ndrain-timeout: 1\naccess-log: off",
            "access-log drain-timeout",
        ),
        ("port: 1", "port: 1\nadmin: unix:/a\ntimeout: 3", "admin"),
        ("port: 1\nlisten: '::'", "port: 1\nlisten: ['[::]']", ""),
        (
            "port: 1",
            "port: 1\ncache-prefix: x\nliveconf: /l\naccess-log: plain",
            "",
        ),
        ("port: 1\nthreads: 8000", "port: 1\nthreads: 9000", ""),
    ] {
        assert_eq!(
            names(&format!("{acl}{before}\n"), &format!("{acl}{after}\n")),
            expected,
            "{after}"
        );
    }
    assert_eq!(
        names(
            "port: 1\nacl-file: /a\n",
            "port: 1\nacl-server: 'http://h/'\n"
        ),
        "acl-file acl-server"
    );
    let server = |url: &str| format!("port: 1\nacl-file: /a\nserver: {url}\n");
    let of_server = |url: &str| loaded(&format!("right: all\n{}", server(url)), "").unwrap();
    assert_eq!(
        restarts(&of_server("http://h:2"), &of_server("http://h:2/")),
        [""; 0]
    );
    let before = secret_of(&[7; 32]).unwrap();
    let after = secret_of(&[8; 32]).unwrap();
    assert_eq!(restarts(&before, &after), ["cache-secret-file"]);
}

#[test]
fn check_text_shows_no_password() {
    let file =
        "port: 1\nserver: unix:/s\nright: all\nacl-server: 'http://u:hunter2@h/?t=hunter2'\n";
    let shown = check_text(&loaded(file, "").unwrap());
    assert!(
        shown.contains("http://***@h/?t=***") && !shown.contains("hunter2"),
        "{shown}"
    );
}

#[test]
fn recoverable_problem_is_a_warning() {
    let warned = |file: &str| least(file, "").unwrap().warnings.join("\n");
    assert_eq!(warned(""), "");
    assert!(warned("memcache-servers: h:1").contains("give --cache"));
    assert!(warned("cache: true").contains("has no effect without --memcache-servers"));
    assert!(warned("fail-open: true").contains("--fail-open is on"));
    let many = least("threads: 60000", "").unwrap();
    assert!(many.settings.threads < 60_000 && many.warnings[0].contains("CPU quota"));
}

#[test]
fn view_returns_the_replaced_settings() {
    let live = LiveSettings::new(site(""));
    let mut view = live.view();
    assert!(!view.site().fail_open);
    live.replace(site("fail-open: true\n"));
    assert!(view.site().fail_open && live.get().fail_open);
}
