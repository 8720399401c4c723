//! Names followed through real DNS packets.

use std::collections::BTreeMap;
use std::time::Duration;

use hostkit_tests::dns::{DnsAnswer, NameServer, RecordData};
use hostkit_tests::wait_until;
use synapse::settings::{Discovery, DnsDiscovery, DnsServer};

use super::Running;

fn server(host: &str, port: Option<u16>) -> DnsServer {
    DnsServer {
        name: None,
        host: host.to_owned(),
        port,
        labels: BTreeMap::from([("from".to_owned(), host.to_owned())]),
    }
}

/// Follows `servers`, as often as their TTL asks for.
fn follow(dns: &NameServer, servers: &[DnsServer]) -> Running {
    follow_every(dns, servers, Duration::from_secs(3600))
}

fn follow_every(dns: &NameServer, servers: &[DnsServer], check_interval: Duration) -> Running {
    Running::start(&Discovery::Dns(DnsDiscovery {
        servers: servers.to_vec(),
        nameserver: Some(dns.address().to_string()),
        check_interval,
    }))
}

/// Waits until `name` was asked for again.
fn asked_again(dns: &NameServer, name: &str) {
    let before = dns.query_count(name);
    wait_until(&format!("{name} is asked for"), || {
        dns.query_count(name) > before
    });
}

const WEB: &str = "web.example.com";
const SRV: &str = "_web._tcp.example.com";

#[test]
fn addresses_become_backends_and_follow_their_ttl() {
    let dns = NameServer::start();
    let both = [
        RecordData::address("10.0.0.2"),
        RecordData::address("10.0.0.1"),
    ];
    dns.records(WEB, 1, &both);
    let running = follow(&dns, &[server(WEB, Some(80))]);
    running.finds("both", &["10.0.0.1:80", "10.0.0.2:80"]);
    assert_eq!(running.now().backends[0].rare.labels["from"], WEB);
    dns.records(WEB, 1, &[RecordData::address("10.0.0.3")]);
    running.finds("the new one", &["10.0.0.3:80"]);
    // A long TTL is believed: only this name is asked again.
    let other = "other.example.com";
    dns.records(other, 3600, &[RecordData::address("10.0.0.4")]);
    let running = follow(&dns, &[server(WEB, Some(80)), server(other, Some(80))]);
    running.finds("both names", &["10.0.0.3:80", "10.0.0.4:80"]);
    asked_again(&dns, WEB);
    asked_again(&dns, WEB);
    assert_eq!(dns.query_count(other), 1);
}

#[test]
fn the_interval_bounds_a_long_ttl() {
    let dns = NameServer::start();
    dns.records(WEB, 3600, &[RecordData::address("10.0.0.1")]);
    let running = follow_every(&dns, &[server(WEB, Some(80))], Duration::from_secs(1));
    running.finds("the address", &["10.0.0.1:80"]);
    dns.records(WEB, 3600, &[RecordData::address("10.0.0.2")]);
    running.finds("the new address", &["10.0.0.2:80"]);
}

#[test]
fn rotated_answers_are_no_news() {
    let dns = NameServer::start();
    let (a, b) = (
        RecordData::address("10.0.0.1"),
        RecordData::address("10.0.0.2"),
    );
    dns.records(WEB, 0, &[a.clone(), b.clone()]);
    let mut running = follow(&dns, &[server(WEB, Some(80))]);
    running.finds("both", &["10.0.0.1:80", "10.0.0.2:80"]);
    running.watch.found.mark_unchanged();
    let synced = running.now().synced;
    dns.records(WEB, 0, &[b, a]);
    wait_until("it was asked again", || running.now().synced > synced);
    assert!(!running.watch.found.has_changed().unwrap());
}

#[test]
fn ipv6_is_used_where_there_is_no_ipv4() {
    let dns = NameServer::start();
    dns.records("six.example.com", 60, &[RecordData::address("2001:db8::1")]);
    let both = [
        RecordData::address("2001:db8::2"),
        RecordData::address("10.0.0.1"),
    ];
    dns.records("both.example.com", 60, &both);
    let servers = ["six.example.com", "both.example.com", "::1", "10.9.9.9"]
        .map(|host| server(host, Some(80)));
    let running = follow(&dns, &servers);
    running.finds(
        "one address of each",
        &["10.0.0.1:80", "10.9.9.9:80", "[2001:db8::1]:80", "[::1]:80"],
    );
}

#[test]
fn srv_records_bring_port_and_weight() {
    let dns = NameServer::start();
    dns.records(
        SRV,
        1,
        &[
            RecordData::srv(10, 31000, "a.example.com"),
            RecordData::srv(20, 31001, "b.example.com"),
            RecordData::srv(0, 31002, "c.example.com"),
        ],
    );
    let running = follow(&dns, &[server(SRV, None)]);
    let endpoints = [
        "a.example.com:31000",
        "b.example.com:31001",
        "c.example.com:31002",
    ];
    running.finds("three", &endpoints);
    let now = running.now();
    let weights: Vec<Option<u16>> = now.backends.iter().map(|backend| backend.weight).collect();
    assert_eq!(weights, [Some(128), Some(256), Some(1)]);

    let worse = RecordData::Srv {
        priority: 2,
        weight: 1,
        port: 9,
        target: vec![b"spare".to_vec()],
    };
    dns.records(SRV, 1, &[RecordData::srv(5, 31000, "a.example.com"), worse]);
    running.finds("the first priority", &["a.example.com:31000"]);
    assert_eq!(running.now().backends[0].weight, None);
    dns.records(SRV, 1, &[RecordData::srv(0, 0, "")]);
    running.finds("no service, decidedly", &[]);
}

