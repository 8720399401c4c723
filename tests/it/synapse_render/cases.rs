//! The inputs of the golden files: small settings, each about one thing.

use std::net::IpAddr;
use std::sync::Arc;

use synapse::membership::{Admin, Occupant, Roster};
use synapse::model::Backend;
use synapse::render::{Input, Rendered, Renderer};
use synapse::settings::{
    CookieValue, Discovery, Haproxy, Line, Order, Place, Probe, Proxy, Servers, Service,
};

/// Everything that one file is made of.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) haproxy: Haproxy,
    pub(super) services: Vec<(Service, Roster)>,
}

impl Case {
    /// Settings that HAProxy needs nothing added to but what hitless operation needs.
    pub(super) fn new(services: Vec<(Service, Roster)>) -> Self {
        let haproxy = Haproxy {
            global: lines(&["maxconn 4096"]),
            defaults: lines(&[
                "mode http",
                "timeout connect 1s",
                "timeout client 10s",
                "timeout server 10s",
            ]),
            sockets: vec!["/run/haproxy/admin.sock".into()],
            server_state_file: "/var/lib/hostkit/synapse/haproxy-servers.state".into(),
            bind_address: "127.0.0.1".to_owned(),
            ..Haproxy::default()
        };
        Self { haproxy, services }
    }

    /// The file.
    pub(super) fn render(&self) -> Rendered {
        let inputs: Vec<Input<'_>> = self
            .services
            .iter()
            .map(|(service, roster)| Input {
                service,
                roster,
                revision: 0,
            })
            .collect();
        Renderer::new(&self.haproxy).render(&inputs)
    }
}

/// By the name of the golden file.
pub(super) fn all() -> Vec<(&'static str, Case)> {
    vec![
        (
            "http",
            Case::new(vec![eightball(slots(8, &[(1, up(1)), (2, up(2))]))]),
        ),
        ("tcp", tcp()),
        ("shared-frontend", shared_frontend()),
        ("extra-sections", extra_sections()),
        ("named-cookies", named_cookies()),
        ("named-dynamic", named_dynamic()),
        ("ipv6", ipv6()),
        ("canary", canary()),
        ("slots", phases()),
        ("inject-off", inject_off()),
        ("inject-nothing", inject_nothing()),
        ("proxies", proxies()),
        ("hostile", hostile()),
    ]
}

fn tcp() -> Case {
    let mut case = Case::new(vec![eightball(slots(8, &[(3, up(1))]))]);
    let proxy = proxy(&mut case, 0);
    proxy.frontend = lines(&["mode tcp"]);
    proxy.backend = lines(&["mode tcp", "balance leastconn"]);
    case
}

fn shared_frontend() -> Case {
    let mut second = eightball(slots(8, &[]));
    second.0.name = "eightball-canary".to_owned();
    let mut case = Case::new(vec![eightball(slots(8, &[(1, up(1))])), second]);
    case.haproxy.shared_frontend = Some(lines(&["bind 127.0.0.1:23081"]));
    for (at, name) in ["eightball", "eightball-canary"].into_iter().enumerate() {
        let proxy = proxy(&mut case, at);
        proxy.port = None;
        proxy.shared_frontend = lines(&[
            &format!("acl is_{name} hdr_dom(host) -i {name}.lb"),
            &format!("use_backend {name} if is_{name}"),
        ]);
    }
    case
}

fn extra_sections() -> Case {
    let mut case = Case::new(vec![eightball(slots(8, &[(1, up(1))]))]);
    case.haproxy.extra_sections = vec![
        (
            line("listen stats"),
            lines(&["bind 127.0.0.1:3212", "stats enable", "stats uri /"]),
        ),
        (
            line("backend manual"),
            lines(&["server m1 127.0.0.1:8080 check"]),
        ),
        (
            line("defaults slow"),
            lines(&[
                "mode tcp",
                "timeout connect 5s",
                "timeout client 1h",
                "timeout server 1h",
            ]),
        ),
    ];
    case
}

