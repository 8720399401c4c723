//! What HAProxy makes of a file and the state of servers of an older one.

use std::collections::BTreeSet;

use synapse::haproxy::server_state::reconcile;
use synapse::membership::Admin;

use super::cases::{Case, eightball, lines, proxy, slots, up};
use super::*;

/// A case whose HAProxy lives in a directory.
fn case_in(
    directory: &Path,
    services: Vec<(synapse::settings::Service, synapse::membership::Roster)>,
) -> Case {
    let mut case = Case::new(services);
    case.haproxy.sockets = vec![directory.join("admin.sock")];
    case.haproxy.server_state_file = directory.join("servers.state");
    let port = hostkit_tests::free_port();
    let frontend = proxy(&mut case, 0);
    frontend.port = Some(Some(port));
    frontend.backend = lines(&["option httpchk GET /health"]);
    // Nobody listens: the first check fails.
    frontend.server_options = Some(cases::line("check inter 50ms fall 1"));
    case
}

#[test]
fn slots_come_up_as_the_file_says_whatever_stood_in_them_before() {
    let Some(program) = or_skip("haproxy", find_program("haproxy")) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let (file, socket) = (directory.join("haproxy.cfg"), directory.join("admin.sock"));
    let mut before = case_in(
        directory,
        vec![eightball(slots(
            8,
            &[(1, up(1)), (2, up(2)), (3, up(3)), (5, up(5))],
        ))],
    );
    let rendered = before.render();
    fs::write(directory.join("servers.state"), "").unwrap();
    save(&rendered, &file);
    let dump = {
        let haproxy = Haproxy::start(&program, &file, &socket);
        let structure = haproxy.ask("show env HOSTKIT_STRUCTURE");
        assert_eq!(
            structure.trim(),
            format!("HOSTKIT_STRUCTURE={}", rendered.structure)
        );
        // Slot 4 is filled at run time, 3 is emptied, 5 gets another weight and 6 drains.
        haproxy.ask(
            "set server eightball/slot4 addr 127.0.0.4 port 31004; set server eightball/slot4 state ready; \
             set server eightball/slot3 state maint; set server eightball/slot5 weight 9; \
             set server eightball/slot6 state drain",
        );
        wait_until("checks have failed", || {
            let down = haproxy.servers();
            [1, 2, 4, 5].iter().all(|slot| {
                let begins = format!("eightball/slot{slot} ");
                down.iter().any(|it| {
                    it.starts_with(&begins) && it.contains(&format!(" {} 0 ", 31_000 + slot))
                })
            })
        });
        haproxy.ask("show servers state")
    };

    // Everybody has moved, but who stands in slot 1 and 4; a service before it shifts the numbers of proxies.
    let mut drained = up(8);
    drained.admin = Admin::Drain;
    before.services[0].1 = slots(
        16,
        &[
            (1, up(1)),
            (2, up(7)),
            (3, up(6)),
            (4, up(4)),
            (6, up(2)),
            (7, drained),
        ],
    );
    let mut first = eightball(slots(8, &[]));
    first.0.name = "another".to_owned();
    before.services.insert(0, first);
    proxy(&mut before, 0).port = None;
    // From now on a check takes longer than this test.
    proxy(&mut before, 1).server_options = Some(cases::line("check inter 1h"));
    let rendered = before.render();
    save(&rendered, &file);
    let ours = BTreeSet::from(["eightball".to_owned(), "another".to_owned()]);
    let state = reconcile(&dump, &[&rendered.text()], &ours);
    fs::write(directory.join("servers.state"), &state).unwrap();
    let haproxy = Haproxy::start(&program, &file, &socket);
    let servers = haproxy.servers();
    let servers: Vec<&str> = servers
        .iter()
        .filter_map(|line| line.strip_prefix("eightball/"))
        .collect();
    let free = |slot: usize| format!("slot{slot} {slot} 127.0.0.1 1 0 5 1");
    let mut expected = vec![
        "slot1 1 127.0.0.1 31001 0 0 1".to_owned(),
        "slot2 2 127.0.0.7 31007 2 0 1".to_owned(),
        "slot3 3 127.0.0.6 31006 2 0 1".to_owned(),
        "slot4 4 127.0.0.4 31004 0 0 1".to_owned(),
        free(5),
        "slot6 6 127.0.0.2 31002 2 0 1".to_owned(),
        "slot7 7 127.0.0.8 31008 2 0 0".to_owned(),
    ];
    expected.extend((8..17).map(free));
    assert_eq!(servers, expected, "{state}");
}

#[test]
fn haproxy_itself_would_mix_the_addresses_of_two_members() {
    let Some(program) = or_skip("haproxy", find_program("haproxy")) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let (file, socket) = (directory.join("haproxy.cfg"), directory.join("admin.sock"));
    let mut case = case_in(directory, vec![eightball(slots(8, &[(1, up(1))]))]);
    fs::write(directory.join("servers.state"), "").unwrap();
    save(&case.render(), &file);
    let dump = Haproxy::start(&program, &file, &socket).ask("show servers state");
    case.services[0].1 = slots(8, &[(1, up(2))]);
    save(&case.render(), &file);
    fs::write(directory.join("servers.state"), dump).unwrap();
    let haproxy = Haproxy::start(&program, &file, &socket);
    let first = haproxy.servers().remove(0);
    assert!(
        first.starts_with("eightball/slot1 1 127.0.0.2 31001 "),
        "no longer: {first}"
    );
}
