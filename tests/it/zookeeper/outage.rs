//! A server that is away, slow, or another one.

use std::time::Duration;

use hostkit::zookeeper::{ConnectionState, Ensemble, MemberFormat};
use hostkit_tests::zookeeper::{AnnouncerSession, ZookeeperRelay, ZookeeperServer};
use hostkit_tests::{or_skip, wait_until};

use super::{JOB, Program, announce, ensemble, options, see, shards, tree};

const PATTERN: &str = "/aurora/*/prod/*";

/// The client library does not set a persistent watch again when it reconnects: whoever relies on it sees no change any
/// more after a restart.
#[test]
fn changes_are_seen_after_a_server_was_killed_and_restarted() {
    let Some(mut server) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    let announcer = AnnouncerSession::connect(&server);
    announce(&announcer, JOB, 0);
    let program = Program::start(options());
    let follow = program.follow_now(&server, PATTERN);
    let literal = program.follow_now(&server, JOB);
    for _ in 0..2 {
        let before = program.stats().disconnects;
        server.restart();
        for each in [&follow, &literal] {
            wait_until("all is well again", || {
                program.stats().disconnects > before && tree(each).problem.is_none()
            });
        }
        let other = AnnouncerSession::connect(&server);
        announce(&other, JOB, 7);
        for each in [&follow, &literal] {
            wait_until("the change is seen", || shards(each, JOB).contains(&7));
        }
        drop(other);
        for each in [&follow, &literal] {
            wait_until("it is gone", || !shards(each, JOB).contains(&7));
        }
        assert_eq!(server.watches(), 2, "one for each root");
    }
    assert_eq!(program.stats().repairs, 0);
}

#[test]
fn a_change_during_the_outage_is_found_when_the_server_is_back() {
    let Some(mut server) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    let keeper = AnnouncerSession::connect(&server);
    keeper.make(JOB);
    keeper.make("/aurora/www/prod/removed");
    let program = Program::start(options());
    let follow = program.follow_now(&server, PATTERN);
    assert_eq!(tree(&follow).paths.len(), 2);
    drop(keeper);
    // Nobody listens while these happen: the follower is told to, as a partition would.
    server.pause();
    wait_until("it is noticed", || tree(&follow).problem.is_some());
    server.kill();
    server.restart();
    let announcer = AnnouncerSession::connect(&server);
    announce(&announcer, JOB, 1);
    announcer.remove("/aurora/www/prod/removed");
    announce(&announcer, "/aurora/www/prod/new", 2);
    see(&follow, JOB, &[1]);
    see(&follow, "/aurora/www/prod/new", &[2]);
    assert_eq!(tree(&follow).paths.len(), 2);
    wait_until("nothing is wrong", || tree(&follow).problem.is_none());
}

#[test]
fn members_stay_while_the_server_is_away_for_longer_than_a_session() {
    let Some(mut server) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    let announcer = AnnouncerSession::connect(&server);
    announce(&announcer, JOB, 0);
    announce(&announcer, JOB, 1);
    let program = Program::start(options());
    let follow = program.follow_now(&server, PATTERN);
    let (before, synced) = (shards(&follow, JOB), tree(&follow).synced_at);
    assert_eq!(before, [0, 1]);
    server.kill();
    wait_until("the session is given up", || {
        program.stats().expirations > 0
    });
    let now = tree(&follow);
    assert_eq!(shards(&follow, JOB), before);
    assert_eq!(now.synced_at, synced, "the age of what is known tells");
    assert!(
        now.problem
            .as_ref()
            .is_some_and(|why| why.contains(&server.host())),
        "{:?}",
        now.problem
    );
    assert_eq!(program.stats().state, ConnectionState::Disconnected);
    drop(announcer);

    server.restart();
    let other = AnnouncerSession::connect(&server);
    announce(&other, JOB, 5);
    // The old members remain until the server, which counts from its start, has expired their session.
    wait_until("the new member is seen", || {
        shards(&follow, JOB).contains(&5)
    });
    see(&follow, JOB, &[5]);
    assert!(program.stats().sessions >= 2);
    wait_until("nothing is wrong", || tree(&follow).problem.is_none());
    assert!(tree(&follow).synced_at > synced);
}

#[test]
fn a_member_that_registers_again_while_its_old_session_lives_is_there_twice() {
    let Some(mut server) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    let first = AnnouncerSession::connect(&server);
    announce(&first, JOB, 0);
    let program = Program::start(options());
    let follow = program.follow_now(&server, JOB);
    // The executor loses its session, as it sees it, and registers again in a new one.
    server.restart();
    let second = AnnouncerSession::connect(&server);
    announce(&second, JOB, 0);
    see(&follow, JOB, &[0, 0]);
    let sequences: Vec<Option<u64>> = tree(&follow).paths[JOB]
        .members
        .values()
        .map(|child| child.member().unwrap().sequence)
        .collect();
    assert_eq!(sequences, [Some(0), Some(1)], "the newer one can be told");
    drop(first);
    see(&follow, JOB, &[0]);
}

