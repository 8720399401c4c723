//! What the renderer promises to those that drive HAProxy with it. That HAProxy agrees is asserted in the integration
//! tests, on golden files.

use crate::membership::{Admin, Occupant};
use crate::model::Backend;
use crate::settings::{Discovery, Line, Order, Probe, Proxy, Servers};

use super::*;

mod hostile;

fn service(name: &str, servers: Servers) -> Service {
    Service {
        name: name.to_owned(),
        place: place(1),
        discovery: Discovery::Base,
        label_filters: Vec::new(),
        default_servers: Vec::new(),
        keep_default_servers: false,
        use_previous_backends: true,
        backend_port_override: None,
        leader_election: false,
        canary: None,
        slots: None,
        servers,
        probe: Probe::Connect,
        panic_threshold: 50,
        haproxy: Some(Proxy {
            port: Some(Some(23_800)),
            server_options: Some(line("check inter 2s", 5)),
            ..Proxy::default()
        }),
        file_output: false,
    }
}

pub(crate) fn slotted(name: &str) -> Service {
    service(name, Servers::Slots)
}

fn named(name: &str) -> Service {
    service(name, Servers::Named("servers: named".to_owned()))
}

fn proxy(service: &mut Service) -> &mut Proxy {
    service.haproxy.as_mut().unwrap()
}

fn place(line: usize) -> Place {
    Place {
        file: "synapse.yaml".into(),
        line,
        column: 1,
    }
}

fn line(text: &str, at: usize) -> Line {
    Line {
        text: text.to_owned(),
        place: Some(place(at)),
    }
}

fn lines(texts: &[&str]) -> Vec<Line> {
    (100..)
        .zip(texts)
        .map(|(at, text)| line(text, at))
        .collect()
}

fn haproxy() -> Haproxy {
    Haproxy {
        defaults: lines(&["mode http"]),
        sockets: vec!["/run/s.sock".into()],
        server_state_file: "/var/lib/s.state".into(),
        ..Haproxy::default()
    }
}

fn member(host: &str, port: u16) -> Occupant {
    Occupant {
        backend: Arc::new(Backend::new(host, port, "test").unwrap()),
        address: host.parse().unwrap_or([10, 0, 0, 9].into()),
        weight: None,
        admin: Admin::Ready,
    }
}

fn with_options(host: &str, port: u16, options: &str) -> Occupant {
    let mut member = member(host, port);
    let backend = Arc::make_mut(&mut member.backend);
    backend
        .rare
        .edit(|rare| rare.options = Some(options.into()));
    member
}

fn roster(servers: Vec<Option<Occupant>>) -> Roster {
    Roster { servers, free: 0 }
}

fn members(servers: Vec<Occupant>) -> Roster {
    roster(servers.into_iter().map(Some).collect())
}

fn one(haproxy: &Haproxy, service: &Service, roster: &Roster) -> Rendered {
    let input = Input {
        service,
        roster,
        revision: 1,
    };
    Renderer::new(haproxy).render(&[input])
}

fn server_lines(rendered: &Rendered) -> Vec<String> {
    let lines = rendered.stanza("a").unwrap().lines();
    let lines = lines.filter(|line| line.starts_with("\tserver"));
    lines.map(|line| line.trim().to_owned()).collect()
}

#[test]
fn slots_are_explicit_where_occupied_and_ranges_where_free() {
    let mut draining = member("10.0.0.2", 31_002);
    draining.admin = Admin::Drain;
    draining.weight = Some(50);
    let mut away = member("::1", 31_003);
    away.admin = Admin::Maint;
    let mut canary = member("10.0.0.4", 31_004);
    canary.weight = Some(10);
    let mut slots = vec![None; 12];
    slots[1] = Some(draining);
    slots[2] = Some(away);
    slots[5] = Some(canary);
    let rendered = one(&haproxy(), &slotted("a"), &roster(slots));
    assert_eq!(
        server_lines(&rendered),
        [
            "server-template slot 1-1 127.0.0.1:1 check inter 2s disabled",
            "server slot2 10.0.0.2:31002 check inter 2s weight 0",
            "server slot3 [::1]:31003 check inter 2s disabled",
            "server-template slot 4-5 127.0.0.1:1 check inter 2s disabled",
            "server slot6 10.0.0.4:31004 check inter 2s weight 10",
            "server-template slot 7-12 127.0.0.1:1 check inter 2s disabled",
        ]
    );
}

