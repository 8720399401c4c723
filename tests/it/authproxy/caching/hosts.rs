//! The same with authproxy as a process, on two hosts.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use hostkit_tests::authproxy::AuthproxyProcess;
use hostkit_tests::memcached::{MemcachedServer, join_addresses};
use hostkit_tests::permissions::{PermissionsBehavior, PermissionsServer, hash_key, key_id};
use hostkit_tests::upstream::RecordingUpstream;
use hostkit_tests::upstream::parser::{FramingPreference, LineEnding, ParserProfile};
use hostkit_tests::{or_skip, wait_limit, wait_until};
use serde_json::json;
use tempfile::TempDir;

const KEY: &str = "a-key-that-is-long-enough-to-be-found";

/// An upstream, a permissions server and memcached, for any number of hosts.
struct MultiHostFixture {
    acl: PermissionsServer,
    memcached: Vec<MemcachedServer>,
    backend: RecordingUpstream,
    directory: TempDir,
}

impl MultiHostFixture {
    /// With [`KEY`]. `None` without memcached.
    fn start() -> Option<Self> {
        let memcached = or_skip("memcached", MemcachedServer::start_several(2))?;
        let acl = PermissionsServer::start();
        acl.add_key(KEY, json!({}));
        let backend = RecordingUpstream::start(ParserProfile {
            ends: LineEnding::Crlf,
            framing: FramingPreference::Chunked,
        });
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "a secret that all hosts share").unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        Some(Self {
            acl,
            memcached,
            backend,
            directory,
        })
    }

    fn host(&self) -> AuthproxyProcess {
        let secret = self.directory.path().join("secret");
        let own = [
            format!("--acl-server={}", self.acl.url()),
            format!("--memcache_servers={}", join_addresses(&self.memcached)),
            format!("--cache-secret-file={}", secret.display()),
        ];
        let mut args = vec!["--cache=1", "--cache_prefix=eightball", "--ttl-denied=1h"];
        args.extend(own.iter().map(String::as_str));
        AuthproxyProcess::start_for_upstream(self.backend.port(), &args)
    }

    fn entry_names(&self) -> Vec<String> {
        self.memcached
            .iter()
            .flat_map(MemcachedServer::keys)
            .collect()
    }
}

#[test]
fn thousand_connections_with_cold_key_query_backend_once_for_all_hosts() {
    let Some(site) = MultiHostFixture::start() else {
        return;
    };
    site.acl
        .set_behavior(PermissionsBehavior::After(Duration::from_millis(100)));
    let host = site.host();
    let request =
        format!("GET / HTTP/1.1\r\nHost: h\r\nX-API-Key: {KEY}\r\nConnection: close\r\n\r\n");
    let mut clients: Vec<TcpStream> = (0..1_000)
        .map(|_| {
            let client = TcpStream::connect(("127.0.0.1", host.port())).unwrap();
            client.set_read_timeout(Some(wait_limit())).unwrap();
            client
        })
        .collect();
    for client in &mut clients {
        client.write_all(request.as_bytes()).unwrap();
    }
    for client in &mut clients {
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert!(
            answer.starts_with(b"HTTP/1.1 200"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    assert_eq!(site.acl.request_count(), 1);

    let mut other = site.host();
    wait_until("another host finds the entry", || {
        let asked = site.acl.request_count();
        other.restart();
        assert_eq!(other.get_with_key("/", KEY).status, 200);
        site.acl.request_count() == asked
    });
}

#[test]
fn purge_on_every_host_denies_revoked_key() {
    let Some(site) = MultiHostFixture::start() else {
        return;
    };
    let host = site.host();
    let purges = [
        format!("/purge?key_sha256={}", hash_key(KEY)),
        format!("/purge?id={}", key_id(KEY)),
        "/purge?all".to_owned(),
    ];
    for purge in purges {
        site.acl.add_key(KEY, json!({}));
        let _ = host.request_admin("POST", "/purge?all");
        assert_eq!(host.get_with_key("/", KEY).status, 200);
        site.acl.remove_key(KEY);
        assert_eq!(host.get_with_key("/", KEY).status, 200, "it is cached");
        let answer = host.request_admin("POST", &purge);
        assert_eq!(
            (answer.status, answer.body.trim()),
            (200, r#"{"purged":1}"#),
            "{purge}"
        );
        assert_eq!(host.get_with_key("/", KEY).status, 403, "{purge}");
    }
    // A newly started host finds no grant either: the last result of the first host was that the key is unknown.
    let other = site.host();
    assert_eq!(other.get_with_key("/", KEY).status, 403);
}

#[test]
fn memcached_receives_neither_key_nor_its_hash() {
    let Some(site) = MultiHostFixture::start() else {
        return;
    };
    let host = site.host();
    wait_until("an entry is stored", || {
        let _ = host.request_admin("POST", "/purge?all");
        assert_eq!(host.get_with_key("/", KEY).status, 200);
        !site.entry_names().is_empty()
    });
    for name in site.entry_names() {
        let values = site.memcached.iter().filter_map(|server| server.get(&name));
        for value in values {
            let shown = format!("{name} {}", String::from_utf8_lossy(&value));
            assert!(shown.starts_with("eightball:1:"), "{shown}");
            assert!(
                !shown.contains(KEY) && !shown.contains(&hash_key(KEY)),
                "{shown}"
            );
            assert!(
                !value
                    .windows(32)
                    .any(|bytes| Some(bytes.to_vec()) == hostkit::hex::decode(&hash_key(KEY))),
                "{shown}"
            );
        }
    }
}