fn named_cookies() -> Case {
    let team: Vec<Occupant> = (1..4).map(up).collect();
    let mut hashed = named(team.clone());
    hashed.0.name = "hashed".to_owned();
    let mut case = Case::new(vec![named(team), hashed]);
    for at in 0..2 {
        proxy(&mut case, at).backend = lines(&["cookie SERVER insert indirect nocache"]);
    }
    let first = proxy(&mut case, 0);
    first.backend_order = Order::Asc;
    let second = proxy(&mut case, 1);
    second.port = Some(Some(23_801));
    second.backend_order = Order::Desc;
    second.cookie_value = CookieValue::Hash;
    case
}

fn named_dynamic() -> Case {
    let mut team: Vec<Occupant> = (1..6).map(up).collect();
    team[1].admin = Admin::Maint;
    team[2].admin = Admin::Drain;
    of(&mut team[3])
        .rare
        .edit(|rare| rare.options = Some("backup weight 5".into()));
    of(&mut team[4]).shard = None;
    of(&mut team[4]).host = "web_5.example.com".into();
    let mut case = Case::new(vec![named(team)]);
    proxy(&mut case, 0).server_options =
        Some(line("check port %{port} sni str(%{host}) # of %{name}"));
    case
}

fn ipv6() -> Case {
    let team = [(1, at("::1", 31_001)), (2, at("2001:db8::2", 31_002))];
    let mut second = named(vec![at("::1", 31_001), at("fd00::7", 31_002)]);
    second.0.name = "named".to_owned();
    let mut case = Case::new(vec![eightball(slots(8, &team)), second]);
    case.haproxy.bind_address = "::1".to_owned();
    let proxy = proxy(&mut case, 1);
    proxy.port = Some(Some(23_801));
    proxy.backend_order = Order::Asc;
    case
}

fn canary() -> Case {
    let mut team: Vec<Occupant> = (1..4).map(up).collect();
    for occupant in &mut team {
        occupant.weight = Some(100);
    }
    team[2].weight = Some(5);
    let members: Vec<(usize, Occupant)> = (1..).zip(team).collect();
    Case::new(vec![eightball(slots(8, &members))])
}

fn phases() -> Case {
    let mut draining = up(2);
    draining.admin = Admin::Drain;
    draining.weight = Some(100);
    let mut away = up(3);
    away.admin = Admin::Maint;
    let mut backup = up(7);
    of(&mut backup)
        .rare
        .edit(|rare| rare.options = Some("weight 3 backup".into()));
    let members = [
        (2, up(1)),
        (3, draining),
        (4, away),
        (9, backup),
        (16, up(9)),
    ];
    Case::new(vec![eightball(slots(16, &members))])
}

fn inject_off() -> Case {
    let mut case = Case::new(vec![eightball(slots(8, &[(1, up(1))]))]);
    case.haproxy.inject = false;
    case
}

fn inject_nothing() -> Case {
    let mut case = Case::new(vec![eightball(slots(8, &[(1, up(1))]))]);
    case.haproxy.global.extend(lines(&[
        "stats  socket unix@/run/haproxy/admin.sock user root expose-fd listeners level admin",
        "server-state-file /var/lib/hostkit/synapse/haproxy-servers.state",
        "hard-stop-after 1h",
    ]));
    case.haproxy.defaults.extend(lines(&[
        "load-server-state-from-file global",
        "option redispatch",
        "retries 2",
        "no option idle-close-on-response",
    ]));
    case
}

/// A backend alone, a Unix socket, a backend of another name, and a service that HAProxy has nothing of.
fn proxies() -> Case {
    let names = ["backend-only", "socket", "renamed", "disabled"];
    let services = names.map(|name| {
        let mut service = eightball(slots(8, &[]));
        service.0.name = name.to_owned();
        service
    });
    let mut case = Case::new(services.into());
    case.services[0].1.servers.clear();
    proxy(&mut case, 0).port = None;
    let socket = proxy(&mut case, 1);
    socket.port = Some(None);
    socket.bind_address = Some("/run/haproxy/web.sock".to_owned());
    socket.bind_options = Some("mode 666".to_owned());
    let renamed = proxy(&mut case, 2);
    renamed.backend_name = Some("web-servers".to_owned());
    renamed.bind_address = Some("*".to_owned());
    case.services[3].0.haproxy = None;
    case
}

