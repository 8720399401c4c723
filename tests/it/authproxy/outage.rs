//! The backend and every memcached fail under load.
//!
//! In the normal run a minute is a second; under `HOSTKIT_TEST_LONG` the times are the defaults.

use std::net::SocketAddr;
use std::time::Duration;

use hostkit_tests::authproxy::AuthproxyProcess;
use hostkit_tests::load::{ConnectionReuse, LoadGenerator, LoadPlan, LoadReport};
use hostkit_tests::memcached::{MemcachedServer, join_addresses};
use hostkit_tests::permissions::{PermissionsBehavior, PermissionsServer};
use hostkit_tests::upstream::parser::{FramingPreference, LineEnding, ParserProfile};
use hostkit_tests::upstream::{RESPONSE_BODY, RecordingUpstream};
use hostkit_tests::{is_long_run, or_skip, wait_limit, wait_until, wait_within};
use serde_json::json;
use tempfile::TempDir;

/// The keys of the clients.
const KEYS: &[&str] = &["alice-key", "bob-key", "carol-key", "dave-key"];
const SECRET: &str = "a secret that all hosts share";

/// So many minutes, scaled.
fn minutes(count: u32) -> Duration {
    let minute = if is_long_run() { 60 } else { 1 };
    Duration::from_secs(minute) * count
}

/// authproxy with all its dependencies.
struct OutageRig {
    acl: PermissionsServer,
    memcached: Vec<MemcachedServer>,
    backend: RecordingUpstream,
    proxy: AuthproxyProcess,
    _directory: TempDir,
}

impl OutageRig {
    /// With the times of the defaults: a minute for a grant, ten more while the backend fails.
    fn start() -> Result<Self, String> {
        let stale = format!("--stale-if-error={}s", minutes(10).as_secs());
        let allowed = format!("--ttl-allowed={}s", minutes(1).as_secs());
        Self::with(&[&allowed, &stale])
    }

    fn with(args: &[&str]) -> Result<Self, String> {
        let memcached = MemcachedServer::start_several(3)?;
        let acl = PermissionsServer::start();
        acl.add_keys(KEYS.iter().copied());
        let backend = RecordingUpstream::start(ParserProfile {
            ends: LineEnding::Crlf,
            framing: FramingPreference::Chunked,
        });
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("secret");
        std::fs::write(&secret, SECRET).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&secret, private).unwrap();
        let (engine, servers) = (acl.url(), join_addresses(&memcached));
        let own = [
            format!("--acl-server={engine}"),
            format!("--memcache_servers={servers}"),
            format!("--cache-secret-file={}", secret.display()),
        ];
        let mut all: Vec<&str> = own.iter().map(String::as_str).collect();
        all.extend([
            "--cache=1",
            "--cache_prefix=eightball",
            "--ttl-denied=200ms",
        ]);
        all.extend(["--ttl-error=50ms", "--access-log=off"]);
        all.extend(args);
        let proxy = AuthproxyProcess::start_for_upstream(backend.port(), &all);
        Ok(Self {
            acl,
            memcached,
            backend,
            proxy,
            _directory: directory,
        })
    }

    /// A load for each known key, each served at least once.
    fn loads(&self) -> Vec<LoadGenerator> {
        let target = SocketAddr::from(([127, 0, 0, 1], self.proxy.port()));
        let start = |key: &&str| {
            LoadGenerator::start(LoadPlan {
                path: format!("/?apikey={key}"),
                clients: 4,
                rate: 20.0,
                timeout: wait_limit(),
                ..LoadPlan::new(target, RESPONSE_BODY, ConnectionReuse::KeepAlive)
            })
        };
        let loads: Vec<LoadGenerator> = KEYS.iter().map(start).collect();
        loads.iter().for_each(|load| load.await_attempts(10));
        loads
    }

    /// The status and reason for a key.
    fn ask(&self, key: &str) -> (u16, Option<String>) {
        let answer = self.proxy.get_with_key("/", key);
        (answer.status, answer.reason())
    }
}

const UNAVAILABLE: &str = "permissions_unavailable";

#[track_caller]
fn assert_no_failures(loads: Vec<LoadGenerator>) {
    let reports: Vec<LoadReport> = loads.into_iter().map(LoadGenerator::stop).collect();
    for report in reports {
        assert!(report.clean(), "{report}");
    }
}

#[test]
fn known_keys_are_served_during_outage_of_backend_and_memcached() {
    let Some(rig) = or_skip("memcached", OutageRig::start()) else {
        return;
    };
    let loads = rig.loads();
    rig.acl.kill();
    rig.memcached.iter().for_each(MemcachedServer::kill);
    // Grants were last refreshed at most a minute before; the rest of the ten is less the time to stop the loads.
    let mut number = 0;
    wait_within(minutes(9), || {
        number += 1;
        let unknown = rig.ask(&format!("unknown-{number}"));
        assert_eq!(unknown, (503, Some(UNAVAILABLE.to_owned())));
        loads.iter().for_each(|load| load.await_attempts(5));
        false
    });
    assert!(number > 10, "{number}");
    assert_no_failures(loads);
    let stale = rig.proxy.get_with_key("/", KEYS[0]);
    assert_eq!(stale.header("x-auth-stale"), Some("1"), "{stale:?}");
    // The wait is bounded.
    let limit = minutes(3) + wait_limit();
    let mut last = (200, None);
    let ended = wait_within(limit, || {
        last = rig.ask(KEYS[0]);
        last.0 != 200
    });
    assert!(ended, "served stale");
    assert_eq!(last, (503, Some(UNAVAILABLE.to_owned())));
    rig.acl.restart();
    wait_until("all keys are served fresh again", || {
        rig.ask(KEYS[0]).0 == 200
    });
    wait_until("the unknown key is denied again", || {
        rig.ask("unknown-1").0 == 403
    });
    let fresh = rig.proxy.get_with_key("/", KEYS[0]);
    assert_eq!(fresh.header("x-auth-stale"), None);
}