#[test]
fn who_stands_in_a_slot_is_no_structure_but_their_number_and_own_options_are() {
    let of = |servers| one(&haproxy(), &slotted("a"), &roster(servers)).structure;
    let free = of(vec![None; 8]);
    let mut taken = vec![None; 8];
    taken[3] = Some(with_options("10.0.0.1", 80, "weight 7"));
    assert_eq!(free, of(taken.clone()));
    assert_ne!(free, of(vec![None; 16]));
    taken[3] = Some(with_options("10.0.0.1", 80, "weight 7 backup"));
    assert_ne!(free, of(taken));
}

#[test]
fn every_line_that_only_a_reload_changes_changes_the_structure() {
    let members = roster(vec![None; 8]);
    let base = one(&haproxy(), &slotted("a"), &members);
    let changes: [fn(&mut Haproxy, &mut Service); 8] = [
        |haproxy, _| haproxy.global.push(line("maxconn 9", 1)),
        |haproxy, _| haproxy.defaults.push(line("timeout client 9s", 1)),
        |haproxy, _| {
            haproxy
                .extra_sections
                .push((line("backend x", 1), Vec::new()))
        },
        |haproxy, _| haproxy.shared_frontend = Some(Vec::new()),
        |_, service| proxy(service).port = None,
        |_, service| proxy(service).backend = lines(&["balance leastconn"]),
        |_, service| proxy(service).frontend = lines(&["maxconn 9"]),
        |_, service| proxy(service).server_options = None,
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let (mut haproxy, mut service) = (haproxy(), slotted("a"));
        change(&mut haproxy, &mut service);
        let changed = one(&haproxy, &service, &members);
        assert_ne!(changed.structure, base.structure, "change {at}");
        assert!(changed.text().contains(&changed.structure));
    }
}

#[test]
fn named_servers_keep_name_id_and_order_whoever_else_is_there() {
    let hosts = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"];
    let all: Vec<Occupant> = hosts.iter().map(|host| member(host, 80)).collect();
    let mut service = named("a");
    proxy(&mut service).backend_order = Order::Shuffle;
    let five = server_lines(&one(&haproxy(), &service, &members(all.clone())));
    for gone in 0..5 {
        let mut four = all.clone();
        let out = four.remove(gone);
        four.reverse();
        let four = server_lines(&one(&haproxy(), &service, &members(four)));
        let name = server_name(&out.backend);
        let expected: Vec<String> = five
            .iter()
            .filter(|l| !l.contains(&name))
            .cloned()
            .collect();
        assert_eq!(four, expected);
    }
    let mut other = haproxy();
    other.server_order_seed = 1;
    assert_ne!(server_lines(&one(&other, &service, &members(all))), five);
}

#[test]
fn named_servers_have_cookies_only_where_cookies_are_used() {
    let mut service = named("a");
    let mut occupant = member("10.0.0.1", 80);
    let backend = Arc::make_mut(&mut occupant.backend);
    backend.rare.edit(|rare| {
        rare.name = Some("web 1".into());
        rare.server_id = Some(7);
    });
    let team = members(vec![occupant]);
    let plain = one(&haproxy(), &service, &team);
    assert_eq!(
        server_lines(&plain),
        ["server web_1_10.0.0.1:80 10.0.0.1:80 id 7 check inter 2s"]
    );
    assert_eq!(
        plain.services().collect::<Vec<_>>(),
        [("a", Membership::Dynamic)]
    );
    proxy(&mut service).backend = lines(&["cookie S insert"]);
    let cookies = one(&haproxy(), &service, &team);
    assert_eq!(
        server_lines(&cookies),
        ["server web_1_10.0.0.1:80 10.0.0.1:80 id 7 cookie web_1_10.0.0.1:80 check inter 2s"]
    );
    assert_eq!(
        cookies.services().collect::<Vec<_>>(),
        [("a", Membership::Static)]
    );
    proxy(&mut service).cookie_value = crate::settings::CookieValue::Hash;
    let hashed = server_lines(&one(&haproxy(), &service, &team));
    // printf web_1_10.0.0.1:80 | sha1sum
    assert!(
        hashed[0].contains(" cookie 99cb42ff9b83048305774594584225b7b8bd0427 "),
        "{hashed:?}"
    );
}

