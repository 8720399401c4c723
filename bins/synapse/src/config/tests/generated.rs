//! What a registry may say about how a service is written.

use super::*;
use crate::settings::Servers;

const LOCAL: &str = "
services:
  web:
    discovery: {method: zookeeper, hosts: [zk], path: /nerve/web, generator_config_path: /config/web}
    haproxy: {port: 3000, server_options: check, backend: [balance leastconn]}
  other:
    discovery: {method: base}
    default_servers: [{host: h, port: 1}]
    haproxy: {port: 4000, backend_name: others}
";

fn said(text: &str, lenient: bool) -> Result<Service, String> {
    let (settings, _) = load_text(&format!("{LOCAL}\n{HAPROXY}"), false).unwrap();
    let local = &settings.services[0];
    generated(&settings, local, settings.services.iter(), text, lenient)
        .map(|(service, _)| service)
        .map_err(|failure| failure.to_string())
}

#[test]
fn a_section_replaces_the_whole_section() {
    let service = said(
        r#"{"haproxy": {"port": 3001, "listen": ["option httpchk GET /up"]}}"#,
        false,
    );
    let proxy = service.unwrap().haproxy.unwrap();
    assert_eq!(proxy.port, Some(Some(3001)));
    assert_eq!(proxy.server_options, None);
    assert_eq!(texts(&proxy.backend), ["option httpchk GET /up"]);
}

#[test]
fn other_sections_leave_it_as_it_is() {
    let local = said("{}", false).unwrap();
    assert_eq!(local.haproxy.as_ref().unwrap().port, Some(Some(3000)));
    let other = said(r#"{"nginx": {"port": 1}}"#, false).unwrap();
    assert_eq!(other.haproxy.unwrap().port, Some(Some(3000)));
    let disabled = said(r#"{"haproxy": {"disabled": true}}"#, false).unwrap();
    assert_eq!(disabled.haproxy, None);
}

#[test]
fn cookies_make_servers_named_and_their_absence_slots() {
    let with = |text: &str| said(text, false).unwrap().servers;
    let named = with(r#"{"haproxy": {"port": 3000, "backend": ["cookie s insert"]}}"#);
    assert!(matches!(named, Servers::Named(why) if why.contains("/config/web:1:")));
    assert_eq!(with(r#"{"haproxy": {"port": 3000}}"#), Servers::Slots);
}

#[test]
fn what_is_wrong_is_told_with_the_znode() {
    for (text, expected) in [
        (
            r#"{"haproxy": {"prot": 1}}"#,
            "/config/web:1:14: unknown key `haproxy.prot`",
        ),
        (
            r#"{"haproxy": []}"#,
            "/config/web:1:13: `haproxy` is a list",
        ),
        (
            r#"{"haproxy": {"backend": ["bogus line"]}}"#,
            "/config/web:1:26: ",
        ),
        (
            r#"{"haproxy": {"backend": ["a\u0000b"]}}"#,
            "holds a control character",
        ),
        (
            r#"{"haproxy": {"backend": ["balance leastconn\nfrontend evil"]}}"#,
            "`frontend",
        ),
        (r#"{"haproxy": {"port": 4000}}"#, "both bind port 4000"),
        (
            r#"{"haproxy": {"backend_name": "others"}}"#,
            "a second backend `others`",
        ),
    ] {
        let why = said(text, false).unwrap_err();
        assert!(why.contains(expected), "{text}: {why}");
    }
}

#[test]
fn a_pair_is_not_told_what_is_meant_for_one() {
    let text = "  web:\n    discovery: {method: zookeeper, hosts: [zk], path: /a/b, decode: {method: serverset}}\n    public: {endpoint_name: http, haproxy: {port: 1}}\n    private: {endpoint_name: private, haproxy: {port: 2}}\n";
    for service in services(text) {
        let crate::settings::Discovery::Zookeeper(zookeeper) = &service.discovery else {
            panic!("{service:?}");
        };
        assert_eq!(zookeeper.generator_config_path, None, "{}", service.name);
    }
}
