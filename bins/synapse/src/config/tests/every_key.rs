//! Every key that is declared is read: taking it away changes what is read, or is an error.

use std::collections::BTreeSet;

use serde_json::{Map as Json, Value as JsonValue, json};

use super::*;
use crate::config::keys::SECTIONS;
use crate::config::schema::Origin;

/// A configuration that sets every key at least once, to something that is not its default.
fn everything() -> JsonValue {
    let zookeeper = json!({
        "method": "zookeeper", "path": "/a/b", "hosts": ["zk:1"], "generator_config_path": "/g",
        "decode": {"method": "serverset", "endpoint_name": "http"},
        "label_filters": [{"label": "a", "value": "b", "condition": "not-equals"}],
        "label_filter": {"label": "c", "value": "d", "condition": "equals"},
        "retry_policy": {"max_attempts": 1, "max_delay": 2, "base_interval": 3, "max_interval": 4},
        "discovery_jitter": 5,
    });
    let filtered = json!({
        "method": "base", "label_filters": [{"label": "a", "value": "b", "condition": "equals"}],
        "label_filter": {"label": "c", "value": "d", "condition": "equals"},
    });
    json!({
        "clusters": [{"name": "east", "hosts": ["z:1"], "root": "/r", "chroot": "/c", "digest": "u:p"}],
        "guard": {"members": 1, "services": 2, "at_least": 4, "window": 5, "hold": 6},
        "max_removed_services": 7,
        "service_conf_dir": "more",
        "statsd": {"host": "s", "port": 1, "sample_rate": {"m": 0.5}},
        "file_output": {"output_directory": "/o"},
        "haproxy": {
            "global": ["daemon"], "defaults": ["mode http"], "extra_sections": {"listen s": ["bind :1"]},
            "shared_frontend": ["bind :2"], "bind_address": "10.0.0.1", "do_writes": false, "do_checks": true,
            "do_reloads": false, "do_socket": false, "config_file_path": "/f", "candidate_config_file_path": "/g",
            "check_command": "c", "reload_command": "r", "socket_file_path": "/s", "restart_interval": 3,
            "restart_jitter": 1, "state_file_path": "/st", "state_file_ttl": 9, "server_order_seed": 1,
            "max_server_id": 2, "use_nerve_weights": true, "inject": false, "master_socket": "/m", "pid_file": "/p",
            "binary": "/h", "canary_url": "http://c/", "server_state_file": "/ss",
        },
        "services": {
            "all": {
                "discovery": zookeeper,
                "default_servers": [{"name": "n", "host": "h", "port": 1, "id": 2, "weight": 3, "labels": {"l": "v"},
                    "haproxy_server_options": "backup", "haproxy_server_id": 4}],
                "keep_default_servers": true, "use_previous_backends": false, "backend_port_override": 5,
                "leader_election": true, "load_test_concurrency": 2, "file_output": {"disabled": true},
                "slots": 3, "servers": "named", "probe": "http", "probe_path": "/x", "panic_threshold": 4,
                "canary": {"path": "/c", "weight": 1},
                "haproxy": {"bind_address": "10.0.0.2", "bind_options": "tfo", "server_options": "check",
                    "listen": ["mode http"], "frontend": ["maxconn 1"], "backend": ["balance source"],
                    "shared_frontend": ["acl a always_true"], "backend_order": "asc", "cookie_value_method": "hash"},
            },
            "ported": {
                "discovery": {"method": "base"}, "canary": {"discovery": {"method": "base"}, "weight": 1},
                "haproxy": {"port": 3, "backend_name": "b", "server_port_override": 6, "use_nerve_weights": false},
            },
            "off": {"discovery": {"method": "base"}, "haproxy": {"disabled": true}},
            "pair": {
                "discovery": {"method": "zookeeper", "path": "/p", "cluster": "east", "decode": {"method": "serverset"}},
                "public": {"endpoint_name": "e", "haproxy": {"port": 4}, "slots": 5, "probe": "none"},
                "private": {"probe": "http", "probe_path": "/y"},
            },
            "resolved": {
                "discovery": {"method": "dns", "servers": [{"name": "n", "host": "h", "port": 1, "labels": {"l": "v"}}],
                    "nameserver": "10.0.0.3", "check_interval": 6,
                    "label_filters": [{"label": "a", "value": "b", "condition": "equals"}],
                    "label_filter": {"label": "c", "value": "d", "condition": "equals"}},
            },
            "listed": {"discovery": {"method": "file", "path": "/l", "label_filters": filtered["label_filters"],
                "label_filter": filtered["label_filter"]}},
            "based": {"discovery": filtered},
            "several": {
                "discovery": {"method": "multi", "watchers": {"a": {"method": "base"}},
                    "resolver": {"method": "sequential", "sequential_order": ["a"]},
                    "label_filters": filtered["label_filters"], "label_filter": filtered["label_filter"]},
            },
            "beside": {
                "discovery": {"method": "base"},
                "discovery_multi": {"watchers": {"b": {"method": "base"}}, "resolver": {"method": "union"}},
            },
        },
    })
}

