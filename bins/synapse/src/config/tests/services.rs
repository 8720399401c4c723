//! What an entry of `services` accepts and refuses.

use super::*;
use crate::settings::{Probe, Servers};

fn with(rest: &str) -> String {
    format!("  a:\n    discovery: {{method: base}}\n    {rest}")
}

const PATTERN: &str =
    "{method: zookeeper, hosts: [zk], path: /aurora/*/prod/*, decode: {method: serverset}}";

#[test]
fn what_is_wrong_with_a_service() {
    for (service, expected) in [
        (
            "slots: 0",
            "`services.a.slots` is `0`: write a number from 1 to 4096",
        ),
        ("slots: 4097", "`services.a.slots` is `4097`"),
        (
            "panic_threshold: 101",
            "`services.a.panic_threshold` is `101`",
        ),
        (
            "servers: some",
            "`services.a.servers` is `some`: write slots or named",
        ),
        (
            "probe: tcp",
            "`services.a.probe` is `tcp`: write connect, none or `http /path`",
        ),
        ("probe: http", "`services.a.probe` has no path"),
        ("probe: http health", "`services.a.probe` has no path"),
        ("probe: none\n    probe_path: /x", "gets no path"),
        (
            "backend_port_override: abc",
            "`services.a.backend_port_override` is `abc`: write a number from 1 to 65535",
        ),
        ("backend_port_override: 0", "is `0`"),
        (
            "default_servers: [{host: h}]",
            "a default server without host and port: Synapse leaves it out: give it both",
        ),
        (
            "default_servers: [{host: 'a b', port: 1}]",
            "`services.a.default_servers.host` is `a b`",
        ),
        (
            "default_servers: [{host: h, port: 99999}]",
            "`services.a.default_servers.port` is `99999`",
        ),
        (
            "default_servers: [{host: h, port: 1, haproxy_server_options: 'check # x'}]",
            "`services.a.default_servers.haproxy_server_options`",
        ),
        (
            "default_servers: [{host: h, port: 1, name: 'x y'}]",
            "HAProxy takes letters",
        ),
        (
            "default_servers: {host: h}",
            "`services.a.default_servers` is a map, not a list",
        ),
        (
            "canary: {weight: 5}",
            "give it `path` or `discovery`, one of them",
        ),
        (
            "canary: {path: /x, weight: 5}",
            "only `method: zookeeper` has a path",
        ),
        (
            "canary: {discovery: {method: base}}",
            "`services.a.canary.weight` is missing",
        ),
        (
            "canary: {discovery: {method: base}, weight: 101}",
            "`services.a.canary.weight` is `101`: write a number from 0 to 100",
        ),
        (
            "public: {endpoint_name: http}",
            "`http` is an endpoint of no ServerSet: write `decode: {method: serverset}` in `discovery`",
        ),
        (
            "public: {haproxy: {prot: 1}}",
            "unknown key `services.a.public.haproxy.prot`: did you mean `port`?",
        ),
        (
            "haproxy: {port: 70000}",
            "`services.a.haproxy.port` is `70000`",
        ),
        ("haproxy: {port: null}", "`services.a.haproxy.port` is null"),
        (
            "haproxy: {backend: option httpchk}",
            "`services.a.haproxy.backend` is text, not a list",
        ),
        (
            "haproxy: {backend_name: 'a b'}",
            "`services.a.haproxy.backend_name` is `a b`",
        ),
        (
            "haproxy: {backend_order: up}",
            "`services.a.haproxy.backend_order` is `up`, which Synapse ignores",
        ),
        (
            "haproxy: {cookie_value_method: md5}",
            "is `md5`, which Synapse ignores",
        ),
        (
            "haproxy: {server_options: 'check cookie %{nmae}'}",
            "`%{nmae}` in `services.a.haproxy.server_options`: write %{host}, %{port} or %{name}",
        ),
        (
            "haproxy: {shared_frontend: [acl x always_true]}",
            "without a top-level one: Synapse leaves the lines out",
        ),
        (
            "haproxy: {backend: ['acl x str(%{role}) a']}",
            "`%{role}` in a service that is not one per match",
        ),
        (
            "haproxy: {frontend: ['no option forwardfor']}",
            "`option forwardfor` cannot be negated",
        ),
        (
            "haproxy: {frontend: [reqadd X-A:\\ b]}",
            "HAProxy 2.1 took it away: use `http-request add-header`",
        ),
        (
            "haproxy: {listen: [option httpchck]}",
            "did you mean `option httpchk`?",
        ),
    ] {
        let shown = error(&with(service));
        assert!(
            shown.contains(expected),
            "{service}\nexpected {expected}\ngot {shown}"
        );
    }
    assert!(error("  'a b':\n    discovery: {method: base}").contains("the service `a b`"));
    assert!(error("  a: {}").contains("`services.a.discovery` is missing"));
    assert!(error("  a: [x]").contains("`services.a` is a list, not a map"));
}

