//! Permissions engines as authproxy asks them: the file, servers that are well or not, and the live configuration.

use std::collections::HashMap;
use std::future::Future;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use authproxy::grant::{Found, KeyHash};
use authproxy::permissions::file::AclFile;
use authproxy::permissions::liveconf::Liveconf;
use authproxy::permissions::server::{DEADLINE, Servers};
use authproxy::permissions::{BreakerState, Permissions};
use hostkit_tests::acl::{Acl, Manner, write_file};
use hostkit_tests::{eventually, free_port, patience};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream, UnixListener};

/// Long: a busy machine must not make a good server a slow one.
const PATIENCE: Duration = Duration::from_secs(20);

fn block_on<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let limited = async { tokio::time::timeout(patience(), test).await };
    let done = runtime.block_on(limited).expect("the test ends in time");
    runtime.shutdown_background();
    done
}

fn servers(urls: &[String], deadline: Duration) -> Servers {
    let urls: Vec<_> = urls.iter().map(|url| url.parse().unwrap()).collect();
    Servers::new(&urls, deadline).unwrap()
}

fn hash(key: &str) -> KeyHash {
    KeyHash::of(key.as_bytes())
}

/// Whose a key is.
async fn told(engine: &impl Permissions, key: &str) -> Result<Option<String>, String> {
    let found = engine.find(hash(key)).await;
    let Found { grant, .. } = found.map_err(|why| why.to_string())?;
    Ok(grant.map(|grant| grant.id.clone()))
}