#[test]
fn without_the_runtime_api_members_are_structure() {
    let (few, more) = (
        roster(vec![Some(member("10.0.0.1", 80)), None]),
        roster(vec![
            Some(member("10.0.0.1", 80)),
            Some(member("10.0.0.2", 80)),
        ]),
    );
    let service = slotted("a");
    let differ = |haproxy: &Haproxy| {
        one(haproxy, &service, &few).structure != one(haproxy, &service, &more).structure
    };
    let with = haproxy();
    assert!(!differ(&with));
    assert!(differ(&Haproxy {
        do_socket: false,
        ..with
    }));
}

#[test]
fn named_members_are_structure_only_where_a_reload_adds_them() {
    let (few, more) = (
        members(vec![member("10.0.0.1", 80)]),
        members(vec![member("10.0.0.1", 80), member("10.0.0.2", 80)]),
    );
    let mut service = named("a");
    let differ = |service: &Service| {
        one(&haproxy(), service, &few).structure != one(&haproxy(), service, &more).structure
    };
    assert!(!differ(&service));
    for line in [
        "balance static-rr",
        "cookie S insert",
        "balance source",
        "default-server check",
    ] {
        proxy(&mut service).backend = lines(&[line]);
        assert!(differ(&service), "{line}");
    }
    proxy(&mut service).backend = lines(&["balance source", "hash-type consistent"]);
    assert!(!differ(&service));
    proxy(&mut service).server_options = Some(line("track b/x", 1));
    assert!(differ(&service));
}

#[test]
fn placeholders_in_server_options_are_filled_in() {
    let mut service = named("a");
    proxy(&mut service).server_options = Some(line(
        "cookie %{name} sni str(%{host}) port %{port} %% %x",
        1,
    ));
    let rendered = one(
        &haproxy(),
        &service,
        &members(vec![member("web_1.example", 80)]),
    );
    let lines = server_lines(&rendered);
    let expected = "cookie web..1.example:80 sni str(web_1.example) port 80 % %x";
    assert!(lines[0].ends_with(expected), "{lines:?}");
    assert!(
        lines[0].starts_with("server web..1.example:80 10.0.0.9:80 id "),
        "{lines:?}"
    );
    let mut service = slotted("a");
    proxy(&mut service).server_options = Some(line("check sni str(%%)", 1));
    let rendered = one(&haproxy(), &service, &roster(vec![None]));
    let free = "server-template slot 1-1 127.0.0.1:1 check sni str(%) disabled";
    assert_eq!(server_lines(&rendered), [free]);
}

#[test]
fn what_hitless_operation_needs_is_added_once_and_only_where_it_is_missing() {
    let team = roster(vec![None; 8]);
    let bare = one(&haproxy(), &slotted("a"), &team);
    let added: Vec<&str> = bare.injected.iter().map(|it| it.line.as_str()).collect();
    let structure = format!("setenv HOSTKIT_STRUCTURE {}", bare.structure);
    assert_eq!(
        added,
        [
            "stats socket /run/s.sock mode 600 level admin expose-fd listeners",
            "server-state-file /var/lib/s.state",
            "hard-stop-after 10m",
            "load-server-state-from-file global",
            "option redispatch 1",
            "retries 10",
            "option idle-close-on-response",
            &structure,
            "http-request disable-l7-retry unless { method GET HEAD OPTIONS }",
            "retry-on conn-failure empty-response",
        ]
    );
    for line in &added {
        assert_eq!(
            bare.text().matches(&format!("\t{line} {MARK}\n")).count(),
            1,
            "{line}"
        );
    }
    let mut own = haproxy();
    own.global = lines(&added[..3]);
    own.defaults = lines(&[
        "mode http",
        added[3],
        "no option redispatch",
        "retries 0",
        " \"option\"  idle-close-on-response",
        "retry-on none",
    ]);
    let rendered = one(&own, &slotted("a"), &team);
    assert_eq!(rendered.injected.len(), 1, "{:?}", rendered.injected);
    assert_eq!(rendered.findings, []);
    own.inject = false;
    let off = one(&own, &slotted("a"), &team);
    assert!(off.injected.is_empty() && !off.text().contains(MARK));
}