#[test]
fn memcached_crash_hang_and_return_fail_no_request() {
    let Some(rig) = or_skip("memcached", OutageRig::with(&["--ttl-allowed=100ms"])) else {
        return;
    };
    let loads = rig.loads();
    let more = || loads.iter().for_each(|load| load.await_attempts(20));
    let newcomers = |name: &str| {
        for number in 0..10 {
            let key = format!("{name}-{number}");
            rig.acl.add_key(&key, json!({}));
            assert_eq!(rig.ask(&key).0, 200, "{key}");
        }
    };
    let used = || {
        let gets = rig.memcached.iter().map(|one| one.stat("cmd_get"));
        gets.sum::<u64>()
    };
    wait_until("memcached is used", || used() > 0);
    rig.memcached[0].stall();
    newcomers("one-stalled");
    more();
    rig.memcached.iter().for_each(MemcachedServer::stall);
    newcomers("all-stalled");
    more();
    rig.memcached.iter().for_each(MemcachedServer::resume);
    rig.memcached[1].kill();
    newcomers("one-dead");
    more();
    rig.memcached.iter().for_each(MemcachedServer::kill);
    newcomers("all-dead");
    more();
    rig.memcached.iter().for_each(MemcachedServer::restart);
    newcomers("all-new");
    more();
    let before = used();
    wait_until("memcached is used again", || {
        loads.iter().for_each(|load| load.await_attempts(1));
        used() > before
    });
    assert_no_failures(loads);
}

#[test]
fn known_keys_are_served_while_backend_flaps_hangs_and_sends_garbage() {
    let Some(rig) = or_skip("memcached", OutageRig::with(&["--ttl-allowed=50ms"])) else {
        return;
    };
    let loads = rig.loads();
    let html = "<html>It works!</html>".to_owned();
    let lies = [
        PermissionsBehavior::Status(200, html.clone()),
        PermissionsBehavior::Status(
            200,
            r#"{"known":"yes","id":"x","rights":["all"]}"#.to_owned(),
        ),
        PermissionsBehavior::Status(200, r#"{"known":true,"rights":["all"]}"#.to_owned()),
        PermissionsBehavior::Status(200, r#"{"known":true,"id":"x"}"#.to_owned()),
        PermissionsBehavior::Status(
            200,
            r#"[{"known":true,"id":"x","rights":["all"]}]"#.to_owned(),
        ),
        PermissionsBehavior::Status(200, String::new()),
        PermissionsBehavior::Status(200, format!("{{\"known\":true,{}", " ".repeat(1 << 20))),
        PermissionsBehavior::Status(404, r#"{"known":false}"#.to_owned()),
        PermissionsBehavior::Status(403, html),
        PermissionsBehavior::Status(500, String::new()),
        PermissionsBehavior::Status(302, String::new()),
        PermissionsBehavior::Garbage(
            b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{\"known\":true".to_vec(),
        ),
        PermissionsBehavior::Garbage(vec![0; 4096]),
        PermissionsBehavior::Close,
    ];
    for (number, lie) in lies.iter().enumerate() {
        rig.acl.set_behavior(lie.clone());
        let unknown = rig.ask(&format!("lied-about-{number}"));
        assert_eq!(unknown, (503, Some(UNAVAILABLE.to_owned())), "{lie:.100?}");
        wait_until("known keys are queried, too", || {
            loads.iter().for_each(|load| load.await_attempts(1));
            KEYS.iter().any(|key| rig.acl.request_count_for(key) > 0)
        });
    }
    let mut turns = vec![
        PermissionsBehavior::Answer,
        PermissionsBehavior::After(Duration::from_millis(20)),
    ];
    turns.extend(lies);
    rig.acl.set_behaviors(turns);
    loads.iter().for_each(|load| load.await_attempts(100));
    rig.acl.set_behavior(PermissionsBehavior::Hang);
    loads.iter().for_each(|load| load.await_attempts(100));
    rig.acl.set_behavior(PermissionsBehavior::Answer);
    assert_no_failures(loads);
}

#[test]
fn restart_during_outage_uses_memcached_entries() {
    let args = ["--ttl-allowed=50ms", "--stale-if-error=1h"];
    let Some(mut rig) = or_skip("memcached", OutageRig::with(&args)) else {
        return;
    };
    for key in KEYS {
        assert_eq!(rig.ask(key).0, 200);
    }
    wait_until("memcached has all entries", || {
        let held = rig.memcached.iter().map(|one| one.keys().len());
        held.sum::<usize>() == KEYS.len()
    });
    rig.acl.kill();
    rig.proxy.restart();
    for key in KEYS {
        assert_eq!(rig.ask(key), (200, None), "{key}");
    }
    wait_until("stale entries are served", || {
        let answer = rig.proxy.get_with_key("/", KEYS[0]);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.header("x-auth-stale").is_some()
    });
    assert_eq!(rig.ask("unknown"), (503, Some(UNAVAILABLE.to_owned())));
    // Without memcached a restart loses all entries, which does not count as a denial either.
    rig.memcached.iter().for_each(MemcachedServer::kill);
    rig.proxy.restart();
    assert_eq!(rig.ask(KEYS[0]), (503, Some(UNAVAILABLE.to_owned())));
    assert!(rig.backend.requests().iter().all(|request| {
        let id = request.header("x-auth-id");
        id.is_some_and(|id| KEYS.iter().any(|key| key.starts_with(id)))
    }));
}
