//! The top level, and what services must not share.

use super::*;

const ON: &str = "do_writes: false, do_reloads: false, do_socket: false";

fn haproxy(rest: &str) -> String {
    format!("haproxy: {{global: [], defaults: [], {rest}}}\n")
}

#[test]
fn what_is_wrong_with_the_top_level() {
    for (text, expected) in [
        (
            "haproxy: {do_writes: false, do_reloads: false, do_socket: false, global: []}"
                .to_owned(),
            "`haproxy.defaults` is missing",
        ),
        (
            haproxy("do_reloads: false, do_socket: false"),
            "`haproxy.do_writes` is on and something is missing: add `config_file_path`",
        ),
        (
            haproxy("do_writes: false, do_socket: false"),
            "add `master_socket`, `pid_file` or `reload_command`",
        ),
        (
            haproxy("do_writes: false, do_reloads: false"),
            "add `socket_file_path`",
        ),
        (
            haproxy(&format!("do_checks: true, {ON}")),
            "add `check_command`",
        ),
        (
            haproxy(&format!("{ON}, restart_interval: soon")),
            "`haproxy.restart_interval` is `soon`",
        ),
        (
            haproxy(&format!("{ON}, restart_jitter: -1")),
            "write a number from 0 to 100",
        ),
        (
            haproxy(&format!("{ON}, max_server_id: 0")),
            "`haproxy.max_server_id` is `0`",
        ),
        (
            haproxy(&format!("{ON}, canary_url: 'ftp://x'")),
            "write a URL that begins with http://",
        ),
        (
            haproxy(&format!("{ON}, extra_sections: [a]")),
            "`haproxy.extra_sections` is a list, not a map",
        ),
        (
            haproxy(&format!("{ON}, extra_sections: {{\"a\\nb\": []}}")),
            "is no head line",
        ),
        (
            haproxy(&format!("{ON}, extra_sections: {{listen x: line}}")),
            "`haproxy.extra_sections.listen x` is text, not a list",
        ),
        (
            "guard: {members: 0}".to_owned(),
            "`guard.members` is `0`: write a number from 1 to 100",
        ),
        ("guard: {window: -1}".to_owned(), "`guard.window` is `-1`"),
        (
            "max_removed_services: 101".to_owned(),
            "`max_removed_services` is `101`",
        ),
        (
            "file_output: {}".to_owned(),
            "`file_output.output_directory` is missing",
        ),
        ("statsd: {port: 0}".to_owned(), "`statsd.port` is `0`"),
        (
            "statsd: {sample_rate: {a: 2}}".to_owned(),
            "the sample rate of `a`",
        ),
        (
            "clusters: [{name: a, hosts: [zk]}, {name: a, hosts: [zk]}]".to_owned(),
            "`a` is declared twice",
        ),
        (
            "clusters: [{name: a, hosts: [zk]}, {name: b, hosts: [zk], chroot: /x}]".to_owned(),
            "`b` and `a` are one ensemble",
        ),
        (
            "clusters: [{name: a, hosts: [zk], root: x}]".to_owned(),
            "`clusters.root` is `x`",
        ),
        (
            "clusters: [{hosts: [zk]}]".to_owned(),
            "`clusters.name` is missing",
        ),
        (
            "nginx: {}".to_owned(),
            "synapse.yaml:1:1: unknown key `nginx`",
        ),
        (
            "service: {}".to_owned(),
            "unknown key `service`: did you mean `services`?",
        ),
    ] {
        let shown = error_of(&text);
        assert!(
            shown.contains(expected),
            "{text}\nexpected {expected}\ngot {shown}"
        );
    }
}

#[test]
fn credentials_are_not_repeated() {
    let shown =
        error_of("clusters: [{name: 'a b', hosts: [zk], digest: 'user:secret', colour: x}]");
    assert!(!shown.contains("secret"), "{shown}");
}

#[test]
fn defaults() {
    let text = "services: {}\nhaproxy: {global: [daemon], defaults: [mode http, .if defined(X), .endif], \
                config_file_path: /etc/haproxy/haproxy.cfg, socket_file_path: [/a, /b], pid_file: /run/p}";
    let (settings, _) = load_text(text, false).unwrap();
    let haproxy = &settings.haproxy;
    assert_eq!(
        haproxy.candidate_file.as_deref(),
        Some(Path::new("/etc/haproxy/haproxy.cfg.tmp"))
    );
    assert_eq!(haproxy.sockets, [Path::new("/a"), Path::new("/b")]);
    assert_eq!(
        haproxy.server_state_file,
        Path::new("/var/lib/hostkit/synapse/haproxy-servers.state")
    );
    assert_eq!(
        settings.state_file,
        Path::new("/var/lib/hostkit/synapse/state.json")
    );
    assert_eq!(
        texts(&haproxy.defaults),
        ["mode http", ".if defined(X)", ".endif"]
    );
    assert_ne!(haproxy.server_order_seed, 0);
    let expected = crate::settings::Haproxy {
        global: haproxy.global.clone(),
        defaults: haproxy.defaults.clone(),
        config_file: haproxy.config_file.clone(),
        candidate_file: haproxy.candidate_file.clone(),
        sockets: haproxy.sockets.clone(),
        pid_file: haproxy.pid_file.clone(),
        server_state_file: haproxy.server_state_file.clone(),
        server_order_seed: haproxy.server_order_seed,
        ..crate::settings::Haproxy::default()
    };
    assert_eq!(*haproxy, expected);
    assert_eq!(settings.guard, crate::settings::Guard::default());
    assert_eq!(
        (settings.max_removed_services, settings.state_ttl.as_secs()),
        (25, 86_400)
    );
}