/// Ready when a condition holds.
async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Passes connections on to a port, and counts them.
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
fn a_question_names_a_hash_and_an_answer_all_of_the_grant() {
    let acl = Acl::start();
    let grant = json!({
        "id": "eightball", "rights": ["all", "write"], "hosts": ["*.Example.com"], "paths": ["/a/"],
        "methods": ["GET"], "expires": "2027-01-31T00:00:00+00:00", "ttl": 30, "note": "for others",
    });
    acl.know("some-raw-key", grant);
    block_on(async {
        let url = acl.url().replace("http://", "http://me:open%20sesame@");
        let servers = servers(&[format!("{url}/x?y=z")], PATIENCE);
        let found = servers.find(hash("some-raw-key")).await.unwrap();
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
        assert_eq!(told(&servers, "another").await, Ok(None));
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
fn whatever_is_no_answer_is_neither_a_grant_nor_a_denial() {
    let status = |status: u16, body: &str| Manner::Status(status, body.to_owned());
    let raw = |text: &str| Manner::Garbage(text.as_bytes().to_vec());
    let known = r#"{"known":true,"id":"liar","rights":["all"]}"#;
    let ok = "HTTP/1.1 200 OK\r\n";
    let mut manners = vec![
        Manner::Close,
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
        // Longer than is read, whether that is said or found.
        status(200, &format!("{}{known}", " ".repeat(65 << 10))),
        raw(&format!(
            "{ok}Transfer-Encoding: chunked\r\n\r\n{}",
            format!("2000\r\n{}\r\n", " ".repeat(8192)).repeat(9)
        )),
        // Half of it, half of a head, none.
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
            "HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: {}\r\n\r\n{known}",
            known.len()
        )),
    ];
    for code in [
        201, 202, 206, 301, 307, 400, 401, 403, 404, 410, 429, 500, 502, 503, 504,
    ] {
        manners.push(status(code, known));
        manners.push(status(code, r#"{"known":false}"#));
    }
    let acl = Acl::start();
    acl.know("good", json!({"id": "good"}));
    block_on(async {
        for manner in manners {
            // New ones: the breaker of the others would soon be open.
            let servers = servers(&[acl.url()], PATIENCE);
            acl.behave(manner.clone());
            let answer = told(&servers, "good").await;
            let why = answer.expect_err(&format!("{manner:?}"));
            assert!(why.starts_with(&acl.url()) && !why.contains('\n'), "{why}");
            assert_eq!(
                acl.asked(),
                2,
                "once more, in case it was a hiccup: {manner:?}"
            );
            acl.behave(Manner::Answer);
            assert_eq!(told(&servers, "good").await, Ok(Some("good".to_owned())));
        }
    });
}

#[test]
fn connections_are_kept_and_a_stale_one_costs_nobody_an_answer() {
    let acl = Acl::start();
    acl.know_all(["good"]);
    block_on(async {
        let (port, connections) = relay(acl.port()).await;
        let servers = servers(&[format!("http://127.0.0.1:{port}")], PATIENCE);
        for _ in 0..20 {
            told(&servers, "good").await.unwrap();
        }
        assert_eq!(connections.load(Ordering::Relaxed), 1);
        for _ in 0..5 {
            acl.restart();
            assert!(told(&servers, "good").await.unwrap().is_some());
        }
        let status = &servers.status()[0];
        assert_eq!((status.answered, status.failed), (25, 0), "{status:?}");
        assert!(status.last_success.is_some());
    });
}

#[test]
fn a_kept_connection_that_fails_under_the_question_is_replaced() {
    let acl = Acl::start();
    acl.know_all(["good"]);
    // The second question of a connection is never answered.
    acl.behave_in_turn(vec![Manner::Answer, Manner::Close]);
    block_on(async {
        let servers = servers(&[acl.url()], PATIENCE);
        for _ in 0..6 {
            assert!(told(&servers, "good").await.unwrap().is_some());
        }
        assert_eq!(servers.status()[0].failed, 0);
    });
}

#[test]
fn the_next_server_answers_where_one_fails() {
    let (dead, slow, well) = (free_port(), Acl::start(), Acl::start());
    well.know_all(["good"]);
    slow.behave(Manner::Hang);
    block_on(async {
        let dead = format!("http://127.0.0.1:{dead}");
        let servers = servers(&[dead, slow.url(), well.url()], Duration::from_secs(1));
        while servers.status()[1].breaker == BreakerState::Closed {
            assert!(told(&servers, "good").await.unwrap().is_some());
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
                .contains("no answer within"),
            "{status:?}"
        );
        assert_eq!(slow.asked(), 5);
    });
}

#[test]
fn a_server_that_fails_every_other_time_answers_every_question() {
    let acl = Acl::start();
    acl.know_all(["good"]);
    acl.behave_in_turn(vec![Manner::Status(500, String::new()), Manner::Answer]);
    block_on(async {
        let servers = servers(&[acl.url()], PATIENCE);
        for _ in 0..20 {
            assert!(told(&servers, "good").await.unwrap().is_some());
        }
        assert_eq!(servers.status()[0].breaker, BreakerState::Closed);
    });
}

#[test]
fn a_dead_server_is_left_alone_until_one_question_finds_it_well() {
    let acl = Acl::start();
    acl.know_all(["good"]);
    acl.behave(Manner::Status(500, String::new()));
    block_on(async {
        let servers = Arc::new(servers(&[acl.url()], PATIENCE));
        while servers.status()[0].breaker == BreakerState::Closed {
            assert!(told(&*servers, "good").await.is_err());
        }
        assert_eq!(acl.asked(), 5);
        let why = told(&*servers, "good").await.unwrap_err();
        assert!(
            why.contains("left alone") && why.contains("answered 500"),
            "{why}"
        );

        acl.behave(Manner::Hang);
        let probing = tokio::spawn({
            let servers = Arc::clone(&servers);
            async move {
                loop {
                    let _ = told(&*servers, "good").await;
                    tokio::task::yield_now().await;
                }
            }
        });
        until(|| acl.asked() > 0).await;
        assert_eq!(servers.status()[0].breaker, BreakerState::HalfOpen);
        assert!(
            told(&*servers, "good").await.is_err(),
            "one probe is enough"
        );
        assert_eq!(acl.asked(), 1);
        probing.abort();
        assert!(probing.await.is_err());

        // Whoever probed has given up: the next one does it.
        acl.behave(Manner::Answer);
        while told(&*servers, "good").await.is_err() {
            tokio::task::yield_now().await;
        }
        assert_eq!(servers.status()[0].breaker, BreakerState::Closed);
        assert_eq!(servers.status()[0].last_error, None);
    });
}

#[test]
fn no_more_questions_are_under_way_than_are_bearable() {
    let acl = Acl::start();
    acl.know_all(["good"]);
    acl.behave(Manner::Hang);
    block_on(async {
        let servers = Arc::new(servers(&[acl.url()], PATIENCE));
        let asking: Vec<_> = (0..64)
            .map(|_| {
                let servers = Arc::clone(&servers);
                tokio::spawn(async move { told(&*servers, "good").await })
            })
            .collect();
        until(|| acl.asked() == 64).await;
        let why = told(&*servers, "good").await.unwrap_err();
        assert!(why.contains("under way"), "{why}");
        assert_eq!(acl.asked(), 64);
        asking.iter().for_each(tokio::task::JoinHandle::abort);
        acl.behave(Manner::Answer);
        while told(&*servers, "good").await.is_err() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_socket_file_is_a_server_too() {
    let acl = Acl::start();
    acl.know_all(["good"]);
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
        assert!(told(&servers, "good").await.unwrap().is_some());
    });
}

#[test]
fn what_is_no_url_of_an_engine_is_refused_without_its_password() {
    for url in [
        "ftp://h/",
        "unix:relative",
        "unix://host/path",
        "data:x",
        "https://me:secret@[::1/",
        "file:///x",
    ] {
        let Ok(url) = url.parse() else { continue };
        let why = Servers::new(&[url], DEADLINE).unwrap_err().to_string();
        assert!(
            why.contains("cannot be a permissions engine") && !why.contains("secret"),
            "{why}"
        );
    }
    assert!(Servers::new(&[], DEADLINE).is_err());
}

/// Ends the other thread, also when this one panics.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Calls `swap` again and again while keys are looked up; the key `always` must be known at every moment.
fn under_load(file: &Arc<AclFile>, mut swap: impl FnMut(usize)) {
    let (done, looked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let _done = Done(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let always = file.get(&hash("always"));
                looked.fetch_add(1, Ordering::Relaxed);
                if always.is_none() {
                    // The other thread would wait for ever.
                    return;
                }
            }
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.unwrap();
        runtime.spawn(Arc::clone(file).follow());
        for turn in 1..=30 {
            let before = looked.load(Ordering::Relaxed);
            swap(turn);
            let newest = hash(&format!("turn-{turn}"));
            eventually("the newest text is in force", || {
                file.get(&newest).is_some()
            });
            eventually("keys were looked up", || {
                looked.load(Ordering::Relaxed) > before
            });
        }
        runtime.shutdown_background();
    });
    assert!(file.get(&hash("always")).is_some());
}

fn write(path: &Path, turn: usize) {
    let newest = format!("turn-{turn}");
    write_file(path, &[("always", &["all"]), (&newest, &["all"])]);
}

#[test]
fn a_file_that_is_renamed_over_is_followed_without_a_gap() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("acl.yaml");
    write(&path, 0);
    let file = Arc::new(AclFile::open(&path).unwrap());
    under_load(&file, |turn| write(&path, turn));
    assert_eq!(file.status().refused, 0);
}

#[test]
fn a_file_behind_a_link_that_is_swapped_is_followed() {
    // As Kubernetes mounts it: acl.yaml -> ..data/acl.yaml, ..data -> ..version
    let temp = tempfile::tempdir().unwrap();
    let link = |target: &Path, name: &str| {
        let part = temp.path().join("part");
        std::os::unix::fs::symlink(target, &part).unwrap();
        std::fs::rename(part, temp.path().join(name)).unwrap();
    };
    let publish = |turn: usize| {
        let version = temp.path().join(format!("..{turn}"));
        std::fs::create_dir(&version).unwrap();
        write(&version.join("acl.yaml"), turn);
        link(&version, "..data");
        if let Some(before) = turn.checked_sub(1) {
            std::fs::remove_dir_all(temp.path().join(format!("..{before}"))).unwrap();
        }
    };
    publish(0);
    link(Path::new("..data/acl.yaml"), "acl.yaml");
    let file = Arc::new(AclFile::open(&temp.path().join("acl.yaml")).unwrap());
    under_load(&file, publish);
}

#[test]
fn a_file_that_is_removed_or_broken_takes_no_key_away() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("acl.yaml");
    write(&path, 0);
    let file = Arc::new(AclFile::open(&path).unwrap());
    under_load(&file, |turn| {
        let refused = file.status().refused;
        match turn % 3 {
            0 => std::fs::remove_file(&path).unwrap(),
            1 => std::fs::write(&path, "keys:\n- {id: half").unwrap(),
            _ => std::fs::write(&path, "").unwrap(),
        }
        eventually("the file is refused", || file.status().refused > refused);
        assert!(file.status().trouble.is_some());
        write(&path, turn);
    });
    assert_eq!(file.status().trouble, None);
}

#[test]
fn a_file_that_is_written_in_place_is_read_when_it_is_whole() {
    let temp = tempfile::tempdir().unwrap();
    let (path, whole) = (temp.path().join("acl.yaml"), temp.path().join("whole"));
    let text = |turn: usize| {
        write(&whole, turn);
        // `always` last: the first half is a list without it.
        let text = std::fs::read_to_string(&whole).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let keys = value["keys"].as_array().unwrap();
        (
            format!("keys:\n- {}\n", keys[1]),
            format!("- {}\n", keys[0]),
        )
    };
    let (first, second) = text(0);
    std::fs::write(&path, first + &second).unwrap();
    let file = Arc::new(AclFile::open(&path).unwrap());
    under_load(&file, |turn| {
        if turn == 1 {
            // It is read once more when it begins to be followed, whoever may be writing then.
            return write(&path, turn);
        }
        let (first, second) = text(turn);
        let mut out = std::fs::File::create(&path).unwrap();
        out.write_all(first.as_bytes()).unwrap();
        // Time enough to read it, had anybody a mind to.
        std::thread::sleep(Duration::from_millis(20));
        out.write_all(second.as_bytes()).unwrap();
    });
}

#[test]
fn the_live_configuration_may_come_later_and_change() {
    let (one, two) = (Acl::start(), Acl::start());
    one.know("good", json!({"id": "one"}));
    two.know("good", json!({"id": "two"}));
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("liveconf.yaml");
    let say = |text: String| {
        let part = temp.path().join("part");
        std::fs::write(&part, text).unwrap();
        std::fs::rename(part, &path).unwrap();
    };
    block_on(async {
        let liveconf = Arc::new(Liveconf::open(&path));
        let why = told(&*liveconf, "good").await.unwrap_err();
        assert!(why.contains("liveconf.yaml"), "{why}");
        tokio::spawn(Arc::clone(&liveconf).follow());
        let becomes = async |expected: &str| {
            while told(&*liveconf, "good").await != Ok(Some(expected.to_owned())) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        say("other: 1\n".to_owned());
        let told_of = async |text: &str| {
            let trouble = || liveconf.status().file.unwrap().trouble;
            until(|| trouble().is_some_and(|why| why.contains(text))).await;
        };
        told_of("has no `aclserver`").await;
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
        assert_eq!(told(&*liveconf, "good").await, Ok(Some("two".to_owned())));
    });
}

#[test]
fn grants_of_a_server_and_of_a_file_are_the_same() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("acl.yaml");
    let scopes = json!({"hosts": ["[::1]", "A.b"], "paths": ["/%61/"], "methods": ["GET"], "expires": "2027-01-31"});
    let mut entry = json!({"id": "good", "sha256": hash("good").to_string(), "rights": ["all"]});
    let mut answer = json!({"id": "good", "rights": ["all"]});
    for (name, value) in scopes.as_object().unwrap() {
        entry[name] = value.clone();
        answer[name] = value.clone();
    }
    std::fs::write(&path, json!({ "keys": [entry] }).to_string()).unwrap();
    let file = AclFile::open(&path).unwrap();
    let acl = Acl::start();
    acl.know("good", answer);
    let found = block_on(async { servers(&[acl.url()], PATIENCE).find(hash("good")).await });
    let grants: HashMap<_, _> = [
        ("file", file.get(&hash("good"))),
        ("server", found.unwrap().grant),
    ]
    .into();
    assert_eq!(grants["file"], grants["server"]);
    assert!(grants["file"].is_some());
}
