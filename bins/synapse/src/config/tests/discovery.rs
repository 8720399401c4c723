//! What `discovery` accepts and refuses.

use super::*;
use crate::settings::Discovery;

fn with(discovery: &str) -> String {
    format!("  a:\n    discovery: {discovery}")
}

#[test]
fn methods_that_are_not_here_are_always_an_error() {
    for method in [
        "zookeeper_poll",
        "zookeeper_dns",
        "zookeeper_dns_poll",
        "docker",
        "ec2tag",
        "marathon",
    ] {
        let text = format!(
            "services:\n{}\n{HAPROXY}",
            with(&format!("{{method: {method}}}"))
        );
        let failure = load_text(&text, true).unwrap_err().to_string();
        assert!(
            failure.contains(&format!(
                "synapse.yaml:3:25: `services.a.discovery.method: {method}` is not here: use `"
            )),
            "{failure}"
        );
    }
    let text = format!(
        "services:\n{}\n{HAPROXY}",
        with(
            "{method: multi, watchers: {primary: {method: base}}, resolver: {method: s3_toggle, s3_url: 's3://b/f'}}"
        )
    );
    let failure = load_text(&text, true).unwrap_err().to_string();
    assert!(
        failure.contains("`services.a.discovery.resolver.method: s3_toggle` is not here"),
        "{failure}"
    );
}

#[test]
fn what_is_wrong_with_a_discovery() {
    for (discovery, expected) in [
        (
            "{}",
            "synapse.yaml:3:16: `services.a.discovery.method` is missing: write one of zookeeper, dns, file, base, multi",
        ),
        (
            "{method: zookeper}",
            "`services.a.discovery.method: zookeper` is not here: did you mean `zookeeper`?",
        ),
        (
            "{method: zookeeper, path: /a}",
            "`services.a.discovery.hosts` is missing",
        ),
        (
            "{method: zookeeper, path: /a, hosts: 'zk:2181'}",
            "`services.a.discovery.hosts` is text, not a list",
        ),
        (
            "{method: zookeeper, path: /a, hosts: []}",
            "`services.a.discovery.hosts` is empty",
        ),
        (
            "{method: zookeeper, path: /a, hosts: [zk:2181/chroot]}",
            "`services.a.discovery.hosts` holds `zk:2181/chroot`: write host:port; a chroot belongs to `clusters`",
        ),
        (
            "{method: zookeeper, path: /a, hosts: [zk:0]}",
            "holds `zk:0`",
        ),
        (
            "{method: zookeeper, path: a, hosts: [zk]}",
            "`services.a.discovery.path` is `a`",
        ),
        (
            "{method: zookeeper, path: /a//b, hosts: [zk]}",
            "is `/a//b`",
        ),
        (
            "{method: zookeeper, path: /a/../b, hosts: [zk]}",
            "is `/a/../b`",
        ),
        (
            "{method: zookeeper, path: /a/b*, hosts: [zk]}",
            "is `/a/b*`",
        ),
        (
            "{method: zookeeper, path: /a, hosts: [zk], decode: {method: thrift}}",
            "`services.a.discovery.decode.method` is `thrift`: write nerve or serverset",
        ),
        (
            "{method: zookeeper, path: /a, cluster: eats}",
            "there is no cluster `eats`: declare it under `clusters`",
        ),
        (
            "{method: zookeeper, path: /a, hosts: [zk], servers: []}",
            "unknown key `services.a.discovery.servers`: it belongs to services.NAME or discovery, method: dns",
        ),
        ("{method: file}", "`services.a.discovery.path` is missing"),
        ("{method: dns}", "`services.a.discovery.servers` is missing"),
        (
            "{method: dns, servers: [{host: a.example.com}]}",
            "`services.a.discovery.servers.port` is missing",
        ),
        (
            "{method: dns, check_interval: 0, servers: [{host: a.example.com, port: 1}]}",
            "is under a second",
        ),
        (
            "{method: dns, servers: [{host: 'a b', port: 1}]}",
            "`services.a.discovery.servers.host` is `a b`",
        ),
        (
            "{method: multi, watchers: {a: {method: base}}}",
            "`services.a.discovery.resolver` is missing",
        ),
        (
            "{method: multi, watchers: {a: {method: base}}, resolver: {method: sequential, sequential_order: [b]}}",
            "there is no watcher `b`: the watchers are a",
        ),
        (
            "{method: multi, watchers: {a: {method: multi, watchers: {b: {method: base}}, resolver: {method: base}}}, resolver: {method: base}}",
            "a multi inside a multi",
        ),
        (
            "{method: base, label_filters: [{label: a, value: b}]}",
            "`services.a.discovery.label_filters.condition` is ``: no member passes",
        ),
        (
            "{method: multi, watchers: {a: {method: base}, b: {method: base, label_filters: [{label: l, value: v, condition: equals}]}}, resolver: {method: base}}",
            "the watchers have different label filters",
        ),
    ] {
        let shown = error(&with(discovery));
        assert!(
            shown.contains(expected),
            "{discovery}\nexpected {expected}\ngot {shown}"
        );
    }
}

#[test]
fn hosts_are_sorted_and_have_ports() {
    let services = services(&with(
        "{method: zookeeper, path: /a/, hosts: [zk2, 'zk1:2182', '[::1]:2181', zk2]}",
    ));
    let Discovery::Zookeeper(zookeeper) = &services[0].discovery else {
        panic!("not ZooKeeper");
    };
    assert_eq!(zookeeper.hosts, ["[::1]:2181", "zk1:2182", "zk2:2181"]);
    assert_eq!(zookeeper.path, "/a");
}

#[test]
fn the_older_label_filter_still_counts() {
    let text = with("{method: base, label_filter: {label: az, value: a, condition: equals}}");
    assert_eq!(services(&text)[0].label_filters.len(), 1);
    assert_eq!(lenient(&text).1, [Kind::Note]);
}

#[test]
fn filters_that_all_watchers_share_are_the_services() {
    let filter = "label_filters: [{label: l, value: v, condition: equals}]";
    let services = services(&with(&format!(
        "{{method: multi, watchers: {{a: {{method: base, {filter}}}, b: {{method: base, {filter}}}}}, resolver: {{method: union}}}}"
    )));
    assert_eq!(services[0].label_filters.len(), 1);
}

#[test]
fn clusters_that_the_tools_share() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("synapse.yaml");
    std::fs::write(
        &file,
        format!(
            "services:\n{}\n{HAPROXY}",
            with("{method: zookeeper, path: /aurora/a/prod/b, cluster: shared}")
        ),
    )
    .unwrap();
    let mut sources = only(file);
    assert!(load(&sources, false).is_err());
    sources.clusters.push(Cluster {
        name: "shared".to_owned(),
        hosts: vec!["zk:2181".to_owned()],
        root: "/aurora".to_owned(),
        chroot: None,
        digest: None,
    });
    let (settings, _) = load(&sources, false).unwrap();
    assert_eq!(settings.clusters, sources.clusters);
}
