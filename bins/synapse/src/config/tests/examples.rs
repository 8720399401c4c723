//! The example configurations load as they are.

use super::*;
use crate::settings::{Decode, Discovery, Resolver, Servers};

fn example(name: &str) -> Settings {
    let (settings, findings) = load(&only(fixtures().join(name)), false)
        .unwrap_or_else(|failure| panic!("{name}: {failure}"));
    assert!(findings.is_empty(), "{name}: {}", report(&findings));
    settings
}

fn service<'s>(settings: &'s Settings, name: &str) -> &'s Service {
    settings
        .services
        .iter()
        .find(|service| service.name == name)
        .unwrap_or_else(|| panic!("no service {name}"))
}

#[test]
fn every_example_loads_without_a_finding() {
    let mut count = 0;
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "json")
        {
            example(path.file_name().unwrap().to_str().unwrap());
            count += 1;
        }
    }
    assert!(count >= 9, "{count}");
}

#[test]
fn nerve() {
    let settings = example("nerve.json");
    let [users, queue] = &settings.services[..] else {
        panic!("{:?}", settings.services);
    };
    let Discovery::Zookeeper(zookeeper) = &users.discovery else {
        panic!("{:?}", users.discovery);
    };
    assert_eq!(
        zookeeper.hosts,
        [
            "zk0.example.com:2181",
            "zk1.example.com:2181",
            "zk2.example.com:2181"
        ]
    );
    assert_eq!(zookeeper.decode, Decode::Nerve);
    assert_eq!(
        zookeeper.generator_config_path.as_deref(),
        Some("/nerve/services/users/services")
    );
    assert_eq!(
        users.default_servers[1].rare.options.as_deref(),
        Some("backup")
    );
    assert_eq!(users.default_servers[0].endpoint(), "10.0.0.11:8090");
    let proxy = users.haproxy.as_ref().unwrap();
    assert_eq!(proxy.port, Some(Some(3210)));
    assert_eq!(texts(&proxy.frontend), ["mode http"]);
    assert_eq!(
        texts(&proxy.backend),
        [
            "mode http",
            "option httpchk /health",
            "http-check expect string OK"
        ]
    );
    assert!(proxy.use_nerve_weights && settings.haproxy.use_nerve_weights);
    assert!(!queue.use_previous_backends && queue.leader_election);
    assert_eq!(queue.haproxy.as_ref().unwrap().port, Some(Some(3213)));
    let Discovery::Zookeeper(zookeeper) = &queue.discovery else {
        panic!("{:?}", queue.discovery);
    };
    assert_eq!(zookeeper.generator_config_path, None);
    assert_eq!(settings.haproxy.extra_sections[0].0.text, "listen stats");
}

