//! Proxies of the environment: a host that only the proxy can resolve is reached through it, by every client alike.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use hostkit_tests::origin::OriginServer;
use hostkit_tests::s3::S3Server;
use hostkit_tests::tls::CertificateAuthority;

use super::{CacheHost, FakeServer, HASH, answer};

const PATH: &str = "/builds/pex/job-1.2.bin";

/// A forward proxy that resolves every name to one port of this host.
struct ForwardProxy {
    url: String,
    lines: Arc<Mutex<Vec<String>>>,
}

impl ForwardProxy {
    /// Serves until the process ends.
    fn start(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let log = lines.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                log.lock().unwrap().push(forward(client.unwrap(), port));
            }
        });
        Self { url, lines }
    }

    /// The first lines of the connections.
    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// The environment of its clients.
    fn env(&self, variable: &str) -> Vec<(String, String)> {
        vec![(variable.to_owned(), self.url.clone())]
    }
}

/// Joins a client and the server, and returns the client's first line.
fn forward(mut client: TcpStream, port: u16) -> String {
    let mut reader = BufReader::new(client.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap() > 0 {}
    let line = head.lines().next().unwrap_or_default().to_owned();
    let mut server = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (to, first): (_, &[u8]) = if line.starts_with("CONNECT ") {
        (&mut client, b"HTTP/1.1 200 Connection established\r\n\r\n")
    } else {
        // The servers here accept the absolute form that a proxy gets.
        (&mut server, head.as_bytes())
    };
    to.write_all(first).unwrap();
    let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    std::thread::spawn(move || copy(&mut from, &mut to));
    std::thread::spawn(move || copy(&mut client, &mut server));
    line
}

fn copy(from: &mut TcpStream, to: &mut TcpStream) {
    let mut piece = [0; 16 << 10];
    while let Ok(got @ 1..) = from.read(&mut piece) {
        if to.write_all(&piece[..got]).is_err() {
            break;
        }
    }
    // A client that waits for the end of a response gets it.
    let _ = to.shutdown(std::net::Shutdown::Write);
}

#[test]
fn plain_http_and_s3_use_proxy_unless_no_proxy_names_host() {
    let (origin, s3) = (OriginServer::start(), S3Server::start());
    origin.put(PATH, "through the proxy");
    s3.create_bucket("builds");
    let host = CacheHost::new();
    std::fs::write(host.path("made"), "through the proxy").unwrap();
    host.s3cache_env(["put", "made", &PATH[1..]], &s3.env())
        .exits(0);
    let http = ForwardProxy::start(origin.port());
    let endpoint = s3.endpoint();
    let s3_port = endpoint.rsplit(':').next().unwrap().parse().unwrap();
    let s3_proxy = ForwardProxy::start(s3_port);
    type ProxyCase<'a> = (&'a ForwardProxy, &'a [&'a str], Vec<(String, String)>);
    let cases: [ProxyCase<'_>; 2] = [
        (&http, &[&format!("http://artifacts.invalid{PATH}")], vec![]),
        (
            &s3_proxy,
            &[
                &format!("s3:/{PATH}"),
                "--endpoint-url=http://artifacts.invalid",
                "--path-style",
            ],
            s3.env(),
        ),
    ];
    for (proxy, args, keys) in cases {
        for variable in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
            let host = CacheHost::new();
            let env = [keys.clone(), proxy.env(variable)].concat();
            host.s3cache_env(args.iter().chain(&["--copy-to=out"]), &env)
                .exits(0);
            assert_eq!(host.read("out"), b"through the proxy");
        }
        let asked = proxy.lines();
        let named = format!(" http://artifacts.invalid{PATH}");
        assert!(asked[0].contains(&named), "{asked:?}");
        let excluded = ("NO_PROXY".to_owned(), "a.example, .invalid".to_owned());
        let env = [keys, proxy.env("HTTP_PROXY"), vec![excluded]].concat();
        CacheHost::new()
            .s3cache_env(args.iter().chain(&["--timeout=20"]), &env)
            .exits(69);
        assert_eq!(proxy.lines().len(), asked.len(), "{args:?}");
    }
}

#[test]
fn https_and_s3_over_tls_use_connect_tunnel() {
    let authority = CertificateAuthority::wrong_name();
    let origin = OriginServer::start_tls(&authority);
    origin.put(PATH, "over TLS");
    let ca = format!("--ca-file={}", authority.ca().display());
    for args in [
        &[format!("https://elsewhere.invalid{PATH}")] as &[_],
        &[
            format!("s3:/{PATH}"),
            "--endpoint-url=https://elsewhere.invalid".to_owned(),
            "--path-style".to_owned(),
            "--no-sign-request".to_owned(),
        ],
    ] {
        let (host, proxy) = (CacheHost::new(), ForwardProxy::start(origin.port()));
        let more = [ca.clone(), "--copy-to=out".to_owned()];
        host.s3cache_env(args.iter().chain(&more), &proxy.env("HTTPS_PROXY"))
            .exits(0);
        assert_eq!(host.read("out"), b"over TLS");
        let lines = proxy.lines();
        assert_eq!(lines[0], "CONNECT elsewhere.invalid:443 HTTP/1.1");
    }
}