#[test]
fn an_ensemble_that_comes_back_empty_is_believed_when_all_of_it_was_read() {
    let Some(mut server) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    let announcer = AnnouncerSession::connect(&server);
    announce(&announcer, JOB, 0);
    let program = Program::start(options());
    let follow = program.follow_now(&server, JOB);
    let all = program.follow_now(&server, PATTERN);
    drop(announcer);
    let announcer = AnnouncerSession::connect(&server);
    announce(&announcer, JOB, 1);
    see(&follow, JOB, &[1]);

    server.restart_empty();
    wait_until("it is seen as it is", || {
        !tree(&follow).paths[JOB].exists && tree(&all).paths.is_empty()
    });
    // In another ensemble an old name is another member.
    let other = AnnouncerSession::connect(&server);
    announce(&other, JOB, 8);
    see(&follow, JOB, &[8]);
    see(&all, JOB, &[8]);
}

#[test]
fn a_server_that_does_not_answer_changes_nothing() {
    let Some(server) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    let announcer = AnnouncerSession::connect(&server);
    announce(&announcer, JOB, 0);
    let program = Program::start(options());
    let follow = program.follow_now(&server, JOB);
    server.pause();
    wait_until("it is noticed", || tree(&follow).problem.is_some());
    assert_eq!(shards(&follow, JOB), [0]);
    // Somebody who begins meanwhile is told so, too.
    let late = program.follow(&ensemble(&server), PATTERN, MemberFormat::ServerSet);
    wait_until("it says why", || tree(&late).problem.is_some());
    assert_eq!(tree(&late).synced_at, None);
    server.resume();
    for each in [&follow, &late] {
        see(each, JOB, &[0]);
        wait_until("nothing is wrong", || tree(each).problem.is_none());
    }
}

#[test]
fn a_server_that_is_not_there_yet_is_waited_for() {
    let Some(mut server) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    server.kill();
    let program = Program::start(options());
    let follow = program.follow(&ensemble(&server), JOB, MemberFormat::ServerSet);
    wait_until("it says why", || {
        let tree = tree(&follow);
        tree.problem
            .as_ref()
            .is_some_and(|why| why.contains("cannot reach"))
    });
    server.restart();
    wait_until("all is read", || tree(&follow).synced_at.is_some());
}

#[test]
fn an_audit_that_finds_nothing_changes_nothing() {
    let Some(server) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    let announcer = AnnouncerSession::connect(&server);
    announce(&announcer, JOB, 0);
    let mut options = options();
    options.audit = Duration::from_millis(100);
    let program = Program::start(options);
    let follow = program.follow_now(&server, PATTERN);
    let before = tree(&follow);
    let lists = program.stats().lists;
    wait_until("audits run", || program.stats().lists > lists + 10);
    let after = tree(&follow);
    assert!(after.synced_at > before.synced_at);
    assert!(std::sync::Arc::ptr_eq(
        &before.paths[JOB],
        &after.paths[JOB]
    ));
    // Changes beside audits are changes, not repairs.
    for shard in 1..40 {
        let member = announce(&announcer, JOB, shard);
        see(&follow, JOB, &[0, shard]);
        announcer.remove(&member);
    }
    see(&follow, JOB, &[0]);
    assert_eq!(program.stats().repairs, 0);
}

#[test]
fn an_audit_finds_what_no_event_has_told() {
    let Some(server) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    let announcer = AnnouncerSession::connect(&server);
    let old = announce(&announcer, JOB, 0);
    let relay = ZookeeperRelay::before(&server);
    let mut options = options();
    options.audit = Duration::from_millis(200);
    let program = Program::start(options);
    let ensemble = Ensemble::new([relay.host()], None, None).unwrap();
    let follow = program.follow(&ensemble, PATTERN, MemberFormat::ServerSet);
    see(&follow, JOB, &[0]);
    assert_eq!(program.stats().repairs, 0);
    relay.set_deaf(true);
    announce(&announcer, JOB, 1);
    announcer.remove(&old);
    announce(&announcer, "/aurora/www/prod/ninepin", 2);
    see(&follow, JOB, &[1]);
    see(&follow, "/aurora/www/prod/ninepin", &[2]);
    assert!(relay.dropped() > 0);
    assert!(program.stats().repairs > 0);
}

#[test]
fn an_ensemble_that_was_replaced_is_read_anew_although_all_names_are_the_same() {
    let Some(mut first) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    let Some(second) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    // The same history, down to the numbers of the transactions; only what the member says differs.
    let before = AnnouncerSession::connect(&first);
    let after = AnnouncerSession::connect(&second);
    assert_eq!(announce(&before, JOB, 1), announce(&after, JOB, 2));
    let relay = ZookeeperRelay::before(&first);
    let program = Program::start(options());
    let ensemble = Ensemble::new([relay.host()], None, None).unwrap();
    let follow = program.follow(&ensemble, PATTERN, MemberFormat::ServerSet);
    see(&follow, JOB, &[1]);
    relay.lead_to(&second);
    first.kill();
    see(&follow, JOB, &[2]);
}