#[test]
fn servers_sets_and_merge_keys() {
    let settings = example("serverset.yaml");
    let decode = |name| match &service(&settings, name).discovery {
        Discovery::Zookeeper(zookeeper) => (zookeeper.path.clone(), zookeeper.decode.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        decode("eightball-private"),
        (
            "/aurora/www-data/prod/eightball".to_owned(),
            Decode::ServerSet(Some("private".to_owned()))
        )
    );
    assert_eq!(
        decode("pings"),
        (
            "/aurora/pings/prod/pings".to_owned(),
            Decode::ServerSet(None)
        )
    );
    let pings = service(&settings, "pings");
    assert!(pings.keep_default_servers);
    assert_eq!(pings.backend_port_override, Some(8080));
    let eightball = service(&settings, "eightball").haproxy.as_ref().unwrap();
    assert_eq!(texts(&eightball.frontend), ["maxconn 100"]);
    assert_eq!(texts(&eightball.backend), ["option httpchk GET /health"]);
    assert_eq!(
        service(&settings, "static").haproxy.as_ref().unwrap().port,
        None
    );
    assert_eq!(settings.state_ttl.as_secs(), 3600);
    assert_eq!(settings.haproxy.max_server_id, 4096);
    assert_eq!(settings.haproxy.server_order_seed, 4);
}

#[test]
fn several_watchers() {
    let settings = example("multi.yaml");
    let resolver = |name| match &service(&settings, name).discovery {
        Discovery::Multi(children, resolver) => {
            let names: Vec<&str> = children.iter().map(|(name, _)| name.as_str()).collect();
            (names.join(" "), resolver.clone())
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(
        resolver("moving"),
        ("primary aurora".to_owned(), Resolver::Union)
    );
    assert_eq!(
        resolver("careful"),
        (
            "primary secondary written".to_owned(),
            Resolver::Sequential(vec!["primary".into(), "secondary".into(), "written".into()])
        )
    );
    assert_eq!(
        resolver("only-first"),
        ("primary shadow".to_owned(), Resolver::Base)
    );
}

#[test]
fn which_services_are_named_and_why() {
    let settings = example("cookies.yaml");
    let why = |name| match &service(&settings, name).servers {
        Servers::Named(why) => why.clone(),
        Servers::Slots => String::new(),
    };
    assert!(
        why("sticky").starts_with("cookie: `cookie SRV insert indirect nocache` ("),
        "{}",
        why("sticky")
    );
    assert!(
        why("sticky").ends_with("cookies.yaml:14:11)"),
        "{}",
        why("sticky")
    );
    assert!(why("templated").contains("%{name}"), "{}", why("templated"));
    assert!(why("pinned").starts_with("use-server"), "{}", why("pinned"));
    // The cookie of `defaults` alone does not count.
    assert_eq!(why("hashed"), "");
}

#[test]
fn sockets_and_binds() {
    let settings = example("tcp.yaml");
    let mysql = service(&settings, "mysql").haproxy.as_ref().unwrap();
    assert_eq!(mysql.port, Some(None));
    assert_eq!(
        mysql.bind_address.as_deref(),
        Some("/var/run/synapse/mysql.sock")
    );
    let redis = service(&settings, "redis").haproxy.as_ref().unwrap();
    assert_eq!(redis.bind_options.as_deref(), Some("maxconn 500 tfo"));
}

#[test]
fn only_files() {
    let settings = example("file-output.yaml");
    let names: Vec<&str> = settings
        .services
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    // `quiet` writes nothing at all.
    assert_eq!(names, ["search", "users"]);
    assert!(
        settings
            .services
            .iter()
            .all(|service| service.haproxy.is_none() && service.file_output)
    );
    assert!(
        !settings.haproxy.do_writes && !settings.haproxy.do_reloads && !settings.haproxy.do_socket
    );
}

#[test]
fn statsd_dns_and_copies() {
    let settings = example("statsd.yaml");
    let statsd = settings.statsd.as_ref().unwrap();
    assert_eq!(statsd.host, "statsd.example.com");
    assert_eq!(statsd.sample_rate["synapse.watcher.ping.count"], 0.1);
    let names: Vec<&str> = settings
        .services
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    assert_eq!(names, ["db", "near", "cloned_0", "cloned_1", "cloned_2"]);
    let Discovery::Dns(dns) = &service(&settings, "db").discovery else {
        panic!("no DNS");
    };
    assert_eq!(dns.check_interval.as_secs(), 60);
    assert_eq!(dns.servers[1].port, Some(3306));
    let filters = &service(&settings, "near").label_filters;
    assert_eq!(
        filters
            .iter()
            .map(|filter| filter.equals)
            .collect::<Vec<_>>(),
        [true, false]
    );
}

#[test]
fn services_in_files_of_their_own() {
    let (settings, findings) = load(
        &only(fixtures().join("service-conf-dir/synapse.yaml")),
        false,
    )
    .unwrap();
    assert!(findings.is_empty());
    let names: Vec<&str> = settings
        .services
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    assert_eq!(names, ["inline", "search", "users"]);
    assert!(
        settings.services[2]
            .place
            .file
            .ends_with("services/users.json")
    );
}

#[test]
fn what_synapse_does_not_have() {
    let settings = example("hostkit.yaml");
    let names: Vec<&str> = settings
        .services
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    assert_eq!(
        names,
        ["api", "api-private", "%{role}-%{job}", "everything", "demo"]
    );
    let endpoint = |service: &Service| match (
        &service.discovery,
        &service.canary.as_ref().unwrap().discovery,
    ) {
        (Discovery::Zookeeper(stable), Discovery::Zookeeper(canary)) => {
            assert_eq!(stable.decode, canary.decode);
            assert_eq!(canary.path, "/aurora/www-data/staging/api");
            stable.decode.clone()
        }
        other => panic!("{other:?}"),
    };
    let (public, private) = (&settings.services[0], &settings.services[1]);
    assert_eq!(endpoint(public), Decode::ServerSet(Some("http".to_owned())));
    assert_eq!(
        endpoint(private),
        Decode::ServerSet(Some("private".to_owned()))
    );
    assert_eq!((public.slots, private.slots), (Some(16), Some(8)));
    assert_eq!(
        public.probe,
        crate::settings::Probe::Http("/health".to_owned())
    );
    let (public, private) = (
        public.haproxy.as_ref().unwrap(),
        private.haproxy.as_ref().unwrap(),
    );
    assert_eq!(
        (public.port, private.port),
        (Some(Some(30001)), Some(Some(30002)))
    );
    assert_eq!(public.bind_address, None);
    assert_eq!(private.bind_address.as_deref(), Some("127.0.0.1"));
    assert_eq!(texts(&private.backend), ["option httpchk GET /health"]);
    assert_eq!(settings.guard.hold.as_secs(), 600);
    assert_eq!(settings.max_removed_services, 40);
    assert_eq!(
        settings.clusters[1].digest.as_deref(),
        Some("reader:secret")
    );
    assert_eq!(settings.clusters[1].root, "/aurora");
}

#[test]
fn what_synapse_dropped_is_an_error_and_leniently_a_report() {
    let sources = only(fixtures().join("lenient/dropped.yaml"));
    let failure = load(&sources, false).unwrap_err();
    let text = failure.to_string();
    for expected in [
        "dropped.yaml:9:50: `services.web.discovery.label_filters.condition` is `matches`",
        "dropped.yaml:10:5: unknown key `services.web.colour`",
        "dropped.yaml:17:11: `bogus directive` in `services.web.haproxy.listen`: Synapse drops the line",
        "dropped.yaml:20:11: `balance roundrobin` in `services.web.haproxy.frontend`: Synapse drops the line: `balance` stands in defaults, backend",
        "dropped.yaml:22:11: `default_backend elsewhere`",
        "dropped.yaml:23:11: `option no-such-option`",
        "dropped.yaml:24:1: unknown key `nginx`",
        "`nonsense` in `haproxy.defaults`: Synapse copies the line and HAProxy refuses it",
        "unknown key `haproxy.reload_comand`: did you mean `reload_command`?",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    let (settings, findings) = load(&sources, true).unwrap();
    let web = &settings.services[0];
    assert_eq!(web.backend_port_override, Some(8080));
    let proxy = web.haproxy.as_ref().unwrap();
    assert_eq!(texts(&proxy.frontend), ["maxconn 100"]);
    assert_eq!(texts(&proxy.backend), ["option httpchk GET /health"]);
    assert!(texts(&settings.haproxy.defaults).contains(&"nonsense"));
    // The unknown condition passes nothing, as in Synapse.
    assert!(
        web.label_filters
            .iter()
            .any(|filter| filter.label == "stage" && !filter.equals)
    );
    assert!(
        web.label_filters
            .iter()
            .any(|filter| filter.label == "stage" && filter.equals)
    );
    let report = report(&findings);
    assert!(report.contains("Dropped by Synapse:\n"), "{report}");
    assert!(
        report.contains("Works, and can be written better:\n"),
        "{report}"
    );
    assert!(report.contains("`backend_port_override`"), "{report}");
}

#[test]
fn the_resolver_that_only_an_example_names() {
    let sources = only(fixtures().join("lenient/fallback.json"));
    let text = load(&sources, false).unwrap_err().to_string();
    assert!(
        text.contains("fallback.json:10:32: resolver `fallback`"),
        "{text}"
    );
    let (settings, findings) = load(&sources, true).unwrap();
    assert_eq!(findings.len(), 1);
    let Discovery::Multi(_, resolver) = &settings.services[0].discovery else {
        panic!("not multi");
    };
    assert_eq!(
        *resolver,
        Resolver::Sequential(vec!["primary".into(), "secondary".into()])
    );
}

#[test]
fn a_summary_names_what_matters() {
    let text = summary(&example("hostkit.yaml"));
    for expected in [
        "5 services\n",
        "reloads  through the master, /var/run/haproxy/master.sock\n",
        "cluster  west is /aurora of zk9.example.com:2181\n",
        "api-private\n  members  /aurora/www-data/prod/api in ZooKeeper zk0.example.com:2181,zk1.example.com:2181\n",
        "  canary   /aurora/www-data/staging/api in ZooKeeper zk0.example.com:2181,zk1.example.com:2181 at 5 %\n",
        "  haproxy  binds 127.0.0.1:30002, backend api-private, 8 slots or more\n",
        "  haproxy  binds localhost:30004, backend everything, named servers\n  named    because of `servers: named`",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    assert!(!text.contains("secret"), "{text}");
}
