//! What the doctor finds, healthy and not.

use hostkit_tests::free_port;
use hostkit_tests::haproxy::HaproxyMode;
use synapse::haproxy::doctor::{Check, Health, doctor};

use super::{block_on, started};

fn of<'a>(checks: &'a [Check], name: &str) -> &'a Check {
    checks
        .iter()
        .find(|check| check.name == name)
        .unwrap_or_else(|| panic!("no {name}: {checks:?}"))
}

#[test]
fn a_healthy_haproxy_has_nothing() {
    for mode in [HaproxyMode::Daemon, HaproxyMode::Master] {
        let Some((_haproxy, _, settings)) = started(mode, "") else {
            return;
        };
        let found = block_on(doctor(&settings));
        let bad: Vec<_> = found
            .iter()
            .filter(|check| check.health != Health::Ok)
            .collect();
        assert!(bad.is_empty(), "{bad:?}");
        for name in [
            "stats socket",
            "version",
            "build options",
            "open files",
            "config file",
            "server-state file",
            "reload",
            "leftover workers",
        ] {
            of(&found, name);
        }
    }
}

#[test]
fn every_illness_has_its_name() {
    let Some((haproxy, _, mut settings)) = started(HaproxyMode::Daemon, "") else {
        return;
    };
    let text = std::fs::read_to_string(haproxy.config()).unwrap();
    let low = haproxy.directory().join("low.sock");
    let ill = text.replace(" expose-fd listeners", "").replacen(
        "global\n",
        &format!(
            "global\n    stats socket {} level operator\n",
            low.display()
        ),
        1,
    );
    haproxy.write(&ill);
    haproxy.restart();
    haproxy.write(&ill.replace("maxconn 1000", "maxconn 900000000"));
    std::fs::remove_file(haproxy.pid_file()).unwrap();
    settings.sockets = vec![
        low,
        haproxy.directory().join(format!("none{}", free_port())),
    ];
    settings.server_state_file = "/nowhere/servers.state".into();
    let found = block_on(doctor(&settings));
    let sockets: Vec<_> = found
        .iter()
        .filter(|check| check.name == "stats socket")
        .collect();
    assert!(sockets[0].detail.ends_with("level operator"), "{sockets:?}");
    assert!(sockets[1].detail.contains("no such socket"), "{sockets:?}");
    for (name, health) in [
        ("stats socket", Health::Failed),
        ("listeners", Health::Failed),
        ("open files", Health::Failed),
        ("config file", Health::Ok),
        ("server-state file", Health::Failed),
        ("reload", Health::Warning),
    ] {
        assert_eq!(of(&found, name).health, health, "{found:?}");
    }

    settings.pid_file = None;
    assert_eq!(
        of(&block_on(doctor(&settings)), "reload").health,
        Health::Failed
    );
    settings.reload_command = Some("no-such-program reload".to_owned());
    assert_eq!(
        of(&block_on(doctor(&settings)), "reload").health,
        Health::Failed
    );
    settings.reload_command = Some("true".to_owned());
    assert_eq!(
        of(&block_on(doctor(&settings)), "reload").health,
        Health::Ok
    );
    settings.binary = "/nowhere/haproxy".into();
    assert_eq!(
        of(&block_on(doctor(&settings)), "program").health,
        Health::Failed
    );
}
