//! Where members are found, and which of them are chosen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;

use hostkit_tests::dns::{NameServer, RecordData};
use hostkit_tests::{free_port, wait_until};
use serde_json::{Value, json};

use super::{Stage, answers, exchange, section};

#[test]
fn every_source_is_followed() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    let dns = NameServer::start();
    let ports: Vec<u16> = (0..9).map(|_| free_port()).collect();
    let [
        nerve,
        serverset,
        file,
        a,
        srv,
        base,
        union,
        sequential,
        late,
    ] = ports[..]
    else {
        unreachable!();
    };
    let names = ["nerve", "serverset", "file", "a", "base", "other"];
    let tasks: BTreeMap<&str, SocketAddr> = names.map(|name| (name, stage.task(name))).into();
    let zk = stage.rig.zookeeper.host();
    let list = stage.rig.path("members.yaml");
    fs::write(
        &list,
        format!(
            "- {{host: {}, port: {}}}\n- {{host: nobody.invalid, port: 1}}\n",
            tasks["file"].ip(),
            tasks["file"].port()
        ),
    )
    .unwrap();
    dns.records(
        "a.test",
        1,
        &[RecordData::address(&tasks["a"].ip().to_string())],
    );
    // Targets are resolved as any host name is: by this host.
    let local = [stage.local_task("srv"), stage.local_task("srv")];
    let srv_record = |address: SocketAddr| [RecordData::srv(1, address.port(), "localhost")];
    dns.records("_srv._tcp.test", 1, &srv_record(local[0]));
    let with =
        |discovery: Value, port: u16| json!({"discovery": discovery, "haproxy": section(port)});
    let server =
        |address: SocketAddr| json!({"host": address.ip().to_string(), "port": address.port()});
    let by_name = |servers: Value| json!({"method": "dns", "nameserver": dns_address(&dns), "check_interval": 1, "servers": servers});
    stage.add(
        "nerve",
        with(
            json!({"method": "zookeeper", "hosts": [zk], "path": "/nerve/web"}),
            nerve,
        ),
    );
    let found = stage.serverset("/aurora/www/prod/web");
    stage.add("serverset", with(found.clone(), serverset));
    stage.add("file", with(json!({"method": "file", "path": list}), file));
    stage.add(
        "a",
        with(
            by_name(json!([{"name": "a", "host": "a.test", "port": tasks["a"].port()}])),
            a,
        ),
    );
    stage.add(
        "srv",
        with(by_name(json!([{"host": "_srv._tcp.test"}])), srv),
    );
    let mut service = with(json!({"method": "base"}), base);
    service["default_servers"] = json!([server(tasks["base"])]);
    stage.add("base", service);
    for (name, method, port) in [
        ("union", "union", union),
        ("sequential", "sequential", sequential),
    ] {
        let mut service = with(json!({"method": "file", "path": list}), port);
        let mut resolver = json!({"method": method});
        if method == "sequential" {
            resolver["sequential_order"] = json!(["zk", "primary"]);
        }
        service["discovery_multi"] = json!({"watchers": {"zk": found}, "resolver": resolver});
        stage.add(name, service);
    }
    // Nobody is there yet, and the path neither.
    let later = stage.serverset("/aurora/www/prod/late");
    stage.add("late", with(later, late));
    stage.rig.config["file_output"] = json!({"output_directory": stage.rig.path("lists")});
    let nerve_address = tasks["nerve"];
    stage.announcer.announce_nerve(
        "/nerve/web",
        "i-1",
        &json!({"host": nerve_address.ip().to_string(), "port": nerve_address.port(), "name": "one"}),
    );
    let member = stage.announce("/aurora/www/prod/web", 0, tasks["serverset"]);
    stage.rig.start();

    for (service, port) in [
        ("nerve", nerve),
        ("serverset", serverset),
        ("file", file),
        ("a", a),
        ("base", base),
    ] {
        stage.serves(service, &[tasks[service]]);
        answers(port, service);
    }
    stage.serves("srv", &local[..1]);
    answers(srv, "srv");
    stage.serves("union", &[tasks["file"], tasks["serverset"]]);
    stage.serves("sequential", &[tasks["serverset"]]);
    wait_until("a name that nobody has is refused", || {
        stage.rejects("file") == 1
    });

    // Every source is followed, not only read.
    let reloads = stage.rig.reloads();
    let other = stage.announce("/aurora/www/prod/web", 1, tasks["other"]);
    stage.serves("serverset", &[tasks["serverset"], tasks["other"]]);
    stage.announcer.remove(&other);
    stage.announcer.remove(&member);
    stage.serves("sequential", &[tasks["file"]]);
    fs::write(&list, json!([server(tasks["other"])]).to_string()).unwrap();
    stage.serves("file", &[tasks["other"]]);
    answers(file, "other");
    dns.records("_srv._tcp.test", 1, &srv_record(local[1]));
    stage.serves("srv", &[local[1]]);
    stage.announce("/aurora/www/prod/late", 0, tasks["other"]);
    stage.serves("late", &[tasks["other"]]);
    answers(late, "other");
    assert_eq!(stage.rig.reloads(), reloads, "members take no reload");

    // The other outputs are in step.
    let output = |service: &str| -> Value {
        let file = stage.rig.path("lists").join(format!("{service}.json"));
        serde_json::from_slice(&fs::read(file).unwrap_or_default()).unwrap_or_default()
    };
    wait_until("the list has the new one", || {
        output("late")[0]["port"] == tasks["other"].port()
    });
    assert_eq!(output("nerve")[0]["name"], "one");
    let proxies: Value =
        serde_json::from_slice(&fs::read(stage.rig.path("proxies.json")).unwrap()).unwrap();
    assert_eq!(proxies["late"]["job"]["name"], "late", "{proxies:#}");
    assert_eq!(proxies["base"]["job"], Value::Null);
    stage.rig.stop();
}

