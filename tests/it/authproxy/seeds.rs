//! The command line of the article, run as quoted through bash, after a table of substitutions for hosts, ports and
//! files.

use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use hostkit_tests::authproxy::send_request;
use hostkit_tests::permissions::PermissionsServer;
use hostkit_tests::upstream::RecordingUpstream;
use hostkit_tests::upstream::parser::ParserProfile;
use hostkit_tests::{ChildGuard, bin, free_port, wait_until};
use serde_json::Value;

/// Part 2, the process `authproxy` of the job `eightball`.
const QUOTED: &str = "./authproxy_server-ANOTHERGITHASH-trusty_x86_64.pex --port={{thermos.ports[http]}} --memcache_servers=memcache-main.0001.use1.cache.amazonaws.com:11211,memcache-main.0002.use1.cache.amazonaws.com:11211,memcache-main.0003.use1.cache.amazonaws.com:11211,memcache-main.0004.use1.cache.amazonaws.com:11211,memcache-main.0005.use1.cache.amazonaws.com:11211,memcache-...etc --cache=1 --cache_prefix=eightball --timeout=15 --console=True --logstash_format=True --server=http://localhost:{{thermos.ports[private]}} --right=all --use_liveconf_aclserver";

#[test]
fn command_line_of_article_runs_as_quoted() {
    let scratch = tempfile::tempdir().unwrap();
    let backend = RecordingUpstream::start(ParserProfile::ALL[0]);
    let acl = PermissionsServer::start();
    acl.add_keys(["some-key"]);
    let (port, unreachable) = (free_port(), free_port());
    let program = scratch
        .path()
        .join("authproxy_server-ANOTHERGITHASH-trusty_x86_64.pex");
    symlink(bin("authproxy"), program).unwrap();

    // Substitutions, in this order.
    let mut line = QUOTED.to_owned();
    for (quoted, stands) in [
        ("./authproxy_server", "exec ./authproxy_server".to_owned()),
        ("{{thermos.ports[http]}}", port.to_string()),
        ("{{thermos.ports[private]}}", backend.port().to_string()),
        // The article abbreviates the rest of the list.
        (",memcache-...etc", String::new()),
        (".use1.cache.amazonaws.com:11211", format!(":{unreachable}")),
        ("memcache-main.000", "127.0.0.".to_owned()),
    ] {
        assert!(line.contains(quoted), "{quoted}");
        line = line.replace(quoted, &stands);
    }
    let liveconf = scratch.path().join("liveconf.yaml");
    let secret = scratch.path().join("secret");
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
    let log = scratch.path().join("log");
    let child = Command::new("bash")
        .args(["-c", &line])
        .current_dir(&scratch)
        // Written by Puppet into /etc/hostkit.
        .env("HOSTKIT_AUTHPROXY_LIVECONF", &liveconf)
        .env("HOSTKIT_AUTHPROXY_CACHE_SECRET_FILE", &secret)
        .env("CB_AURORA_INSTANCE", "3")
        .stdin(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut process = ChildGuard(child);
    wait_until("authproxy listens", || {
        assert!(
            process.0.try_wait().unwrap().is_none(),
            "{}",
            std::fs::read_to_string(&log).unwrap()
        );
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });

    // The address of the permissions server is not configured yet.
    assert_eq!(send_request(port, "GET", "/", &[]).status, 401);
    let answer = send_request(port, "GET", "/", &["X-API-Key: some-key"]);
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(
        answer.body.contains("permissions_unavailable"),
        "{answer:?}"
    );
    std::fs::write(&liveconf, format!("other: 1\naclserver: {}\n", acl.url())).unwrap();
    wait_until("the key is accepted", || {
        send_request(port, "GET", "/x", &["X-API-Key: some-key"]).status == 200
    });
    assert_eq!(send_request(port, "GET", "/?apikey=other", &[]).status, 403);

    drop(process);
    let log = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    assert!(!lines.is_empty() && !log.contains("some-key"), "{log}");
    assert!(
        lines.iter().all(|line| line["CB_AURORA_INSTANCE"] == "3"),
        "{log}"
    );
}
