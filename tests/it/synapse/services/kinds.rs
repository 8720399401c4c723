//! Kinds of services: pairs, canaries, patterns, named servers, and those that a registry writes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{SocketAddr, TcpStream};

use hostkit_tests::zookeeper::AnnouncerSession;
use hostkit_tests::{free_port, wait_until};
use serde_json::{Value, json};

use super::{Stage, answers, get, get_with, section};

#[test]
fn a_pair_and_a_canary() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    let (public, private, canary) = (free_port(), free_port(), free_port());
    let mut found = stage.serverset("/aurora/www/prod/api");
    found["decode"] = json!({"method": "serverset"});
    stage.add(
        "api",
        json!({
            "discovery": found,
            "haproxy": {"server_options": "check inter 1s"},
            "public": {"endpoint_name": "http", "haproxy": {"port": public}},
            "private": {"endpoint_name": "private", "haproxy": {"port": private}},
        }),
    );
    let found = stage.serverset("/aurora/www/prod/eightball");
    stage.add(
        "eightball",
        json!({
            "discovery": found,
            "canary": {"path": "/aurora/www/staging/eightball", "weight": 10},
            "haproxy": {"port": canary},
        }),
    );
    let (one, other) = (stage.task("public"), stage.task("private"));
    assert_ne!(one.port(), other.port());
    // Both on one host, as they are; the harness gives each task an address of its own.
    let endpoint =
        |address: SocketAddr| json!({"host": address.ip().to_string(), "port": address.port()});
    let payload = json!({"status": "ALIVE", "shard": 0, "serviceEndpoint": endpoint(one),
        "additionalEndpoints": {"http": endpoint(one), "private": endpoint(other)}});
    stage.announcer.register(
        "/aurora/www/prod/api",
        "member_",
        payload.to_string().as_bytes(),
    );
    let normal: Vec<SocketAddr> = (0..3).map(|_| stage.task("normal")).collect();
    for (shard, address) in (0..).zip(&normal) {
        stage.announce("/aurora/www/prod/eightball", shard, *address);
    }
    let trial = stage.task("canary");
    stage.announce("/aurora/www/staging/eightball", 0, trial);
    stage.rig.launch();

    stage.serves("api", &[one]);
    stage.serves("api-private", &[other]);
    answers(public, "public");
    answers(private, "private");

    stage.serves("eightball", &[normal[0], normal[1], normal[2], trial]);
    let mut shares: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..310 {
        let body = get(canary).expect("an answer");
        *shares
            .entry(body.split(' ').next().unwrap().to_owned())
            .or_default() += 1;
    }
    // A tenth of a normal member's: 10 of 310.
    let share = shares.get("canary").copied().unwrap_or_default();
    assert!((3..=30).contains(&share), "{shares:?}");
    stage.rig.stop();
}

