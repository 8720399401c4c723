//! Permissions servers that are healthy, dead, slow, flapping or wrong, named by flags or by the live configuration.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use authproxy::testing::{
    BreakerState, DEADLINE, LiveconfBackend, PermissionsBackend as _, PermissionsServers,
};
use hostkit_tests::free_port;
use hostkit_tests::permissions::{PermissionsBehavior, PermissionsServer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream, UnixListener};

use super::{PATIENCE, block_on, hash, look_up_id, servers, wait_for};

/// Forwards connections to a port, and counts them.
async fn relay(port: u16) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let here = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut far = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
                tokio::io::copy_bidirectional(&mut near, &mut far).await
            });
        }
    });
    (here, count)
}

#[test]
fn query_sends_key_hash_and_response_has_whole_grant() {
    let acl = PermissionsServer::start();
    let grant = json!({
        "id": "eightball", "rights": ["all", "write"], "hosts": ["*.Example.com"], "paths": ["/a/"],
        "methods": ["GET"], "expires": "2027-01-31T00:00:00+00:00", "ttl": 30, "note": "for others",
    });
    acl.add_key("some-raw-key", grant);
    block_on(async {
        let url = acl.url().replace("http://", "http://me:open%20sesame@");
        let servers = servers(&[format!("{url}/x?y=z")], PATIENCE);
        let found = servers.look_up(hash("some-raw-key")).await.unwrap();
        assert_eq!(found.ttl, Some(Duration::from_secs(30)));
        let grant = found.grant.unwrap();
        assert_eq!(
            (&*grant.id, grant.expires),
            ("eightball", Some(1_801_353_600))
        );
        assert_eq!(
            (&*grant.hosts[0], &*grant.paths[0]),
            ("*.example.com", "/a")
        );
        assert_eq!(look_up_id(&servers, "another").await, Ok(None));
        let status = servers.status();
        assert!(!format!("{status:?}").contains("sesame"), "{status:?}");
    });
    let asked = acl.requests()[0].to_ascii_lowercase();
    let body = format!(r#"{{"v":1,"key_sha256":"{}"}}"#, hash("some-raw-key"));
    assert!(asked.starts_with("post /acl/x?y=z http/1.1\r\n"), "{asked}");
    assert!(
        asked.contains(&format!("\r\nhost: 127.0.0.1:{}\r\n", acl.port())),
        "{asked}"
    );
    assert!(
        asked.contains("\r\ncontent-type: application/json\r\n"),
        "{asked}"
    );
    assert!(
        asked.contains("\r\nauthorization: basic bwu6b3blbibzzxnhbwu=\r\n"),
        "{asked}"
    );
    assert!(asked.ends_with(&format!("\r\n\r\n{body}")), "{asked}");
    assert!(!asked.contains("some-raw-key"), "{asked}");
}

#[test]
fn invalid_response_is_neither_grant_nor_denial() {
    let status = |status: u16, body: &str| PermissionsBehavior::Status(status, body.to_owned());
    let raw = |text: &str| PermissionsBehavior::Garbage(text.as_bytes().to_vec());
    let known = r#"{"known":true,"id":"liar","rights":["all"]}"#;
    let ok = "HTTP/1.1 200 OK\r\n";
    let mut manners = vec![
        PermissionsBehavior::Close,
        status(200, ""),
        status(200, "{}"),
        status(200, "<html>"),
        status(200, r#"{"known":"yes"}"#),
        status(200, r#"{"known":1}"#),
        status(200, r#"{"known":true}"#),
        status(200, r#"{"known":true,"id":"two words","rights":["all"]}"#),
        status(200, r#"{"known":true,"id":"a","rights":"all"}"#),
        status(
            200,
            r#"{"known":true,"id":"a","rights":["all"],"expires":"soon"}"#,
        ),
        status(
            200,
            r#"{"known":true,"id":"a","rights":["all"],"paths":["/a/../b"]}"#,
        ),
        status(200, &format!("{known}{known}")),
        status(200, &known[..known.len() - 1]),
        // A body above the limit, with and without a length.
        status(200, &format!("{}{known}", " ".repeat(65 << 10))),
        raw(&format!(
            "{ok}Transfer-Encoding: chunked\r\n\r\n{}",
            format!("2000\r\n{}\r\n", " ".repeat(8192)).repeat(9)
        )),
        // Half of the body, half of a head, no head.
        raw(&format!("{ok}Content-Length: 100\r\n\r\n{known}")),
        raw(&format!(
            "{ok}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{known}\r\n",
            known.len()
        )),
        raw("HTTP/1.1 200 OK\r\nContent-"),
        raw("SSH-2.0-OpenSSH_9.2\r\n"),
        raw(&format!("{ok}X: {}\r\n\r\n{known}", "x".repeat(64 << 10))),
        raw(&format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n{known}"
        )),
        raw("HTTP/1.1 204 No Content\r\n\r\n"),
        raw(&format!(
            "HTTP/1.1 302 BackendResponse\r\nLocation: /other\r\nContent-Length: {}\r\n\r\n{known}",
            known.len()
        )),
    ];
    for code in [
        201, 202, 206, 301, 307, 400, 401, 403, 404, 410, 429, 500, 502, 503, 504,
    ] {
        manners.push(status(code, known));
        manners.push(status(code, r#"{"known":false}"#));
    }
    let acl = PermissionsServer::start();
    acl.add_key("good", json!({"id": "good"}));
    block_on(async {
        for manner in manners {
            // New ones: the circuit breaker of the others would soon be open.
            let servers = servers(&[acl.url()], PATIENCE);
            acl.set_behavior(manner.clone());
            let answer = look_up_id(&servers, "good").await;
            let why = answer.expect_err(&format!("{manner:?}"));
            assert!(why.starts_with(&acl.url()) && !why.contains('\n'), "{why}");
            assert_eq!(
                acl.request_count(),
                2,
                "once more, in case it was a hiccup: {manner:?}"
            );
            acl.set_behavior(PermissionsBehavior::Answer);
            assert_eq!(
                look_up_id(&servers, "good").await,
                Ok(Some("good".to_owned()))
            );
        }
    });
}

#[test]
fn kept_connections_are_reused_and_stale_ones_are_retried() {
    let acl = PermissionsServer::start();
    acl.add_keys(["good"]);
    block_on(async {
        let (port, connections) = relay(acl.port()).await;
        let servers = servers(&[format!("http://127.0.0.1:{port}")], PATIENCE);
        for _ in 0..20 {
            look_up_id(&servers, "good").await.unwrap();
        }
        assert_eq!(connections.load(Ordering::Relaxed), 1);
        for _ in 0..5 {
            acl.restart();
            assert!(look_up_id(&servers, "good").await.unwrap().is_some());
        }
        let status = &servers.status()[0];
        assert_eq!((status.answered, status.failed), (25, 0), "{status:?}");
        assert!(status.last_success.is_some());
    });
}

#[test]
fn kept_connection_that_fails_during_query_is_replaced() {
    let acl = PermissionsServer::start();
    acl.add_keys(["good"]);
    // The second query of a connection is never answered.
    acl.set_behaviors(vec![
        PermissionsBehavior::Answer,
        PermissionsBehavior::Close,
    ]);
    block_on(async {
        let servers = servers(&[acl.url()], PATIENCE);
        for _ in 0..6 {
            assert!(look_up_id(&servers, "good").await.unwrap().is_some());
        }
        assert_eq!(servers.status()[0].failed, 0);
    });
}

#[test]
fn next_server_is_queried_after_failure() {
    let (dead, slow, well) = (
        free_port(),
        PermissionsServer::start(),
        PermissionsServer::start(),
    );
    well.add_keys(["good"]);
    slow.set_behavior(PermissionsBehavior::Hang);
    block_on(async {
        let dead = format!("http://127.0.0.1:{dead}");
        let servers = servers(&[dead, slow.url(), well.url()], Duration::from_secs(1));
        while servers.status()[1].breaker == BreakerState::Closed {
            assert!(look_up_id(&servers, "good").await.unwrap().is_some());
        }
        let status = servers.status();
        assert_eq!(
            (status[0].failed, status[1].failed, status[2].failed),
            (5, 5, 0),
            "{status:?}"
        );
        assert!(
            status[0].last_error.as_ref().unwrap().contains("refused"),
            "{status:?}"
        );
        assert!(
            status[1]
                .last_error
                .as_ref()
                .unwrap()
                .contains("no response within"),
            "{status:?}"
        );
        assert_eq!(slow.request_count(), 5);
    });
}

#[test]
fn server_failing_every_other_query_stays_in_use() {
    let acl = PermissionsServer::start();
    acl.add_keys(["good"]);
    acl.set_behaviors(vec![
        PermissionsBehavior::Status(500, String::new()),
        PermissionsBehavior::Answer,
    ]);
    block_on(async {
        let servers = servers(&[acl.url()], PATIENCE);
        for _ in 0..20 {
            assert!(look_up_id(&servers, "good").await.unwrap().is_some());
        }
        assert_eq!(servers.status()[0].breaker, BreakerState::Closed);
    });
}

#[test]
fn circuit_breaker_skips_dead_server_until_probe_succeeds() {
    let acl = PermissionsServer::start();
    acl.add_keys(["good"]);
    acl.set_behavior(PermissionsBehavior::Status(500, String::new()));
    block_on(async {
        let servers = Arc::new(servers(&[acl.url()], PATIENCE));
        while servers.status()[0].breaker == BreakerState::Closed {
            assert!(look_up_id(&*servers, "good").await.is_err());
        }
        assert_eq!(acl.request_count(), 5);
        let why = look_up_id(&*servers, "good").await.unwrap_err();
        assert!(
            why.contains("circuit breaker open") && why.contains("status 500"),
            "{why}"
        );

        acl.set_behavior(PermissionsBehavior::Hang);
        let probing = tokio::spawn({
            let servers = Arc::clone(&servers);
            async move {
                loop {
                    let _ = look_up_id(&*servers, "good").await;
                    tokio::task::yield_now().await;
                }
            }
        });
        wait_for(|| acl.request_count() > 0).await;
        assert_eq!(servers.status()[0].breaker, BreakerState::HalfOpen);
        assert!(
            look_up_id(&*servers, "good").await.is_err(),
            "one probe is enough"
        );
        assert_eq!(acl.request_count(), 1);
        probing.abort();
        assert!(probing.await.is_err());

        // The probe was cancelled: the next query takes over.
        acl.set_behavior(PermissionsBehavior::Answer);
        while look_up_id(&*servers, "good").await.is_err() {
            tokio::task::yield_now().await;
        }
        assert_eq!(servers.status()[0].breaker, BreakerState::Closed);
        assert_eq!(servers.status()[0].last_error, None);
    });
}

#[test]
fn concurrent_queries_are_bounded() {
    let acl = PermissionsServer::start();
    acl.add_keys(["good"]);
    acl.set_behavior(PermissionsBehavior::Hang);
    block_on(async {
        let servers = Arc::new(servers(&[acl.url()], PATIENCE));
        let asking: Vec<_> = (0..64)
            .map(|_| {
                let servers = Arc::clone(&servers);
                tokio::spawn(async move { look_up_id(&*servers, "good").await })
            })
            .collect();
        wait_for(|| acl.request_count() == 64).await;
        let why = look_up_id(&*servers, "good").await.unwrap_err();
        assert!(why.contains("under way"), "{why}");
        assert_eq!(acl.request_count(), 64);
        asking.iter().for_each(tokio::task::JoinHandle::abort);
        acl.set_behavior(PermissionsBehavior::Answer);
        while look_up_id(&*servers, "good").await.is_err() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn permissions_server_on_unix_socket_is_queried() {
    let acl = PermissionsServer::start();
    acl.add_keys(["good"]);
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("a socket");
    block_on(async {
        let listener = UnixListener::bind(&path).unwrap();
        let port = acl.port();
        tokio::spawn(async move {
            let (mut near, _) = listener.accept().await?;
            let mut far = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
            tokio::io::copy_bidirectional(&mut near, &mut far).await
        });
        let servers = servers(&[format!("unix:{}", path.display())], PATIENCE);
        assert!(look_up_id(&servers, "good").await.unwrap().is_some());
    });
}

#[test]
fn invalid_server_url_is_rejected_without_its_password() {
    for url in [
        "ftp://h/",
        "unix:relative",
        "unix://host/path",
        "data:x",
        "https://me:secret@[::1/",
        "file:///x",
    ] {
        let Ok(url) = url.parse() else { continue };
        let why = PermissionsServers::new(&[url], DEADLINE)
            .unwrap_err()
            .to_string();
        assert!(
            why.contains("invalid permissions server") && !why.contains("secret"),
            "{why}"
        );
    }
    assert!(PermissionsServers::new(&[], DEADLINE).is_err());
}

#[test]
fn live_configuration_may_appear_later_and_change() {
    let (one, two) = (PermissionsServer::start(), PermissionsServer::start());
    one.add_key("good", json!({"id": "one"}));
    two.add_key("good", json!({"id": "two"}));
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("liveconf.yaml");
    let say = |text: String| {
        hostkit_tests::replace_file(&path, text.as_bytes());
    };
    block_on(async {
        let liveconf = Arc::new(LiveconfBackend::open(&path));
        let why = look_up_id(&*liveconf, "good").await.unwrap_err();
        assert!(why.contains("liveconf.yaml"), "{why}");
        tokio::spawn(Arc::clone(&liveconf).follow());
        let becomes = async |expected: &str| {
            while look_up_id(&*liveconf, "good").await != Ok(Some(expected.to_owned())) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        say("other: 1\n".to_owned());
        let told_of = async |text: &str| {
            let error = || liveconf.status().file.unwrap().error;
            wait_for(|| error().is_some_and(|why| why.contains(text))).await;
        };
        told_of("missing `aclserver`").await;
        say(format!("other: 1\naclserver: {}\n", one.url()));
        becomes("one").await;
        let dead = free_port();
        say(format!(
            "aclserver:\n- http://127.0.0.1:{dead}\n- {}\n",
            two.url()
        ));
        becomes("two").await;
        assert_eq!(liveconf.status().servers.len(), 2);
        say("aclserver: [".to_owned());
        told_of("liveconf.yaml:").await;
        assert_eq!(
            look_up_id(&*liveconf, "good").await,
            Ok(Some("two".to_owned()))
        );
    });
}