#[test]
fn hostile_targets_are_refused_one_by_one() {
    let dns = NameServer::start();
    let target = |port, labels: &[&[u8]]| RecordData::Srv {
        priority: 1,
        weight: 1,
        port,
        target: labels.iter().map(|label| label.to_vec()).collect(),
    };
    dns.records(
        SRV,
        60,
        &[
            target(1, &[b"a\n\tserver evil 10.6.6.6:80", b"com"]),
            target(2, &[b"a b", b"com"]),
            target(3, &[b"\xff\xfe\x00", b"com"]),
            target(4, &[b"a.b", b"com"]),
            target(5, &[b"\"#%$", b"com"]),
            target(0, &[b"port", b"com"]),
            target(80, &[b"good", b"example", b"com"]),
        ],
    );
    let running = follow(&dns, &[server(SRV, None)]);
    running.finds("the good one", &["good.example.com:80"]);
    let now = running.now();
    assert_eq!(now.rejects.len(), 6, "{:?}", now.rejects);
    for reject in &now.rejects {
        assert!(!reject.detail.chars().any(char::is_control), "{reject:?}");
    }
}

#[test]
fn an_answer_too_long_for_a_datagram_is_fetched_over_tcp() {
    let dns = NameServer::start();
    let records: Vec<RecordData> = (0..200)
        .map(|index| RecordData::srv(1, 31000 + index, "task.example.com"))
        .collect();
    dns.records(SRV, 60, &records);
    let running = follow(&dns, &[server(SRV, None)]);
    wait_until("all 200", || running.now().backends.len() == 200);
}

#[test]
fn what_is_not_an_answer_keeps_the_last_good_one() {
    let dns = NameServer::start();
    let good = [RecordData::address("10.0.0.1")];
    dns.records(WEB, 1, &good);
    let running = follow(&dns, &[server(WEB, Some(80))]);
    let faults = [
        (DnsAnswer::Error(3), "no such name (NXDOMAIN)"),
        (DnsAnswer::Error(2), "Server Failure"),
        (DnsAnswer::Error(5), "Refused"),
        (DnsAnswer::Hollow, "without the zone's SOA record"),
        (DnsAnswer::Silence, "no answer about A records"),
    ];
    for (fault, told) in faults {
        running.finds("the address", &["10.0.0.1:80"]);
        dns.answer(WEB, &fault);
        running.suffers(told, &["10.0.0.1:80"]);
        assert!(running.now().trouble.as_deref().unwrap().starts_with(WEB));
        dns.records(WEB, 1, &good);
    }
    running.finds("the address, still", &["10.0.0.1:80"]);
    dns.answer(WEB, &DnsAnswer::Empty(1));
    running.finds("none, on the word of the zone", &[]);
}

#[test]
fn a_server_that_dies_and_comes_back_loses_nothing() {
    let dns = NameServer::start();
    dns.records(WEB, 1, &[RecordData::address("10.0.0.1")]);
    let running = follow(&dns, &[server(WEB, Some(80))]);
    running.finds("the address", &["10.0.0.1:80"]);
    let address = dns.address();
    drop(dns);
    running.suffers(WEB, &["10.0.0.1:80"]);
    let mut back = None;
    wait_until("the port is free again", || {
        back = NameServer::start_at(address).ok();
        back.is_some()
    });
    let dns = back.unwrap();
    dns.records(WEB, 1, &[RecordData::address("10.0.0.2")]);
    running.finds("the new address", &["10.0.0.2:80"]);
}

#[test]
fn a_name_that_is_answered_late_does_not_hold_back_or_lose_the_others() {
    let dns = NameServer::start();
    let slow = "slow.example.com";
    dns.records(WEB, 1, &[RecordData::address("10.0.0.1")]);
    dns.answer(slow, &DnsAnswer::Silence);
    let running = follow(&dns, &[server(WEB, Some(80)), server(slow, Some(80))]);
    asked_again(&dns, WEB);
    asked_again(&dns, WEB);
    running.suffers(slow, &["10.0.0.1:80"]);
    assert!(
        running.now().synced.is_some(),
        "it does not hold back the others"
    );
    dns.records(slow, 1, &[RecordData::address("10.0.0.2")]);
    running.finds("both", &["10.0.0.1:80", "10.0.0.2:80"]);
    dns.hold();
    running.suffers("no answer", &["10.0.0.1:80", "10.0.0.2:80"]);
    dns.release();
    running.finds("both again", &["10.0.0.1:80", "10.0.0.2:80"]);
}
