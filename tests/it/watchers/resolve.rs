//! Member names resolved in the background, through real DNS packets.

use std::net::{IpAddr, SocketAddr};

use hostkit_tests::dns::{DnsAnswer, NameServer, RecordData};
use hostkit_tests::{or_skip, wait_until};
use synapse::watcher::resolve::{Hosts, Resolution};
use tokio::runtime::Runtime;

use super::runtime;

const SLAVE: &str = "mesos-slave03.example.com";

fn hosts(nameserver: Option<SocketAddr>) -> (Hosts, Runtime) {
    let runtime = runtime();
    let hosts = {
        let _entered = runtime.enter();
        Hosts::new(nameserver)
    };
    (hosts, runtime)
}

fn known(text: &str) -> Resolution {
    Resolution::Known(text.parse().unwrap())
}

#[test]
fn an_address_is_its_own() {
    let (mut hosts, _runtime) = hosts(None);
    assert_eq!(hosts.resolve("10.0.0.1"), known("10.0.0.1"));
    assert_eq!(hosts.resolve("::1"), known("::1"));
    assert!(matches!(hosts.resolve("a b\n"), Resolution::Failed(_)));
}

#[test]
fn a_name_is_pending_and_then_known_and_whoever_waits_is_woken() {
    let dns = NameServer::start();
    dns.records(
        SLAVE,
        60,
        &[
            RecordData::address("10.0.0.3"),
            RecordData::address("2001:db8::3"),
        ],
    );
    dns.hold();
    let (mut hosts, runtime) = hosts(Some(dns.address()));
    let mut changed = hosts.changed();
    assert_eq!(hosts.resolve(SLAVE), Resolution::Pending);
    wait_until("it is asked for", || dns.query_count(SLAVE) > 0);
    assert_eq!(
        hosts.resolve(SLAVE),
        Resolution::Pending,
        "asking does not wait"
    );
    dns.release();
    runtime.block_on(changed.changed()).unwrap();
    assert_eq!(hosts.resolve(SLAVE), known("10.0.0.3"));
    assert_eq!(hosts.resolve(&SLAVE.to_uppercase()), known("10.0.0.3"));
    assert_eq!(dns.query_count(SLAVE), 1);
}

#[test]
fn a_host_with_ipv6_alone_is_known_by_it() {
    let dns = NameServer::start();
    dns.records(SLAVE, 60, &[RecordData::address("2001:db8::3")]);
    let (mut hosts, _runtime) = hosts(Some(dns.address()));
    wait_until("its address", || {
        hosts.resolve(SLAVE) == known("2001:db8::3")
    });
}

#[test]
fn a_failure_is_told_and_asked_again() {
    let dns = NameServer::start();
    let (mut hosts, _runtime) = hosts(Some(dns.address()));
    wait_until("the failure", || match hosts.resolve(SLAVE) {
        Resolution::Failed(why) => why == format!("{SLAVE}: no such name (NXDOMAIN)"),
        _ => false,
    });
    dns.records(SLAVE, 60, &[RecordData::address("10.0.0.3")]);
    wait_until("its address", || hosts.resolve(SLAVE) == known("10.0.0.3"));
}

#[test]
fn a_known_address_outlives_failures_and_follows_changes() {
    let dns = NameServer::start();
    dns.records(SLAVE, 0, &[RecordData::address("10.0.0.3")]);
    let (mut hosts, _runtime) = hosts(Some(dns.address()));
    wait_until("its address", || hosts.resolve(SLAVE) == known("10.0.0.3"));
    dns.answer(SLAVE, &DnsAnswer::Error(2));
    let asked = dns.query_count(SLAVE);
    wait_until("it is asked twice more", || {
        dns.query_count(SLAVE) > asked + 1
    });
    assert_eq!(hosts.resolve(SLAVE), known("10.0.0.3"));
    dns.records(SLAVE, 0, &[RecordData::address("10.0.0.4")]);
    wait_until("the new address", || {
        hosts.resolve(SLAVE) == known("10.0.0.4")
    });
}

#[test]
fn the_hosts_file_counts() {
    // Of localhost, resolvers know by themselves.
    let file = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let mut lines = file.lines().map(str::split_whitespace);
    let named = lines.find_map(|mut words| {
        let address: IpAddr = words.next()?.parse().ok()?;
        let name = words.find(|name| !name.contains("localhost"))?;
        address.is_ipv4().then_some((name, address))
    });
    let named = named.ok_or_else(|| "it names nothing but localhost".to_owned());
    let Some((name, address)) = or_skip("names of /etc/hosts", named) else {
        return;
    };
    let (mut hosts, _runtime) = hosts(None);
    wait_until("its address", || {
        hosts.resolve(name) == Resolution::Known(address)
    });
}

#[test]
fn many_names_are_asked_a_few_at_a_time() {
    let dns = NameServer::start();
    let names: Vec<String> = (0..300)
        .map(|index| format!("host{index}.example.com"))
        .collect();
    for (index, name) in names.iter().enumerate() {
        let address = format!("10.0.{}.{}", index / 250, index % 250 + 1);
        dns.records(name, 60, &[RecordData::address(&address)]);
    }
    dns.hold();
    let (mut hosts, _runtime) = hosts(Some(dns.address()));
    for name in &names {
        hosts.resolve(name);
    }
    // Once the first is asked for the second time, whoever may be asked for at all has been.
    wait_until("one is asked again", || {
        names.iter().any(|name| dns.query_count(name) > 1)
    });
    let asked = names.iter().filter(|name| dns.query_count(name) > 0);
    assert_eq!(asked.count(), 64);
    dns.release();
    wait_until("all are known", || {
        names
            .iter()
            .all(|name| matches!(hosts.resolve(name), Resolution::Known(_)))
    });
}
