//! A 3.4 server, which has no persistent watches and closes the session of whoever asks for one. All that is seen is
//! the same.

use hostkit::zookeeper::{MemberFormat, PathNode};
use hostkit_tests::zookeeper::{AnnouncerSession, ZookeeperServer};
use hostkit_tests::{or_skip, wait_until};

use super::{JOB, Program, announce, ensemble, options, see, shards, tree};

const PATTERN: &str = "/aurora/*/prod/*";

#[test]
fn members_and_jobs_come_and_go() {
    let Some(server) = or_skip("zookeeper 3.4", ZookeeperServer::start_old()) else {
        return;
    };
    let announcer = AnnouncerSession::connect(&server);
    let program = Program::start(options());
    // Nothing exists yet, not even the root.
    let follow = program.follow_now(&server, PATTERN);
    let literal = program.follow_now(&server, JOB);
    assert_eq!(*tree(&literal).paths[JOB], PathNode::default());
    let first = announce(&announcer, JOB, 0);
    for each in [&follow, &literal] {
        see(each, JOB, &[0]);
    }
    announce(&announcer, JOB, 1);
    announce(&announcer, "/aurora/ads/prod/bidder", 5);
    announcer.remove(&first);
    for each in [&follow, &literal] {
        see(each, JOB, &[1]);
    }
    see(&follow, "/aurora/ads/prod/bidder", &[5]);
    announcer.remove("/aurora/ads/prod/bidder/member_0000000000");
    announcer.remove("/aurora/ads/prod/bidder");
    wait_until("the job is forgotten", || {
        !tree(&follow).paths.contains_key("/aurora/ads/prod/bidder")
    });
    announcer.set(JOB, b"data");
    wait_until("the data changes", || {
        &*tree(&follow).paths[JOB].data == b"data"
    });

    let stats = program.stats();
    assert_eq!(
        stats.sessions, 2,
        "one to find out, one for good: {stats:?}"
    );
    let reads = stats.reads;
    announce(&announcer, JOB, 2);
    for each in [&follow, &literal] {
        see(each, JOB, &[1, 2]);
    }
    assert_eq!(
        program.stats().reads,
        reads + 2,
        "one read of the new member each"
    );

    // Followers that leave must not cost the others their session.
    drop(literal);
    announce(&announcer, JOB, 3);
    see(&follow, JOB, &[1, 2, 3]);
    assert_eq!(program.stats().sessions, 2);
}

#[test]
fn nerve_members_change_in_place() {
    let Some(server) = or_skip("zookeeper 3.4", ZookeeperServer::start_old()) else {
        return;
    };
    let announcer = AnnouncerSession::connect(&server);
    let path = "/nerve/services/web/services";
    let register = |child: &str, weight: u32| {
        let payload = format!(r#"{{"host": "h", "port": 1, "weight": {weight}}}"#);
        announcer.make(child);
        announcer.set(child, payload.as_bytes());
    };
    let child = format!("{path}/persistent");
    register(&child, 1);
    let program = Program::start(options());
    let follow = program.follow(&ensemble(&server), path, MemberFormat::Nerve);
    let weight = || {
        let tree = tree(&follow);
        let node = tree.paths.get(path)?;
        let member = node.members.get(&"persistent".into())?.member()?;
        member.nerve.as_ref()?.weight
    };
    for expected in [1, 2, 3] {
        register(&child, expected);
        wait_until("it is read", || weight() == Some(expected));
    }
    announcer.remove(&child);
    wait_until("it is gone", || weight().is_none());
    register(&child, 4);
    wait_until("it is back", || weight() == Some(4));
}

#[test]
fn changes_are_seen_after_a_server_was_killed_and_restarted() {
    let Some(mut server) = or_skip("zookeeper 3.4", ZookeeperServer::start_old()) else {
        return;
    };
    let announcer = AnnouncerSession::connect(&server);
    announce(&announcer, JOB, 0);
    let program = Program::start(options());
    let follow = program.follow_now(&server, PATTERN);
    for _ in 0..3 {
        let before = program.stats().disconnects;
        server.restart();
        wait_until("all is well again", || {
            program.stats().disconnects > before && tree(&follow).problem.is_none()
        });
        let other = AnnouncerSession::connect(&server);
        announce(&other, JOB, 7);
        wait_until("the change is seen", || shards(&follow, JOB).contains(&7));
        drop(other);
        wait_until("it is gone", || !shards(&follow, JOB).contains(&7));
    }
    server.restart_empty();
    wait_until("it is seen as it is", || tree(&follow).paths.is_empty());
    let other = AnnouncerSession::connect(&server);
    announce(&other, JOB, 8);
    see(&follow, JOB, &[8]);
}
