//! Registrations in a real ZooKeeper, hostile ones included, and what they become.

use std::collections::BTreeMap;
use std::sync::Arc;

use hostkit_tests::zookeeper::{AnnouncerSession, ServerSetMember, ZookeeperServer};
use hostkit_tests::{or_skip, wait_until};
use synapse::model::{Backend, Job, Reason};
use synapse::settings::{Cluster, Decode, Discovery, ZookeeperDiscovery};
use synapse::watcher::{Context, Found};

use super::Running;

const JOB: &str = "/aurora/www-data/prod/eightball";
const OTHER: &str = "/aurora/www-data/prod/other";

fn server() -> Option<ZookeeperServer> {
    or_skip("zookeeper", ZookeeperServer::start())
}

fn discovery(server: &ZookeeperServer, path: &str, decode: Decode) -> ZookeeperDiscovery {
    ZookeeperDiscovery {
        hosts: vec![server.host()],
        path: path.to_owned(),
        decode,
        generator_config_path: Some(path.to_owned()),
    }
}

fn http() -> Decode {
    Decode::ServerSet(Some("http".to_owned()))
}

/// One cluster, as settings have it.
fn context(server: &ZookeeperServer) -> Context {
    Context {
        clusters: vec![Cluster {
            name: "ny4".to_owned(),
            hosts: vec![server.host()],
            root: "/aurora".to_owned(),
            chroot: None,
            digest: None,
        }],
        ..Context::default()
    }
}

fn follow(server: &ZookeeperServer, discovery: ZookeeperDiscovery) -> Running {
    Running::start_with(&Discovery::Zookeeper(discovery), context(server))
}

fn task(shard: u32, port: u16) -> Vec<u8> {
    let task = ServerSetMember {
        host: "mesos-slave03.example.com",
        shard,
        ports: &[("http", port), ("health", port + 1000)],
    };
    task.payload()
}

/// What was refused, by the part of the source after the last `/`: prefix of the child's name and reason.
fn refused(found: &Found) -> BTreeMap<String, Reason> {
    let rejects = found.values().flat_map(|discovered| &discovered.rejects);
    let named = rejects.map(|reject| {
        let child = reject.source.rsplit('/').next().unwrap();
        (child.to_owned(), reject.reason)
    });
    named.collect()
}

fn backends(found: &Found) -> Vec<Arc<Backend>> {
    let all = found.values().flat_map(|discovered| &discovered.backends);
    all.cloned().collect()
}

#[test]
fn a_task_is_a_backend_from_its_announcement_to_its_end() {
    let Some(server) = server() else { return };
    let announcer = AnnouncerSession::connect(&server);
    let running = follow(&server, discovery(&server, JOB, http()));
    let there = |running: &Running| running.watch.found.borrow().get(JOB).cloned();
    wait_until("the path is missed", || {
        let trouble = there(&running).and_then(|discovered| discovered.trouble.clone());
        trouble.is_some_and(|trouble| trouble.contains("does not exist"))
    });
    let path = announcer.register(JOB, "member_", &task(7, 31000));
    wait_until("the task", || {
        backends(&running.watch.found.borrow()).len() == 1
    });
    let found = there(&running).unwrap();
    let backend = &found.backends[0];
    assert_eq!(backend.endpoint(), "mesos-slave03.example.com:31000");
    assert_eq!((backend.shard, backend.id), (Some(7), Some(0)));
    assert_eq!(backend.name().as_deref(), Some("7"));
    assert_eq!(backend.source.to_string(), path);
    assert_eq!(found.trouble, None);
    assert_eq!(
        found.job,
        Some(Job {
            cluster: Some("ny4".into()),
            role: "www-data".into(),
            environment: "prod".into(),
            name: "eightball".into(),
        })
    );
    announcer.remove(&path);
    wait_until("it is gone", || {
        there(&running).is_some_and(|found| found.backends.is_empty() && found.synced.is_some())
    });
}

