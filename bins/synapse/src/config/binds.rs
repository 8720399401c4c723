//! What frontends bind, and which of them bind the same.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use super::context::{Context, Kind};
use crate::settings::{Place, Settings};

/// One address that is listened on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bind {
    address: Address,
    ports: RangeInclusive<u16>,
    owner: String,
    place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    Ip(IpAddr),
    /// A name, or anything else that is only equal to itself.
    Other(String),
}

impl Address {
    fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ip(a), Self::Ip(b)) => {
                a == b || a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified())
            }
            (a, b) => a == b,
        }
    }
}

/// Reports binds of two owners that are the same. HAProxy takes them, and the kernel deals connections out between them.
pub(super) fn check(context: &mut Context, settings: &Settings) {
    let binds = all(settings);
    let mut by_port: HashMap<u16, Vec<&Bind>> = HashMap::new();
    for bind in &binds {
        let mut told = false;
        for port in bind.ports.clone() {
            let others = by_port.entry(port).or_default();
            let same = others
                .iter()
                .find(|other| other.address.overlaps(&bind.address));
            if let Some(other) = same
                && !told
            {
                told = true;
                let what = match (port, &bind.address) {
                    (0, Address::Other(path)) => format!("`{path}`"),
                    _ => format!("port {port}"),
                };
                let message = format!(
                    "{} and {} both bind {what} ({})",
                    other.owner, bind.owner, other.place
                );
                let remedy =
                    "each gets some of the other's connections: give one another port or address";
                context.push_at(Kind::Refused, bind.place.clone(), message, remedy);
            }
            others.push(bind);
        }
    }
}

fn all(settings: &Settings) -> Vec<Bind> {
    let mut binds = Vec::new();
    let haproxy = &settings.haproxy;
    for service in &settings.services {
        let Some(proxy) = &service.haproxy else {
            continue;
        };
        let owner = format!("service `{}`", service.name);
        let address = proxy.bind_address.as_ref().unwrap_or(&haproxy.bind_address);
        match proxy.port {
            None => {}
            Some(None) => parse(address, &owner, &service.place, &mut binds),
            Some(Some(port)) => {
                let bind = format!("{address}:{port}");
                parse(&bind, &owner, &service.place, &mut binds);
            }
        }
        // Without a port of its own a service has no frontend, and its lines are not written.
        if proxy.port.is_some() {
            lines(&proxy.frontend, &owner, &service.place, &mut binds);
        }
    }
    if let Some(shared) = &haproxy.shared_frontend {
        lines(shared, "the shared frontend", &Place::default(), &mut binds);
    }
    for (head, body) in &haproxy.extra_sections {
        let mut words = head.text.split_ascii_whitespace();
        let kind = words.next().unwrap_or_default();
        if !matches!(kind, "listen" | "frontend") {
            continue;
        }
        let owner = format!("`{}`", head.text);
        let place = head.place.clone().unwrap_or_default();
        lines(body, &owner, &place, &mut binds);
    }
    binds
}

fn lines(lines: &[crate::settings::Line], owner: &str, place: &Place, binds: &mut Vec<Bind>) {
    for line in lines {
        let mut words = line.text.split_ascii_whitespace();
        if words.next() == Some("bind")
            && let Some(address) = words.next()
        {
            let place = line.place.as_ref().unwrap_or(place);
            parse(address, owner, place, binds);
        }
    }
}

/// `[family@]address[:port[-port]]`, several of them joined by commas (HAProxy's `bind`).
fn parse(text: &str, owner: &str, place: &Place, binds: &mut Vec<Bind>) {
    for one in text.split(',') {
        let bare = ["ipv4@", "ipv6@", "tcp4@", "tcp6@", "unix@"]
            .iter()
            .find_map(|family| one.strip_prefix(family))
            .unwrap_or(one);
        let inet = !bare.starts_with('/') && !bare.contains('@');
        let (address, ports) = match bare.rsplit_once(':') {
            Some((address, ports)) if inet => (ip(address), range(ports)),
            _ => (Address::Other(bare.to_owned()), Some(0..=0)),
        };
        // What is neither is HAProxy's to judge: an environment variable, for example.
        if let Some(ports) = ports {
            binds.push(Bind {
                address,
                ports,
                owner: owner.to_owned(),
                place: place.clone(),
            });
        }
    }
}

fn ip(text: &str) -> Address {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    match bare {
        "" | "*" => Address::Ip(Ipv4Addr::UNSPECIFIED.into()),
        "localhost" => Address::Ip(Ipv4Addr::LOCALHOST.into()),
        _ => bare
            .parse()
            .map_or_else(|_| Address::Other(bare.to_owned()), Address::Ip),
    }
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    Some(low.parse().ok()?..=high.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlap(a: &str, b: &str) -> bool {
        let mut binds = Vec::new();
        parse(a, "a", &Place::default(), &mut binds);
        parse(b, "b", &Place::default(), &mut binds);
        binds[0].address.overlaps(&binds[1].address)
            && binds[0]
                .ports
                .clone()
                .any(|port| binds[1].ports.contains(&port))
    }

    #[test]
    fn binds_that_meet() {
        for (a, b) in [
            ("localhost:80", "127.0.0.1:80"),
            ("*:80", "10.0.0.1:80"),
            (":80", "0.0.0.0:80"),
            (":::80", "[::1]:80"),
            ("ipv4@10.0.0.1:80", "10.0.0.1:70-90"),
            ("unix@/run/a.sock", "/run/a.sock"),
            ("web.example.com:80", "web.example.com:80"),
        ] {
            assert!(overlap(a, b), "{a} {b}");
        }
    }

    #[test]
    fn binds_that_do_not() {
        for (a, b) in [
            ("localhost:80", "localhost:81"),
            ("10.0.0.1:80", "10.0.0.2:80"),
            ("*:80", "[::1]:80"),
            ("/run/a.sock", "/run/b.sock"),
        ] {
            assert!(!overlap(a, b), "{a} {b}");
        }
    }
}