fn dns_address(dns: &NameServer) -> String {
    dns.address().to_string()
}

#[test]
fn members_are_chosen_as_configured() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    let tasks: Vec<SocketAddr> = (0..4)
        .map(|number| stage.task(&format!("t{number}")))
        .collect();
    let fallback = stage.task("fallback");
    let server =
        |address: SocketAddr| json!({"host": address.ip().to_string(), "port": address.port()});
    let ports: BTreeMap<&str, u16> = [
        "labels", "leader", "keep", "empty", "override", "tcp", "weights",
    ]
    .map(|name| (name, free_port()))
    .into();
    let zk = stage.rig.zookeeper.host();
    let nerve = |path: &str| json!({"method": "zookeeper", "hosts": [zk], "path": path});
    let register = |stage: &Stage, path: &str, address: SocketAddr, more: Value| {
        let mut payload = server(address);
        payload
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        stage.announcer.announce_nerve(path, "i", &payload)
    };
    let mut found = nerve("/nerve/labels");
    found["label_filters"] = json!([
        {"label": "az", "value": "a", "condition": "equals"},
        {"label": "stage", "value": "test", "condition": "not-equals"},
    ]);
    stage.add(
        "labels",
        json!({"discovery": found, "haproxy": section(ports["labels"])}),
    );
    stage.add("leader", json!({"discovery": nerve("/nerve/leader"), "leader_election": true, "haproxy": section(ports["leader"])}));
    stage.add(
        "keep",
        json!({"discovery": nerve("/nerve/keep"), "keep_default_servers": true,
        "default_servers": [server(fallback)], "haproxy": section(ports["keep"])}),
    );
    stage.add("empty", json!({"discovery": nerve("/nerve/empty"), "use_previous_backends": false, "haproxy": section(ports["empty"])}));
    stage.add(
        "previous",
        json!({"discovery": nerve("/nerve/previous"), "haproxy": {"port": free_port()}}),
    );
    stage.add("override", json!({"discovery": nerve("/nerve/override"), "backend_port_override": tasks[0].port().to_string(),
        "haproxy": section(ports["override"])}));
    let socket = stage.rig.path("tcp.sock");
    stage.add(
        "tcp",
        json!({"discovery": nerve("/nerve/keep"), "haproxy": {"port": null, "bind_address": socket,
        "bind_options": "mode 600", "listen": ["mode tcp"], "backend_name": "over-tcp"}}),
    );
    stage.add("weights", json!({"discovery": nerve("/nerve/weights"), "haproxy": {"port": ports["weights"], "use_nerve_weights": true}}));
    for (task, labels) in [
        (0, json!({"az": "a"})),
        (1, json!({"az": "b"})),
        (2, json!({"az": "a", "stage": "test"})),
    ] {
        register(
            &stage,
            "/nerve/labels",
            tasks[task],
            json!({"labels": labels}),
        );
    }
    let first = register(&stage, "/nerve/leader", tasks[1], json!({}));
    register(&stage, "/nerve/leader", tasks[2], json!({}));
    register(&stage, "/nerve/keep", tasks[0], json!({}));
    let empty = register(&stage, "/nerve/empty", tasks[0], json!({}));
    let previous = register(&stage, "/nerve/previous", tasks[0], json!({}));
    register(
        &stage,
        "/nerve/override",
        SocketAddr::new(tasks[0].ip(), 1),
        json!({}),
    );
    register(&stage, "/nerve/weights", tasks[0], json!({"weight": 10}));
    register(&stage, "/nerve/weights", tasks[1], json!({"weight": 30}));
    stage.rig.launch();

    stage.serves("labels", &[tasks[0]]);
    wait_until("two are refused", || stage.rejects("labels") == 2);
    stage.serves("leader", &[tasks[1]]);
    stage.serves("keep", &[tasks[0], fallback]);
    stage.serves("empty", &[tasks[0]]);
    stage.serves("previous", &[tasks[0]]);
    stage.serves("override", &[tasks[0]]);
    stage.serves("over-tcp", &[tasks[0]]);
    stage.serves("weights", &[tasks[0], tasks[1]]);
    let through = exchange(UnixStream::connect(&socket).unwrap(), "host: x\r\n").unwrap();
    assert_eq!(through.1, "t0 0");
    let weights: BTreeSet<(String, u32)> = stage.rig.servers()["weights"]
        .iter()
        .filter(|server| server.serves())
        .map(|server| (server.endpoint.clone(), server.weight))
        .collect();
    assert_eq!(
        weights,
        [(tasks[0].to_string(), 10), (tasks[1].to_string(), 30)].into()
    );

    stage.announcer.remove(&first);
    stage.serves("leader", &[tasks[2]]);
    stage.announcer.remove(&previous);
    stage.announcer.remove(&empty);
    stage.serves("empty", &[]);
    stage.serves("previous", &[tasks[0]]);
    stage.rig.stop();
}