#[test]
fn services_per_match() {
    for (name, discovery, rest, expected) in [
        (
            "%{job}",
            PATTERN,
            "",
            "the path has any role, and `%{job}` does not name it",
        ),
        (
            "%{role}-%{task}",
            PATTERN,
            "",
            "`%{task}` in the name of a service",
        ),
        (
            "%{role}-%{job}",
            "{method: base}",
            "",
            "its path is not a pattern",
        ),
        (
            "%{job}",
            "{method: zookeeper, hosts: [zk], path: /aurora/a/prod/b}",
            "",
            "its path is not a pattern",
        ),
        (
            "%{job}",
            "{method: zookeeper, hosts: [zk], path: '/*/a/prod/*'}",
            "",
            "its path is not a pattern",
        ),
        (
            "%{role}-%{job}",
            PATTERN,
            "haproxy: {port: 80}",
            "all of them would bind it",
        ),
        (
            "%{role}-%{job}",
            PATTERN,
            "haproxy: {backend_name: x}",
            "does not name the role",
        ),
        (
            "%{role}-%{job}",
            PATTERN,
            "canary: {path: /a, weight: 5}",
            "a service per match has no canary",
        ),
    ] {
        let shown = error(&format!(
            "  '{name}':\n    discovery: {discovery}\n    {rest}"
        ));
        assert!(
            shown.contains(expected),
            "{name} {rest}\nexpected {expected}\ngot {shown}"
        );
    }
    let services = services(&format!(
        "  '%{{role}}.%{{job}}':\n    discovery: {PATTERN}\n    haproxy: {{backend_name: '%{{job}}_%{{role}}', server_options: 'check sni str(%{{job}})', backend: ['http-request set-header X-Job %{{job}}']}}"
    ));
    // The job's name in the options is the same for all members.
    assert_eq!(services[0].servers, Servers::Slots);
}

#[test]
fn a_pattern_without_placeholders_is_one_service() {
    let services = services(&format!(
        "  all:\n    discovery: {PATTERN}\n    haproxy: {{port: 80}}"
    ));
    assert_eq!(services.len(), 1);
}

#[test]
fn probes() {
    let probe = |text: &str| services(&with(text))[0].probe.clone();
    assert_eq!(probe(""), Probe::Connect);
    assert_eq!(probe("probe: none"), Probe::None);
    assert_eq!(
        probe("probe: http /health"),
        Probe::Http("/health".to_owned())
    );
    assert_eq!(
        probe("probe: http\n    probe_path: /h"),
        Probe::Http("/h".to_owned())
    );
}

#[test]
fn named_mode() {
    for (proxy, named) in [
        ("server_options: check", false),
        ("server_options: check cookie x", true),
        ("server_options: check track b/s", true),
        ("server_options: 'check sni str(%{host})'", true),
        ("backend: [cookie C insert]", true),
        ("listen: [cookie C insert]", true),
        ("backend: [default-server inter 1s track b/s]", true),
        ("backend: ['use-server x if always_true']", true),
        ("frontend: ['capture cookie C len 10']", false),
        ("backend: ['http-request track-sc0 src']", false),
        ("backend: ['http-request set-header X cookie']", false),
    ] {
        let services = services(&with(&format!("haproxy: {{{proxy}}}")));
        assert_eq!(services[0].servers != Servers::Slots, named, "{proxy}");
    }
    let services = services(&with(
        "servers: slots\n    haproxy: {backend: [cookie C insert dynamic, dynamic-cookie-key k]}",
    ));
    assert_eq!(services[0].servers, Servers::Slots);
}

#[test]
fn percent_signs() {
    let options = |text: &str| {
        let services = services(&with(&format!("haproxy: {{server_options: '{text}'}}")));
        services[0]
            .haproxy
            .as_ref()
            .unwrap()
            .server_options
            .clone()
            .unwrap()
            .text
    };
    assert_eq!(options("check sni str(100%)"), "check sni str(100%)");
    assert_eq!(options("check sni str(100%%)"), "check sni str(100%)");
}

#[test]
fn listen_lines_go_where_haproxy_takes_them() {
    let services = services(&with(
        "haproxy: {frontend: [option forwardfor], backend: [balance source], listen: [mode http, '# note', 'default_backend x', 'no option httpclose', timeout server 1s]}",
    ));
    let proxy = services[0].haproxy.as_ref().unwrap();
    assert_eq!(
        texts(&proxy.frontend),
        [
            "option forwardfor",
            "mode http",
            "default_backend x",
            "no option httpclose"
        ]
    );
    assert_eq!(
        texts(&proxy.backend),
        [
            "balance source",
            "mode http",
            "no option httpclose",
            "timeout server 1s"
        ]
    );
}

#[test]
fn weights_may_be_asked_for_where_the_readme_says() {
    let services = services(&with("haproxy: {use_nerve_weights: true}"));
    assert!(services[0].haproxy.as_ref().unwrap().use_nerve_weights);
}

#[test]
fn the_older_port_override_gives_way() {
    let text = with("backend_port_override: 1\n    haproxy: {server_port_override: '2'}");
    assert_eq!(services(&text)[0].backend_port_override, Some(1));
    assert_eq!(lenient(&text).1, [Kind::Note]);
}

#[test]
fn one_service_file_gets_in_the_way_of_an_entry() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("synapse.yaml");
    std::fs::create_dir(directory.path().join("d")).unwrap();
    std::fs::write(
        directory.path().join("d/a.json"),
        "{\"discovery\": {\"method\": \"base\"}, \"slots\": 7}",
    )
    .unwrap();
    std::fs::write(directory.path().join("d/note.txt"), "[").unwrap();
    std::fs::write(
        &file,
        format!("service_conf_dir: d\nservices: {{a: {{discovery: {{method: base}}}}}}\n{HAPROXY}"),
    )
    .unwrap();
    let text = load(&only(file.clone()), false).unwrap_err().to_string();
    assert!(
        text.contains("synapse.yaml:2:12: `services.a`: Synapse reads"),
        "{text}"
    );
    let (settings, _) = load(&only(file.clone()), true).unwrap();
    assert_eq!(settings.services[0].slots, Some(7));
    std::fs::write(&file, format!("service_conf_dir: nowhere\n{HAPROXY}")).unwrap();
    let text = load(&only(file), false).unwrap_err().to_string();
    assert!(
        text.contains("synapse.yaml:1:19: `service_conf_dir`:"),
        "{text}"
    );
}