#[test]
fn a_new_job_needs_no_configuration() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    let shared = free_port();
    let host = stage.rig.zookeeper.host();
    stage.rig.config["haproxy"]["shared_frontend"] = json!([format!("bind 127.0.0.1:{shared}")]);
    stage.rig.config["clusters"] = json!([{"name": "east", "hosts": [host], "root": "/aurora"}]);
    stage.add("%{role}-%{job}", json!({
        "discovery": {"method": "zookeeper", "cluster": "east", "path": "/aurora/*/prod/*",
            "decode": {"method": "serverset", "endpoint_name": "http"}},
        "haproxy": {
            "shared_frontend": ["acl is_%{job} hdr(host) -i %{job}.test", "use_backend %{role}-%{job} if is_%{job}"],
        },
    }));
    let first = stage.task("first");
    stage.announce("/aurora/www/prod/eightball", 0, first);
    stage.rig.launch();
    let asked = |job: &str| {
        let (head, body) = get_with(shared, &format!("host: {job}.test\r\n"))?;
        head.contains(" 200 ").then_some(body)
    };
    wait_until("the job is reachable", || {
        asked("eightball").is_some_and(|body| body.starts_with("first"))
    });

    let second = stage.task("second");
    let member = stage.announce("/aurora/data/prod/answers", 0, second);
    stage.announce("/aurora/data/devel/answers", 0, first);
    wait_until("the new job is reachable", || {
        asked("answers").is_some_and(|body| body.starts_with("second"))
    });
    let proxies = || -> Value {
        let text = fs::read(stage.rig.path("proxies.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    wait_until("proxies.json names its job", || {
        proxies()["data-answers"]["job"]["cluster"] == "east"
    });
    assert!(!stage.rig.servers().contains_key("devel-answers"));

    // A path that is gone takes nothing with it at once.
    let reloads = stage.rig.reloads();
    stage.announcer.remove(&member);
    stage.announcer.remove("/aurora/data/prod/answers");
    stage.announce("/aurora/www/prod/later", 0, second);
    wait_until("what came after it is reachable", || {
        asked("later").is_some()
    });
    assert!(stage.rig.servers().contains_key("data-answers"));
    assert_eq!(asked("eightball").as_deref(), Some("first 0"));
    assert_eq!(stage.rig.reloads(), reloads + 1);

    // And all of it is there again after a restart without any registry.
    stage.rig.stop();
    stage.rig.zookeeper.kill();
    stage.rig.launch();
    assert!(stage.rig.status()["services"]["www-eightball"]["ready"] == 1);
    assert_eq!(asked("eightball").as_deref(), Some("first 0"));
    let config = stage.rig.config_file();
    let plan = super::super::verbs::ask(
        &["-c", config.to_str().unwrap(), "plan", "--wait", "300ms"],
        &[],
    );
    assert!(plan.out.contains("reload: no; "), "{}", plan.out);
    assert!(plan.out.contains("www-eightball"), "{}", plan.out);
    stage.rig.stop();
}

#[test]
fn named_servers_keep_their_cookies_and_come_and_go() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    let (sticky, plain) = (free_port(), free_port());
    for (name, section) in [
        (
            "sticky",
            json!({"port": sticky, "listen": ["cookie SRV insert indirect nocache"]}),
        ),
        ("plain", json!({"port": plain})),
    ] {
        let found = stage.serverset(&format!("/aurora/www/prod/{name}"));
        stage.add(name, json!({"discovery": found, "haproxy": section}));
    }
    stage.rig.config["services"]["plain"]["servers"] = json!("named");
    let tasks: Vec<SocketAddr> = (0..3).map(|_| stage.task("task")).collect();
    for name in ["sticky", "plain"] {
        for (shard, address) in (0..2).zip(&tasks) {
            stage.announce(&format!("/aurora/www/prod/{name}"), shard, *address);
        }
    }
    stage.rig.launch();
    stage.serves("sticky", &tasks[..2]);
    stage.serves("plain", &tasks[..2]);

    // Without a cookie: no reload for anybody who comes or goes.
    let reloads = stage.rig.reloads();
    let member = stage.announce("/aurora/www/prod/plain", 2, tasks[2]);
    stage.serves("plain", &tasks);
    let names: Vec<String> = stage.rig.servers()["plain"]
        .iter()
        .map(|server| server.name.clone())
        .collect();
    assert!(names.contains(&format!("2_{}", tasks[2])), "{names:?}");
    answers(plain, "task");
    stage.announcer.remove(&member);
    stage.serves("plain", &tasks[..2]);
    wait_until("its server is deleted", || {
        stage.rig.servers()["plain"].len() == 2
    });
    assert_eq!(stage.rig.reloads(), reloads);

    // With one: a visitor stays where he was, also over the reload that a new member takes.
    let (head, served) = get_with(sticky, "host: x\r\n").unwrap();
    let cookie = head
        .lines()
        .find_map(|line| line.strip_prefix("set-cookie: "))
        .expect(&head);
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let again = |_| {
        get_with(
            sticky,
            &format!("host: x\r\ncookie: {}\r\n", cookie.replace("srv=", "SRV=")),
        )
        .unwrap()
        .1
    };
    assert_eq!(
        (0..6).map(again).collect::<BTreeSet<_>>(),
        [served.clone()].into()
    );
    stage.announce("/aurora/www/prod/sticky", 2, tasks[2]);
    stage.serves("sticky", &tasks);
    assert_eq!(stage.rig.reloads(), reloads + 1);
    assert_eq!((0..6).map(again).collect::<BTreeSet<_>>(), [served].into());
    stage.rig.stop();
}

