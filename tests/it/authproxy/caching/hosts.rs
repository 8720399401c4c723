//! The same with authproxy as a process, as it stands on two hosts.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use hostkit_tests::acl::{Acl, Manner, hash, id_of};
use hostkit_tests::authproxy::Authproxy;
use hostkit_tests::backend::Backend;
use hostkit_tests::backend::reading::{Ends, Framing, Personality};
use hostkit_tests::memcached::{Memcached, addresses};
use hostkit_tests::{eventually, or_skip, patience};
use serde_json::json;
use tempfile::TempDir;

const KEY: &str = "a-key-that-is-long-enough-to-be-found";

/// A server, a permissions engine and memcached, for any number of hosts.
struct Site {
    acl: Acl,
    memcached: Vec<Memcached>,
    backend: Backend,
    directory: TempDir,
}

impl Site {
    /// One that knows [`KEY`]. None without memcached.
    fn start() -> Option<Self> {
        let memcached = or_skip("memcached", Memcached::several(2))?;
        let acl = Acl::start();
        acl.know(KEY, json!({}));
        let backend = Backend::start(Personality {
            ends: Ends::Crlf,
            framing: Framing::Chunked,
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

    fn host(&self) -> Authproxy {
        let secret = self.directory.path().join("secret");
        let own = [
            format!("--acl-server={}", self.acl.url()),
            format!("--memcache_servers={}", addresses(&self.memcached)),
            format!("--cache-secret-file={}", secret.display()),
        ];
        let mut args = vec!["--cache=1", "--cache_prefix=eightball", "--ttl-denied=1h"];
        args.extend(own.iter().map(String::as_str));
        Authproxy::before(self.backend.port(), &args)
    }

    fn names(&self) -> Vec<String> {
        self.memcached.iter().flat_map(Memcached::keys).collect()
    }
}

#[test]
fn a_thousand_connections_with_a_cold_key_ask_once_and_the_next_host_never() {
    let Some(site) = Site::start() else { return };
    site.acl.behave(Manner::After(Duration::from_millis(100)));
    let host = site.host();
    let request =
        format!("GET / HTTP/1.1\r\nHost: h\r\nX-API-Key: {KEY}\r\nConnection: close\r\n\r\n");
    let mut clients: Vec<TcpStream> = (0..1_000)
        .map(|_| {
            let client = TcpStream::connect(("127.0.0.1", host.port())).unwrap();
            client.set_read_timeout(Some(patience())).unwrap();
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
    assert_eq!(site.acl.asked(), 1);

    let mut other = site.host();
    eventually("another host finds the answer", || {
        let asked = site.acl.asked();
        other.restart();
        assert_eq!(other.get_with_key("/", KEY).status, 200);
        site.acl.asked() == asked
    });
}

#[test]
fn a_revoked_key_is_let_go_by_a_purge() {
    let Some(site) = Site::start() else { return };
    let host = site.host();
    let purges = [
        format!("/purge?key_sha256={}", hash(KEY)),
        format!("/purge?id={}", id_of(KEY)),
        "/purge?all".to_owned(),
    ];
    for purge in purges {
        site.acl.know(KEY, json!({}));
        let _ = host.tell("POST", "/purge?all");
        assert_eq!(host.get_with_key("/", KEY).status, 200);
        site.acl.forget(KEY);
        assert_eq!(host.get_with_key("/", KEY).status, 200, "it is remembered");
        let answer = host.tell("POST", &purge);
        assert_eq!(
            (answer.status, answer.body.trim()),
            (200, r#"{"purged":1}"#),
            "{purge}"
        );
        assert_eq!(host.get_with_key("/", KEY).status, 403, "{purge}");
    }
    // A host that starts now finds no grant either: what the first one was told last is that nobody has the key.
    let other = site.host();
    assert_eq!(other.get_with_key("/", KEY).status, 403);
}

#[test]
fn memcached_sees_neither_the_key_nor_its_hash() {
    let Some(site) = Site::start() else { return };
    let host = site.host();
    eventually("an entry is there", || {
        let _ = host.tell("POST", "/purge?all");
        assert_eq!(host.get_with_key("/", KEY).status, 200);
        !site.names().is_empty()
    });
    for name in site.names() {
        let values = site.memcached.iter().filter_map(|server| server.get(&name));
        for value in values {
            let shown = format!("{name} {}", String::from_utf8_lossy(&value));
            assert!(shown.starts_with("eightball:1:"), "{shown}");
            assert!(
                !shown.contains(KEY) && !shown.contains(&hash(KEY)),
                "{shown}"
            );
            assert!(
                !value.windows(32).any(|bytes| bytes == raw(&hash(KEY))),
                "{shown}"
            );
        }
    }
}

/// The bytes of a hash in hex.
fn raw(hex: &str) -> Vec<u8> {
    let pairs = (0..hex.len() / 2).map(|at| &hex[2 * at..2 * at + 2]);
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}