#[test]
fn an_address_in_a_head_line_becomes_a_bind_line() {
    let text = haproxy(&format!(
        "{ON}, extra_sections: {{'listen stats  :3212': [stats enable]}}"
    ));
    let (settings, findings) = load_text(&text, false).unwrap();
    let (head, body) = &settings.haproxy.extra_sections[0];
    assert_eq!(head.text, "listen stats");
    assert_eq!(texts(body), ["bind :3212", "stats enable"]);
    assert_eq!(findings[0].kind, Kind::Note);
}

#[test]
fn the_seed_is_the_hosts_own() {
    let seed = |host: &str| {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("synapse.yaml");
        std::fs::write(&file, haproxy(ON)).unwrap();
        let sources = Sources {
            host: host.to_owned(),
            ..only(file)
        };
        load(&sources, false).unwrap().0.haproxy.server_order_seed
    };
    assert_eq!(seed("lb1"), seed("lb1"));
    assert_ne!(seed("lb1"), seed("lb2"));
}

#[test]
fn names_are_one_of_a_kind() {
    let service = |rest: &str| format!("{{discovery: {{method: base}}, {rest}}}");
    for (services, more, expected) in [
        (
            format!(
                "  a: {}\n  a-private: {}",
                service("public: {}, private: {}"),
                service("slots: 1")
            ),
            "",
            "a second service `a-private` (the first: ",
        ),
        (
            format!(
                "  a: {}\n  a_0: {}",
                service("load_test_concurrency: 2"),
                service("slots: 1")
            ),
            "",
            "a second service `a_0`",
        ),
        (
            format!(
                "  a: {}\n  b: {}",
                service("haproxy: {backend_name: x}"),
                service("haproxy: {backend_name: x}")
            ),
            "",
            "a second backend `x`",
        ),
        (
            format!(
                "  a: {}\n  b: {}",
                service("slots: 1"),
                service("haproxy: {backend_name: a}")
            ),
            "",
            "a second backend `a`",
        ),
        (
            format!("  stats: {}", service("haproxy: {port: 80}")),
            "  extra_sections: {listen stats: ['bind :1']}",
            "a second frontend `stats`",
        ),
        (
            format!("  shared-frontend: {}", service("haproxy: {port: 80}")),
            "  shared_frontend: ['bind :1']",
            "a second frontend `shared-frontend`",
        ),
    ] {
        let text = format!("services:\n{services}\n{HAPROXY}{more}\n");
        let shown = error_of(&text);
        assert!(
            shown.contains(expected),
            "{text}\nexpected {expected}\ngot {shown}"
        );
    }
}

#[test]
fn binds_are_one_of_a_kind() {
    let service = |proxy: &str| format!("{{discovery: {{method: base}}, haproxy: {{{proxy}}}}}");
    for (a, b, more, told) in [
        ("port: 80", "port: 80", "", true),
        ("port: 80", "port: 80, bind_address: 0.0.0.0", "", true),
        ("port: 80", "port: 80, bind_address: 10.0.0.1", "", false),
        (
            "port: 80",
            "port: 80, bind_address: 127.0.0.1, disabled: true",
            "",
            false,
        ),
        (
            "port: null, bind_address: /a.sock",
            "port: null, bind_address: unix@/a.sock",
            "",
            true,
        ),
        (
            "port: 80",
            "port: 81, frontend: ['bind 127.0.0.1:80']",
            "",
            true,
        ),
        ("port: 80", "frontend: ['bind 127.0.0.1:80']", "", false),
        (
            "port: 80",
            "slots: 1",
            "  shared_frontend: ['bind *:80']",
            true,
        ),
        (
            "port: 80",
            "port: 81",
            "  extra_sections: {listen stats :80: [], listen c: ['bind :82']}",
            true,
        ),
        (
            "port: 80",
            "port: 81",
            "  extra_sections: {backend x: ['bind :80']}",
            false,
        ),
    ] {
        let b = b.replace("slots: 1", "");
        let text = format!(
            "services:\n  a: {}\n  b: {}\n{HAPROXY}{more}\n",
            service(a),
            service(&b)
        );
        match load_text(&text, false) {
            Ok(_) => assert!(!told, "{text}"),
            Err(failure) => {
                assert!(
                    told && failure.to_string().contains("both bind"),
                    "{text}\n{failure}"
                );
                // Synapse wrote it and HAProxy took it.
                assert!(load_text(&text, true).is_ok(), "{text}");
            }
        }
    }
}
