//! What is written for one service: its frontend, its backend, and its lines of the shared frontend.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::membership::Roster;
use crate::model;
use crate::settings::{Haproxy, Line, Proxy, Servers, Service};

use super::head::{self, Defaults, MARK};
use super::piece::{Finding, Piece};
use super::servers::{self, Naming};
use super::words;

/// How a service's members change in a running HAProxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// By filling and emptying server slots.
    Slots,
    /// By `add server` and `del server`.
    Dynamic,
    /// By a reload: HAProxy refuses to add servers such as these at run time.
    Static,
}

/// A proxy of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyName {
    /// Its name.
    pub name: String,
    /// `frontend` or `backend`; one of each may share a name.
    pub kind: Kind,
    /// The service it was made for.
    pub service: Arc<str>,
    /// Whether it speaks HTTP; else TCP.
    pub http: bool,
}

/// The kinds of proxies that services have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Takes connections.
    Frontend,
    /// Holds servers.
    Backend,
}

/// What a backend of mode http is told of requests that a server did not answer. A server that quits closes connections
/// in the moment in which HAProxy sends a request over one of them, and one that dies answers nothing: another server may
/// be asked instead. But only what is safe (RFC 9110 section 9.2.1): HAProxy repeats any request, those that buy
/// something too.
pub(super) const RETRY: [&str; 2] = [
    "http-request disable-l7-retry unless { method GET HEAD OPTIONS }",
    "retry-on conn-failure empty-response",
];

/// A service, written.
#[derive(Debug)]
pub(super) struct Stanza {
    pub(super) own: Arc<Piece>,
    /// Lines of the shared frontend.
    pub(super) shared: Option<Arc<Piece>>,
    /// SHA-256 of what only a reload changes.
    pub(super) structure: [u8; 32],
    pub(super) findings: Vec<Finding>,
    pub(super) proxies: Vec<ProxyName>,
    pub(super) membership: Membership,
    /// Whether [`RETRY`] was added.
    pub(super) retries: bool,
}

/// Writes a service; `None` when HAProxy has nothing of it, or when its name is not fit to be written.
pub(super) fn write(
    service: &Service,
    roster: &Roster,
    haproxy: &Haproxy,
    defaults: &Defaults,
) -> Result<Option<Stanza>, Finding> {
    let Some(proxy) = &service.haproxy else {
        return Ok(None);
    };
    let name: Arc<str> = Arc::from(service.name.as_str());
    let backend_name = proxy.backend_name.as_deref().unwrap_or(&service.name);
    for name in [&service.name, backend_name] {
        if !model::safe_name(name) {
            return Err(Finding {
                service: Some(service.name.as_str().into()),
                place: Some(service.place.clone()),
                text: format!(
                    "left out: `{}` cannot be the name of a proxy, which are letters, digits and -_.:",
                    model::shown(name)
                ),
            });
        }
    }
    let mut findings = Vec::new();
    let mut piece = Piece::of(Some(&name));
    let mut proxies = Vec::new();
    if let Some(port) = proxy.port {
        let http = head::mode(&proxy.frontend).unwrap_or(defaults.http);
        let bind = bind_line(proxy, port, haproxy);
        frontend(&mut piece, service, proxy, &mut findings);
        if haproxy.inject {
            idle_close(&mut piece, &proxy.frontend, http, defaults);
        }
        if words::one_line(&bind) {
            piece.line(&bind, Some(&service.place));
        } else {
            findings.push(Finding {
                service: Some(Arc::clone(&name)),
                place: Some(service.place.clone()),
                text: "its bind line is left out: it holds a control character".to_owned(),
            });
        }
        piece.line(
            &format!("default_backend {backend_name}"),
            Some(&service.place),
        );
        proxies.push(ProxyName {
            name: service.name.clone(),
            kind: Kind::Frontend,
            service: Arc::clone(&name),
            http,
        });
    }

    let http = head::mode(&proxy.backend).unwrap_or(defaults.http);
    piece.head("", None);
    piece.head(&format!("backend {backend_name}"), Some(&service.place));
    let decided = defaults.retry_on || head::said(&proxy.backend, &["retry-on"]).is_some();
    let retries = haproxy.inject && http && !decided;
    if retries {
        // Before the user's own rules: an `allow` among them would end the list.
        for line in RETRY {
            piece.line(&format!("{line} {MARK}"), None);
        }
    }
    piece.written(
        &format!("backend {backend_name}"),
        &proxy.backend,
        &mut findings,
    );
    proxies.push(ProxyName {
        name: backend_name.to_owned(),
        kind: Kind::Backend,
        service: Arc::clone(&name),
        http,
    });

    let mut structure = Sha256::new();
    structure.update(&piece.text);
    let options = options(service, proxy, &mut findings);
    let cookie = http && (defaults.cookie || head::said(&proxy.backend, &["cookie"]).is_some());
    let (membership, lines) = match service.servers {
        Servers::Slots => {
            // Without placeholders: what is left of Synapse's templates is that a percent sign is written twice.
            let options = options.replace("%%", "%");
            let lines = servers::slots(roster, &options);
            (Membership::Slots, lines)
        }
        Servers::Named(_) => {
            let dynamic = !cookie && dynamic(&proxy.backend, options, defaults);
            let naming = Naming {
                options,
                order: proxy.backend_order,
                seed: haproxy.server_order_seed,
                cookie: cookie.then_some(proxy.cookie_value),
                max_id: haproxy.max_server_id,
                dynamic,
            };
            let membership = match dynamic {
                true => Membership::Dynamic,
                false => Membership::Static,
            };
            let members = roster.servers.iter().flatten();
            (membership, servers::named(members, &naming))
        }
    };
    // Without the runtime API every member is something that only a reload changes.
    structure.update(match haproxy.do_socket {
        true => &lines.structure,
        false => &lines.text,
    });
    let place = proxy
        .server_options
        .as_ref()
        .and_then(|line| line.place.as_ref());
    piece.block(&lines.text, lines.count, place.or(Some(&service.place)));
    findings.extend(lines.refused.into_iter().map(|text| Finding {
        service: Some(Arc::clone(&name)),
        place: None,
        text,
    }));

    let shared = shared(&name, service, proxy, haproxy, &mut findings);
    if let Some(shared) = &shared {
        structure.update("shared\n");
        structure.update(&shared.text);
    }
    Ok(Some(Stanza {
        own: Arc::new(piece),
        shared,
        structure: structure.finalize().into(),
        findings,
        proxies,
        membership,
        retries,
    }))
}

