//! The real HAProxy between the two: nothing is lost while nothing happens, a restart is seen, and so is what a reload
//! does to idle connections unless HAProxy is told to wait for their next request.

use std::time::Duration;

use hostkit_tests::load::{ConnectionReuse, FailureKind, LoadGenerator, LoadPlan, LoadReport};
use hostkit_tests::or_skip;
use hostkit_tests::tasks::{TaskLaunch, TaskPlayer, TaskSerial};

use super::front::Front;
use super::{ledger, plan};

const IDLE_CLOSE: &str = "option idle-close-on-response";
/// How often something is done to HAProxy under load.
const TIMES: usize = 4;

/// Three tasks that listen, and a HAProxy in front of them.
fn stage(extra: &[&str]) -> Option<(TaskPlayer, Vec<TaskSerial>, Front)> {
    let tasks = TaskPlayer::start(1, ledger());
    let serials: Vec<_> = (0..3)
        .map(|shard| tasks.launch(TaskLaunch::new("eightball", shard)))
        .collect();
    let lines: Vec<_> = serials
        .iter()
        .map(|&serial| {
            tasks.await_listening(serial);
            format!(
                "server task{serial} {} check inter 200ms",
                tasks.announcement(serial).address
            )
        })
        .collect();
    let front = or_skip("haproxy", Front::start(extra, &lines))?;
    Some((tasks, serials, front))
}

/// What a load through HAProxy comes to while something is done to it.
fn under_load(
    front: &mut Front,
    connections: ConnectionReuse,
    mut disturb: impl FnMut(&mut Front),
) -> LoadReport {
    let load = LoadGenerator::start(LoadPlan {
        clients: 8,
        timeout: Duration::from_secs(10),
        ..plan(front.address(), connections)
    });
    load.await_attempts(100);
    for _ in 0..TIMES {
        disturb(front);
        load.await_attempts(150);
    }
    load.stop()
}

#[test]
fn nothing_is_lost_while_nothing_happens() {
    let Some((tasks, serials, mut front)) = stage(&[]) else {
        return;
    };
    for connections in [ConnectionReuse::Fresh, ConnectionReuse::KeepAlive] {
        let report = under_load(&mut front, connections, |_| {});
        assert!(report.clean(), "{report}");
    }
    for serial in serials {
        assert!(tasks.record(serial).served > 0, "every task has its share");
    }
}

#[test]
fn a_restart_is_seen() {
    let Some((_tasks, _, mut front)) = stage(&[IDLE_CLOSE]) else {
        return;
    };
    for connections in [ConnectionReuse::Fresh, ConnectionReuse::KeepAlive] {
        let report = under_load(&mut front, connections, Front::restart);
        assert!(report.count(FailureKind::Refused) > 0, "{report}");
    }
}

#[test]
fn a_reload_loses_idle_connections_unless_they_are_closed_on_response() {
    let Some((_tasks, _, mut front)) = stage(&[]) else {
        return;
    };
    let report = under_load(&mut front, ConnectionReuse::KeepAlive, |front| {
        front.reload()
    });
    assert!(report.count(FailureKind::EofReused) > 0, "{report}");
    assert_eq!(
        report.count(FailureKind::EofReused),
        report.failed(),
        "{report}"
    );

    let Some((_tasks, _, mut front)) = stage(&[IDLE_CLOSE]) else {
        return;
    };
    for connections in [ConnectionReuse::Fresh, ConnectionReuse::KeepAlive] {
        let report = under_load(&mut front, connections, |front| front.reload());
        assert!(report.clean(), "{report}");
    }
}

#[test]
fn a_backend_without_servers_is_a_status() {
    let Some((tasks, serials, front)) = stage(&[]) else {
        return;
    };
    let load = LoadGenerator::start(plan(front.address(), ConnectionReuse::KeepAlive));
    load.await_attempts(40);
    for &serial in &serials {
        front.runtime(&format!("set server eightball/task{serial} state maint"));
    }
    let before = load.report();
    load.await_attempts(80);
    let report = load.stop();
    assert!(before.clean(), "{before}");
    assert!(report.count(FailureKind::Status(503)) > 0, "{report}");
    assert_eq!(
        report.count(FailureKind::Status(503)),
        report.failed(),
        "{report}"
    );
    drop(tasks);
}