#[test]
fn what_cannot_be_a_backend_is_refused_with_its_reason() {
    let Some(server) = server() else { return };
    let announcer = AnnouncerSession::connect(&server);
    announcer.make(JOB);
    let endpoint = |status: &str, host: &str, port: &str| {
        format!(
            r#"{{"status": "{status}", "shard": 1, "serviceEndpoint": {{"host": "a", "port": 1}},
            "additionalEndpoints": {{"http": {{"host": "{host}", "port": {port}}}}}}}"#
        )
    };
    let cases: [(String, Reason); 17] = [
        (endpoint("DEAD", "a", "80"), Reason::Status),
        (endpoint("STOPPING", "a", "80"), Reason::Status),
        (endpoint("alive", "a", "80"), Reason::Status),
        (endpoint("ALIVE", "a", "0"), Reason::Port),
        (endpoint("ALIVE", "a", "\"80\""), Reason::Port),
        (endpoint("ALIVE", "a", "70000"), Reason::Port),
        (endpoint("ALIVE", "a", "-1"), Reason::Port),
        (endpoint("ALIVE", "a b", "80"), Reason::Host),
        (
            endpoint("ALIVE", "a\\n\\tserver evil 10.6.6.6:80", "80"),
            Reason::Host,
        ),
        (endpoint("ALIVE", "", "80"), Reason::Host),
        (endpoint("ALIVE", "a\\u0000b", "80"), Reason::Host),
        (
            endpoint("ALIVE", "a", "80").replace("\"http\"", "\"admin\""),
            Reason::Endpoint,
        ),
        ("{}".to_owned(), Reason::Status),
        (String::new(), Reason::Malformed),
        ("[1]".to_owned(), Reason::Malformed),
        ("not JSON".to_owned(), Reason::Malformed),
        (
            endpoint("ALIVE", "a", "80")[..40].to_owned(),
            Reason::Malformed,
        ),
    ];
    let mut expected = BTreeMap::new();
    for (payload, reason) in &cases {
        let path = announcer.register(JOB, "member_", payload.as_bytes());
        let child = path.rsplit('/').next().unwrap();
        expected.insert(child.to_owned(), *reason);
    }
    announcer.register(JOB, "lock-", &task(0, 1));
    announcer.register(JOB, "member_", &task(5, 31005));
    announcer.register(JOB, "member_", endpoint("ALIVE", "::1", "80").as_bytes());
    let running = follow(&server, discovery(&server, JOB, http()));
    wait_until("the good ones", || {
        backends(&running.watch.found.borrow()).len() == 2
    });
    let found = running.watch.found.borrow();
    assert_eq!(refused(&found), expected);
    let endpoints: Vec<String> = backends(&found)
        .iter()
        .map(|backend| backend.endpoint())
        .collect();
    assert_eq!(endpoints, ["mesos-slave03.example.com:31005", "[::1]:80"]);
    for reject in &found[JOB].rejects {
        assert!(!reject.detail.chars().any(char::is_control), "{reject:?}");
    }
}