#[test]
fn loopback_and_instance_metadata_never_use_proxy() {
    let (host, origin, s3) = (CacheHost::new(), OriginServer::start(), S3Server::start());
    origin.put(PATH, "direct");
    s3.create_bucket("builds");
    std::fs::write(host.path("made"), "direct").unwrap();
    let imds = FakeServer::start(|head| {
        let ttl = ["x-aws-ec2-metadata-token-ttl-seconds: 21600"];
        if head.starts_with("PUT ") {
            answer("200 OK", &ttl, "the-token")
        } else {
            answer("200 OK", &[], "eu-central-1")
        }
    });
    // It answers 403 to every request.
    let refusal = FakeServer::start(|_| answer("403 Forbidden", &[], ""));
    let proxy = ("ALL_PROXY".to_owned(), refusal.url());
    let env = [s3.env(), vec![proxy]].concat();
    host.s3cache_env(["put", "made", &PATH[1..]], &env).exits(0);
    host.s3cache_env([&format!("s3:/{PATH}"), "--copy-to=out"], &env)
        .exits(0);
    assert_eq!(host.read("out"), b"direct");
    host.s3cache_env([&origin.url(PATH)], &env).exits(0);
    assert!(refusal.heads().is_empty(), "{:?}", refusal.heads());
    // AWS itself is reached through it, in the region of the instance.
    let mut env = env;
    env.retain(|(name, _)| !matches!(name.as_str(), "AWS_ENDPOINT_URL" | "AWS_REGION"));
    let more = [
        ("AWS_EC2_METADATA_DISABLED", "false"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &imds.url()),
    ];
    env.extend(more.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let uri = format!("s3://builds/pex/job-{HASH}.bin");
    host.s3cache_env(["exists", &uri, "--timeout=60"], &env)
        .exits(69);
    let asked = refusal.heads();
    let expected = "CONNECT builds.s3.eu-central-1.amazonaws.com:443 HTTP/1.1\r\n";
    assert!(
        asked.iter().all(|head| head.starts_with(expected)),
        "{asked:?}"
    );
    assert!(!asked.is_empty() && !imds.heads().is_empty());
}

#[test]
fn unusable_proxy_is_named() {
    let env = [
        ("ALL_PROXY", "socks5://127.0.0.1:9"),
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    for source in [
        format!("http://artifacts.invalid{PATH}"),
        format!("s3:/{PATH}"),
    ] {
        CacheHost::new()
            .s3cache_env([source], &env)
            .exits(69)
            .logs("ALL_PROXY");
    }
}

#[test]
fn unreachable_proxy_is_named_with_variable_and_without_password() {
    let dead = format!("127.0.0.1:{}", hostkit_tests::free_port());
    let refusal = FakeServer::start(|_| answer("403 Forbidden", &[], ""));
    let refusing = refusal.url();
    let refused = format!("cannot connect through the proxy {refusing}");
    for (proxy, named) in [
        (
            format!("http://{dead}"),
            format!("cannot connect to the proxy http://{dead}"),
        ),
        (
            dead.clone(),
            format!("cannot connect to the proxy http://{dead}"),
        ),
        (
            format!("http://me:secret@{dead}"),
            format!("cannot connect to the proxy http://***@{dead}"),
        ),
        (
            "proxy.invalid".to_owned(),
            "cannot connect to the proxy http://proxy.invalid".to_owned(),
        ),
        (refusing.clone(), refused),
    ] {
        for source in [
            format!("https://artifacts.invalid{PATH}"),
            format!("s3:/{PATH}"),
        ] {
            let env = [
                ("HTTPS_PROXY", proxy.as_str()),
                ("AWS_ACCESS_KEY_ID", "id"),
                ("AWS_SECRET_ACCESS_KEY", "key"),
            ];
            let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
            let outcome = CacheHost::new()
                .s3cache_env(["exists", &source], &env)
                .exits(69);
            let outcome = outcome.logs(&format!("{named}: correct HTTPS_PROXY, or add"));
            assert!(!outcome.stderr.contains("secret"), "{}", outcome.stderr);
        }
    }
}

#[test]
fn unresolved_host_name_is_named() {
    let outcome = CacheHost::new().s3cache(["exists", "http://artifacts.invalid/x"]);
    outcome
        .exits(69)
        .logs("cannot resolve host \"artifacts.invalid\": check the name");
}