#[test]
fn lines_that_are_there_but_not_enough_are_found_and_left() {
    let mut haproxy = haproxy();
    haproxy.global = lines(&[
        "stats socket /run/s.sock level operator",
        "server-state-file /x",
    ]);
    haproxy.defaults = lines(&["load-server-state-from-file none", "option redispatch"]);
    let rendered = one(&haproxy, &slotted("a"), &roster(Vec::new()));
    let places: Vec<usize> = rendered
        .findings
        .iter()
        .map(|finding| finding.place.as_ref().unwrap().line)
        .collect();
    assert_eq!(places, [100, 100, 101, 100, 101], "{:?}", rendered.findings);
    haproxy.defaults = lines(&["load-server-state-from-file none", "option redispatch 2"]);
    let better = one(&haproxy, &slotted("a"), &roster(Vec::new()));
    assert_eq!(better.findings.len(), 4, "{:?}", better.findings);
}

#[test]
fn idle_connections_end_well_in_every_http_frontend_and_tcp_ones_do_not_warn() {
    let option = format!("\toption idle-close-on-response {MARK}\n");
    let off = format!("\tno option idle-close-on-response {MARK}\n");
    for (default, own, in_defaults, in_frontend) in [
        ("mode http", "mode http", true, None),
        ("mode http", "mode tcp", true, Some(&off)),
        ("mode tcp", "mode http", false, Some(&option)),
        ("mode tcp", "mode tcp", false, None),
        ("no option idle-close-on-response", "mode http", false, None),
    ] {
        let mut haproxy = haproxy();
        haproxy.defaults = lines(&[default]);
        let mut service = slotted("a");
        proxy(&mut service).frontend = lines(&[own]);
        let rendered = one(&haproxy, &service, &roster(Vec::new()));
        let stanza = rendered.stanza("a").unwrap();
        let text = rendered.text();
        let head = &text[..text.len() - stanza.len()];
        assert_eq!(head.contains(&option), in_defaults, "{default} {own}");
        let said = stanza.lines().find(|line| line.contains("idle-close"));
        assert_eq!(said, in_frontend.map(|line| line.trim_end_matches('\n')));
    }
}

#[test]
fn an_alert_is_blamed_on_its_service_and_line() {
    let mut haproxy = haproxy();
    haproxy.shared_frontend = Some(lines(&["bind :1"]));
    let mut first = slotted("a");
    proxy(&mut first).backend = lines(&["balance leastconn", "bogus"]);
    proxy(&mut first).shared_frontend = vec![line("bogus2", 77)];
    let second = slotted("b");
    let team = roster(vec![None, Some(member("10.0.0.1", 80)), None]);
    let inputs = [&first, &second].map(|service| Input {
        service,
        roster: &team,
        revision: 0,
    });
    let rendered = Renderer::new(&haproxy).render(&inputs);
    let text = rendered.text();
    let blame = |part: &str, nth: usize| {
        let found = text
            .lines()
            .enumerate()
            .filter(|(_, line)| line.contains(part))
            .nth(nth);
        let origin = rendered.origin(found.unwrap().0 + 1).unwrap();
        (
            origin.service.as_deref().map(str::to_owned),
            origin.place.map(|place| place.line),
        )
    };
    let a = Some("a".to_owned());
    assert_eq!(blame("bogus", 0), (a.clone(), Some(101)));
    assert_eq!(blame("bogus2", 0), (a.clone(), Some(77)));
    assert_eq!(blame("bind localhost", 0), (a.clone(), Some(1)));
    assert_eq!(blame("slot 1-1", 0), (a, Some(5)));
    assert_eq!(blame("slot 3-3", 1), (Some("b".to_owned()), Some(5)));
    assert_eq!(blame("mode http", 0), (None, Some(100)));
    assert_eq!(rendered.origin(text.lines().count() + 1), None);
    assert_eq!(rendered.origin(0), None);
}