fn frontend(piece: &mut Piece, service: &Service, proxy: &Proxy, findings: &mut Vec<Finding>) {
    let section = format!("frontend {}", service.name);
    piece.head("", None);
    piece.head(&section, Some(&service.place));
    piece.written(&section, &proxy.frontend, findings);
}

/// Over a reload, idle connections that clients keep open end with a response and not in the middle of a request. The
/// option is added to `defaults` of mode http; here it is added to what differs in mode, and taken from it, since HAProxy
/// warns where it has no use.
pub(super) fn idle_close(piece: &mut Piece, lines: &[Line], http: bool, defaults: &Defaults) {
    let Some(on) = defaults.idle_close else {
        return;
    };
    if http != on && !head::says_idle_close(lines) {
        let no = if http { "" } else { "no " };
        piece.line(&format!("{no}option idle-close-on-response {MARK}"), None);
    }
}

/// `bind` of a frontend: the service's port and the address it binds; without a port, the address alone.
fn bind_line(proxy: &Proxy, port: Option<u16>, haproxy: &Haproxy) -> String {
    let address = proxy.bind_address.as_deref();
    let address = address.unwrap_or(&haproxy.bind_address);
    let mut line = match port {
        None => format!("bind {address}"),
        Some(port) if address.parse::<std::net::Ipv6Addr>().is_ok() => {
            format!("bind [{address}]:{port}")
        }
        Some(port) => format!("bind {address}:{port}"),
    };
    if let Some(options) = proxy.bind_options.as_deref().filter(|it| !it.is_empty()) {
        line.push(' ');
        line.push_str(options);
    }
    line
}

/// The options of every server line.
fn options<'a>(service: &Service, proxy: &'a Proxy, findings: &mut Vec<Finding>) -> &'a str {
    let Some(line) = &proxy.server_options else {
        return "";
    };
    if !words::one_line(&line.text) {
        findings.push(Finding {
            service: Some(service.name.as_str().into()),
            place: line.place.clone(),
            text: "server_options is left out: it holds a control character".to_owned(),
        });
        return "";
    }
    words::fragment(&line.text)
}

/// Whether HAProxy 2.6 takes `add server` for such servers: it refuses some options and algorithms, does not apply
/// `default-server`, and keeps a server that rules or other servers name.
fn dynamic(backend: &[Line], options: &str, defaults: &Defaults) -> bool {
    const REFUSED: &[&str] = &[
        "cookie",
        "init-addr",
        "log-proto",
        "namespace",
        "redir",
        "resolve-net",
        "resolve-opts",
        "resolve-prefer",
        "resolvers",
        "socks4",
        "track",
    ];
    let texts = || backend.iter().map(|line| line.text.as_str());
    let balance = words::last_value(texts(), "balance").or_else(|| defaults.balance.clone());
    let balance = balance.as_deref().unwrap_or("roundrobin");
    let hashed = texts().any(|line| words::says(line, &["hash-type", "consistent"]));
    let balanced = matches!(balance, "roundrobin" | "leastconn" | "first")
        || balance.starts_with("random")
        || (hashed && balance != "static-rr");
    let own = ["default-server", "use-server"];
    balanced
        && !defaults.default_server
        && !own
            .iter()
            .any(|keyword| head::said(backend, &[keyword]).is_some())
        && !words::words(options)
            .iter()
            .any(|word| REFUSED.contains(&word.as_str()))
}

fn shared(
    name: &Arc<str>,
    service: &Service,
    proxy: &Proxy,
    haproxy: &Haproxy,
    findings: &mut Vec<Finding>,
) -> Option<Arc<Piece>> {
    if proxy.shared_frontend.is_empty() {
        return None;
    }
    if haproxy.shared_frontend.is_none() {
        findings.push(Finding {
            service: Some(Arc::clone(name)),
            place: Some(service.place.clone()),
            text: "its shared_frontend lines are left out: haproxy.shared_frontend is not set"
                .to_owned(),
        });
        return None;
    }
    let mut piece = Piece::of(Some(name));
    piece.written(super::SHARED, &proxy.shared_frontend, findings);
    Some(Arc::new(piece))
}