#[test]
fn a_registry_may_say_how_a_service_is_written() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    let (own, theirs, taken) = (free_port(), free_port(), free_port());
    let path = "/nerve/web";
    let zk = stage.rig.zookeeper.host();
    stage.add("web", json!({"discovery": {"method": "zookeeper", "hosts": [zk], "path": path}, "haproxy": section(own)}));
    stage.add("other", json!({"discovery": {"method": "base"}, "default_servers": [{"host": "127.0.0.1", "port": 1}],
        "haproxy": section(taken)}));
    let address = stage.task("web");
    stage.announcer.announce_nerve(
        path,
        "i-1",
        &json!({"host": address.ip().to_string(), "port": address.port()}),
    );
    stage.rig.start();
    answers(own, "web");

    // The whole section is replaced, by a reload.
    let says = |value: &Value| stage.announcer.set(path, value.to_string().as_bytes());
    says(
        &json!({"haproxy": {"port": theirs, "listen": ["option httpchk GET /health"], "server_options": "check inter 1s"}}),
    );
    answers(theirs, "web");
    assert!(
        TcpStream::connect(("127.0.0.1", own)).is_err(),
        "the file's port is no longer bound"
    );
    assert!(
        stage.rig.file().contains("option httpchk GET /health"),
        "{}",
        stage.rig.file()
    );
    let trouble = || stage.rig.status()["services"]["web"]["trouble"].clone();
    assert_eq!(trouble(), Value::Null);

    // What is wrong, or would take another's, changes nothing but the status.
    let reloads = stage.rig.reloads();
    for (section, word) in [
        (json!({"port": taken}), format!("both bind port {taken}")),
        (
            json!({"port": theirs, "listen": ["bogus line"]}),
            "bogus line".to_owned(),
        ),
        (json!({"prot": 1}), "did you mean `port`?".to_owned()),
        (
            json!({"backend": ["balance roundrobin\nserver evil 10.0.0.1:80\nfrontend evil"]}),
            "frontend evil".to_owned(),
        ),
    ] {
        says(&json!({"haproxy": section}));
        wait_until(&format!("it says {word}"), || {
            trouble().as_str().is_some_and(|text| text.contains(&word))
        });
    }
    answers(theirs, "web");
    assert!(!stage.rig.file().contains("evil"));
    assert_eq!(stage.rig.reloads(), reloads);

    // It holds over a restart without the registry, and an emptied znode takes nothing back.
    says(&json!({"haproxy": {"port": theirs}}));
    wait_until("it is right again", || {
        trouble() == Value::Null && !stage.rig.file().contains("httpchk")
    });
    stage.announcer.set(path, b"");
    let second = stage.task("web");
    let member = json!({"host": second.ip().to_string(), "port": second.port()});
    stage.announcer.announce_nerve(path, "i-2", &member);
    stage.serves("web", &[address, second]);
    answers(theirs, "web");
    stage.rig.stop();
    let before = stage.rig.file();
    stage.rig.zookeeper.kill();
    let reloads = stage.rig.reloads();
    stage.rig.launch();
    answers(theirs, "web");
    assert_eq!(stage.rig.file(), before);
    assert_eq!(stage.rig.reloads(), reloads);
    stage.rig.zookeeper.restart();
    stage.announcer = AnnouncerSession::connect(&stage.rig.zookeeper);
    stage.announcer.set(path, b"{}");
    answers(own, "web");
    stage.rig.stop();
}