#[test]
fn a_service_whose_names_are_not_free_or_not_fit_is_left_out_alone() {
    let mut haproxy = haproxy();
    haproxy.extra_sections = vec![(line("backend taken", 1), lines(&["server x 127.0.0.1:1"]))];
    let mut same = slotted("d");
    proxy(&mut same).backend_name = Some("good".to_owned());
    let services = [
        slotted("taken"),
        slotted("b c"),
        slotted("good"),
        same,
        slotted("e\nglobal"),
    ];
    let team = roster(vec![None; 8]);
    let inputs: Vec<Input<'_>> = services
        .iter()
        .map(|service| Input {
            service,
            roster: &team,
            revision: 0,
        })
        .collect();
    let rendered = Renderer::new(&haproxy).render(&inputs);
    assert_eq!(
        rendered.services().collect::<Vec<_>>(),
        [("good", Membership::Slots)]
    );
    assert_eq!(rendered.findings.len(), 4, "{:?}", rendered.findings);
}

#[test]
fn only_what_changed_is_written_again() {
    let mut renderer = Renderer::new(&haproxy());
    let (a, b) = (slotted("a"), slotted("b"));
    let empty = roster(vec![None; 8]);
    let input = |service, roster, revision| Input {
        service,
        roster,
        revision,
    };
    let first = renderer.render(&[input(&a, &empty, 1), input(&b, &empty, 1)]);
    let mut full = empty.clone();
    full.servers[0] = Some(member("10.0.0.1", 80));
    let second = renderer.render(&[input(&a, &full, 1), input(&b, &full, 2)]);
    assert_eq!(
        first.stanza("a"),
        second.stanza("a"),
        "the revision says it is the same"
    );
    assert_ne!(first.stanza("b"), second.stanza("b"));
    assert!(Arc::ptr_eq(&first.stanzas[0], &second.stanzas[0]));
    assert_eq!(first.structure, second.structure);
    let third = renderer.render(&[input(&b, &full, 2)]);
    assert_ne!(third.structure, second.structure);
    assert_eq!(renderer.written.len(), 1);
}

#[test]
fn slots_are_sized_ahead_of_need() {
    for (members, configured, current, expected) in [
        (0, None, 0, 8),
        (5, None, 0, 8),
        (6, None, 0, 16),
        (100, None, 0, 256),
        (5, None, 8, 8),
        (6, None, 8, 16),
        (10, None, 16, 16),
        (11, None, 16, 32),
        (12, None, 16, 32),
        (42, None, 64, 64),
        (43, None, 64, 128),
        (1, None, 64, 64),
        (1, Some(4), 0, 4),
        (3, Some(4), 4, 8),
        (9, Some(10), 0, 16),
        (14, Some(16), 0, 16),
        (15, Some(16), 0, 32),
        (1, Some(4), 32, 32),
        (usize::MAX / 4, None, 0, MAX_SLOTS),
    ] {
        let slots = slots_for(members, configured, current);
        assert_eq!(slots, expected, "{members} {configured:?} {current}");
    }
}

#[test]
fn requests_are_repeated_only_where_they_are_http_and_nobody_has_decided() {
    let team = roster(vec![None; 8]);
    let has = |service: &Service| {
        let text = one(&haproxy(), service, &team).text();
        let lines = ["disable-l7-retry", "retry-on conn-failure empty-response"];
        lines.map(|line| text.contains(line))
    };
    let mut service = slotted("a");
    assert_eq!(has(&service), [true, true]);
    proxy(&mut service).backend = lines(&["http-request allow"]);
    let text = one(&haproxy(), &service, &team).text();
    assert!(
        text.find("disable-l7-retry") < text.find("http-request allow"),
        "{text}"
    );
    proxy(&mut service).backend = lines(&["retry-on 503"]);
    assert_eq!(has(&service), [false, false]);
    proxy(&mut service).backend = lines(&["mode tcp"]);
    assert_eq!(has(&service), [false, false]);
}