/// What a configuration says, without the places, or the error.
fn said(config: &JsonValue) -> String {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("more")).unwrap();
    let service = "{\"discovery\": {\"method\": \"base\"}}";
    std::fs::write(directory.path().join("more/filed.json"), service).unwrap();
    let file = directory.path().join("synapse.json");
    std::fs::write(&file, serde_json::to_string_pretty(config).unwrap()).unwrap();
    match load(&only(file), false) {
        Err(failure) => format!("error: {failure}"),
        Ok((mut settings, _)) => {
            settings.hash.clear();
            let text = format!("{settings:?}").replace(directory.path().to_str().unwrap(), "");
            // Places change with every line that is taken away.
            let mut kept = String::new();
            for (number, part) in text.split("Place {").enumerate() {
                match part.split_once('}') {
                    Some((_, rest)) if number > 0 => kept.push_str(rest),
                    _ => kept.push_str(part),
                }
            }
            let mut parts = kept.split("synapse.json:");
            let mut bare = parts.next().unwrap().to_owned();
            for part in parts {
                bare.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ':'));
            }
            bare
        }
    }
}

/// Calls `visit` with every way from the root to a key.
fn walk(value: &JsonValue, way: &mut Vec<String>, visit: &mut dyn FnMut(&[String])) {
    let children: Vec<(String, &JsonValue)> = match value {
        JsonValue::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), value))
            .collect(),
        JsonValue::Array(items) => items
            .iter()
            .enumerate()
            .map(|(n, value)| (n.to_string(), value))
            .collect(),
        _ => return,
    };
    for (key, child) in children {
        way.push(key);
        if value.is_object() {
            visit(way);
        }
        walk(child, way, visit);
        way.pop();
    }
}

fn take(value: &mut JsonValue, way: &[String]) {
    let [key, rest @ ..] = way else { return };
    match value {
        JsonValue::Object(map) if rest.is_empty() => {
            map.remove(key);
        }
        JsonValue::Object(map) => take(map.get_mut(key).unwrap(), rest),
        JsonValue::Array(items) => take(&mut items[key.parse::<usize>().unwrap()], rest),
        _ => {}
    }
}

#[test]
fn taking_any_key_away_changes_what_is_read() {
    let config = everything();
    let whole = said(&config);
    assert!(!whole.starts_with("error"), "{whole}");
    let mut ways = Vec::new();
    walk(&config, &mut Vec::new(), &mut |way| ways.push(way.to_vec()));
    let unused = |key: &String| {
        let mut keys = SECTIONS.iter().flat_map(|section| section.keys);
        keys.any(|known| known.name == key && known.origin == Origin::Unused)
    };
    for way in ways {
        let mut less = config.clone();
        take(&mut less, &way);
        assert_eq!(
            said(&less) == whole,
            way.iter().any(unused),
            "taking `{}` away",
            way.join(".")
        );
    }
}

#[test]
fn every_declared_key_is_in_that_configuration() {
    let config = everything();
    let mut seen = BTreeSet::new();
    walk(&config, &mut Vec::new(), &mut |way| {
        seen.insert(way.last().unwrap().clone());
    });
    for key in SECTIONS.iter().flat_map(|section| section.keys) {
        assert!(seen.contains(key.name), "{}", key.name);
    }
}

#[test]
fn a_configuration_without_any_key_is_read_too() {
    assert!(load_text("{}", false).is_ok());
    let services: Json<String, JsonValue> = Json::new();
    assert!(load_text(&json!({"services": services}).to_string(), false).is_ok());
}

#[test]
fn the_reference_names_every_key_once_per_section() {
    let page = reference();
    for section in SECTIONS {
        assert_eq!(page.matches(&format!("### {}\n", section.path)).count(), 1);
        for key in section.keys {
            assert!(
                page.contains(&format!("| `{}` | ", key.name)),
                "{}",
                key.name
            );
        }
    }
    assert!(page.contains(
        "| `slots` | 1 to 4096 | `sized by the members` | Server slots to begin with. *(new)* |"
    ));
    assert!(page.contains("nothing"), "unused keys say so");
    // A table row has four cells.
    for line in page.lines().filter(|line| line.starts_with('|')) {
        assert_eq!(line.replace("\\|", "").matches('|').count(), 5, "{line}");
    }
}