#[test]
fn nerve_registers_names_weights_options_and_labels() {
    let Some(server) = server() else { return };
    let announcer = AnnouncerSession::connect(&server);
    let path = "/nerve/services/web/services";
    announcer.make(path);
    let good = r#"{"host": "10.0.3.7", "port": 3000, "name": "i-0abc", "weight": 10,
        "haproxy_server_options": "backup", "haproxy_server_id": 12, "labels": {"az": "us-east-1a"}}"#;
    announcer.register(path, "i-0abc_", good.as_bytes());
    let with = |field: &str| format!(r#"{{"host": "10.0.3.8", "port": 3000, {field}}}"#);
    let hostile = [
        with(r#""name": "a\n\tbind :1""#),
        with(r#""name": "a b""#),
        with(r#""haproxy_server_options": "check\nserver evil""#),
        with(r#""haproxy_server_options": "check # rest""#),
        with(r#""weight": 257"#),
        with(r#""labels": {"az": "a\u001b[2J"}"#),
    ];
    for payload in &hostile {
        announcer.register(path, "evil_", payload.as_bytes());
    }
    let running = follow(&server, discovery(&server, path, Decode::Nerve));
    wait_until("all are read", || {
        refused(&running.watch.found.borrow()).len() == hostile.len()
    });
    let found = running.watch.found.borrow();
    assert!(
        refused(&found)
            .values()
            .all(|reason| *reason == Reason::Unsafe)
    );
    let [backend] = &backends(&found)[..] else {
        panic!("{found:?}");
    };
    assert_eq!(backend.name().as_deref(), Some("i-0abc"));
    assert_eq!(
        (backend.weight, backend.rare.server_id),
        (Some(10), Some(12))
    );
    assert_eq!(backend.rare.options.as_deref(), Some("backup"));
    assert_eq!(backend.rare.labels["az"], "us-east-1a");
    assert_eq!(found[path].job, None);
}

#[test]
fn a_pattern_finds_jobs_as_they_come_and_touches_no_other() {
    let Some(server) = server() else { return };
    let announcer = AnnouncerSession::connect(&server);
    announcer.register(JOB, "member_", &task(0, 31000));
    announcer.register("/aurora/www-data/staging/eightball", "member_", &task(0, 1));
    let running = follow(&server, discovery(&server, "/aurora/*/prod/*", http()));
    wait_until("the job", || running.watch.found.borrow().contains_key(JOB));
    let before = running.watch.found.borrow()[JOB].clone();
    announcer.register(OTHER, "member_", &task(0, 31500));
    wait_until("the new job", || {
        let found = running.watch.found.borrow();
        found
            .get(OTHER)
            .is_some_and(|other| other.backends.len() == 1)
    });
    let found = running.watch.found.borrow();
    let paths: Vec<&String> = found.keys().collect();
    assert_eq!(paths, [JOB, OTHER]);
    assert!(
        std::sync::Arc::ptr_eq(&before, &found[JOB]),
        "it is not made again"
    );
}

#[test]
fn a_pattern_that_matches_nothing_is_an_answer() {
    let Some(server) = server() else { return };
    let running = follow(&server, discovery(&server, "/aurora/*/prod/*", http()));
    running.finds("nothing", &[]);
}

#[test]
fn generator_configuration_stands_in_the_path_or_elsewhere() {
    let Some(server) = server() else { return };
    let announcer = AnnouncerSession::connect(&server);
    announcer.make(JOB);
    announcer.make("/config");
    let own = r#"{"haproxy":{"server_options":"check"}}"#;
    let other = r#"{"haproxy":{"server_options":"check inter 1s"}}"#;
    announcer.set(JOB, own.as_bytes());
    announcer.set("/config", other.as_bytes());
    let config = |running: &Running| {
        let found = running.watch.found.borrow();
        found
            .get(JOB)
            .and_then(|found| found.generator_config.clone())
    };
    let inside = discovery(&server, JOB, http());
    let elsewhere = ZookeeperDiscovery {
        generator_config_path: Some("/config".into()),
        ..inside.clone()
    };
    let disabled = ZookeeperDiscovery {
        generator_config_path: None,
        ..inside.clone()
    };
    let inside = follow(&server, inside);
    let elsewhere = follow(&server, elsewhere);
    let disabled = follow(&server, disabled);
    wait_until("its own", || config(&inside).as_deref() == Some(own));
    wait_until("the other", || config(&elsewhere).as_deref() == Some(other));
    announcer.set("/config", own.as_bytes());
    wait_until("the change", || config(&elsewhere).as_deref() == Some(own));
    announcer.set(JOB, b"10.0.0.1");
    wait_until("an address is none", || config(&inside).is_none());
    wait_until("the path", || {
        disabled.watch.found.borrow().contains_key(JOB)
    });
    assert_eq!(config(&disabled), None);
}

#[test]
fn what_zookeeper_said_last_stands_while_it_is_away() {
    let Some(mut server) = server() else { return };
    let announcer = AnnouncerSession::connect(&server);
    announcer.register(JOB, "member_", &task(0, 31000));
    let running = follow(&server, discovery(&server, JOB, http()));
    wait_until("the task", || {
        backends(&running.watch.found.borrow()).len() == 1
    });
    server.kill();
    wait_until("the trouble is told", || {
        running.watch.found.borrow()[JOB].trouble.is_some()
    });
    assert_eq!(backends(&running.watch.found.borrow()).len(), 1);
    server.restart();
    wait_until("it is back", || {
        running.watch.found.borrow()[JOB].trouble.is_none()
    });
}

#[test]
fn a_path_that_cannot_be_followed_is_told() {
    let running = Running::start_with(
        &Discovery::Zookeeper(ZookeeperDiscovery {
            hosts: vec!["not a host".into()],
            path: JOB.into(),
            decode: http(),
            generator_config_path: None,
        }),
        Context::default(),
    );
    running.suffers("invalid ZooKeeper server", &[]);
}