/// Members and a registry that want more than a server, and a service of an impossible name.
fn hostile() -> Case {
    let mut team: Vec<Occupant> = (1..6).map(up).collect();
    of(&mut team[0])
        .rare
        .edit(|rare| rare.name = Some("web\n\tserver evil 6.6.6.6:66 \"#".into()));
    of(&mut team[1]).host = "h 6.6.6.6:66\nbackend evil".into();
    of(&mut team[2])
        .rare
        .edit(|rare| rare.options = Some("check\n\tserver evil 6.6.6.6:66".into()));
    of(&mut team[3])
        .rare
        .edit(|rare| rare.options = Some("id 7".into()));
    let mut slotted = eightball(slots(8, &[(1, team[0].clone()), (2, team[2].clone())]));
    slotted.0.name = "slotted".to_owned();
    let mut bad = eightball(slots(8, &[]));
    bad.0.name = "bad\nbackend evil".to_owned();
    let mut case = Case::new(vec![named(team), slotted, bad]);
    proxy(&mut case, 1).port = Some(Some(23_801));
    proxy(&mut case, 1).backend = [
        "balance leastconn",
        "backend evil",
        ".if 0",
        "a\nbackend evil",
    ]
    .map(|text| Line {
        text: text.to_owned(),
        place: None,
    })
    .into();
    case
}

/// A service with slots, as most are.
pub(super) fn eightball(roster: Roster) -> (Service, Roster) {
    let service = Service {
        name: "eightball".to_owned(),
        place: Place {
            file: "synapse.yaml".into(),
            line: 1,
            column: 1,
        },
        discovery: Discovery::Base,
        label_filters: Vec::new(),
        default_servers: Vec::new(),
        keep_default_servers: false,
        use_previous_backends: true,
        backend_port_override: None,
        leader_election: false,
        canary: None,
        slots: None,
        servers: Servers::Slots,
        probe: Probe::Connect,
        panic_threshold: 50,
        haproxy: Some(Proxy {
            port: Some(Some(23_800)),
            server_options: Some(line("check inter 2s rise 1 fall 2")),
            backend: lines(&["option httpchk GET /health"]),
            ..Proxy::default()
        }),
        file_output: false,
    };
    (service, roster)
}

fn named(team: Vec<Occupant>) -> (Service, Roster) {
    let servers = team.into_iter().map(Some).collect();
    let (mut service, roster) = eightball(Roster { servers, free: 0 });
    service.servers = Servers::Named("servers: named".to_owned());
    (service, roster)
}

pub(super) fn proxy(case: &mut Case, service: usize) -> &mut Proxy {
    case.services[service].0.haproxy.as_mut().unwrap()
}

/// So many slots, of which some are occupied.
pub(super) fn slots(count: usize, occupied: &[(usize, Occupant)]) -> Roster {
    let mut servers = vec![None; count];
    for (slot, occupant) in occupied {
        servers[slot - 1] = Some(occupant.clone());
    }
    Roster { servers, free: 0 }
}

/// The member itself, to be changed.
fn of(occupant: &mut Occupant) -> &mut Backend {
    Arc::make_mut(&mut occupant.backend)
}

/// Member `n` of the service, ready.
pub(super) fn up(n: u16) -> Occupant {
    let mut occupant = at(&format!("127.0.0.{n}"), 31_000 + n);
    of(&mut occupant).shard = Some(u32::from(n));
    occupant
}

fn at(address: &str, port: u16) -> Occupant {
    let address: IpAddr = address.parse().unwrap();
    Occupant {
        backend: Arc::new(Backend::new(&address.to_string(), port, "golden").unwrap()),
        address,
        weight: None,
        admin: Admin::Ready,
    }
}

pub(super) fn line(text: &str) -> Line {
    Line {
        text: text.to_owned(),
        place: Some(Place::default()),
    }
}

pub(super) fn lines(texts: &[&str]) -> Vec<Line> {
    texts.iter().map(|text| line(text)).collect()
}
