//! Following while the server is well.

use std::sync::Arc;

use hostkit::zookeeper::{
    ConnectionState, Ensemble, MemberError, MemberErrorKind, MemberFormat, MemberPort, PathNode,
};
use hostkit_tests::zookeeper::{AnnouncerSession, ZookeeperServer};
use hostkit_tests::{or_skip, wait_until};

use super::{JOB, Program, announce, ensemble, options, see, shards, tree};

#[test]
fn members_come_and_go() {
    let Some(server) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    let announcer = AnnouncerSession::connect(&server);
    announce(&announcer, JOB, 0);
    let one = announce(&announcer, JOB, 1);
    let program = Program::start(options());
    let follow = program.follow_now(&server, JOB);
    assert_eq!(shards(&follow, JOB), [0, 1]);

    announce(&announcer, JOB, 2);
    see(&follow, JOB, &[0, 1, 2]);
    announcer.remove(&one);
    see(&follow, JOB, &[0, 2]);

    let other = AnnouncerSession::connect(&server);
    announce(&other, JOB, 7);
    see(&follow, JOB, &[0, 2, 7]);
    drop(other);
    see(&follow, JOB, &[0, 2]);

    let node = Arc::clone(&tree(&follow).paths[JOB]);
    let member = node.members[&"member_0000000002".into()].member().unwrap();
    assert_eq!((member.sequence, member.shard), (Some(2), Some(2)));
    assert!(member.is_alive());
    let health = member.endpoint(Some("health")).unwrap();
    assert_eq!(
        (&*health.host, health.port),
        ("agent1.example.com", MemberPort::Number(31502))
    );
    assert_eq!(tree(&follow).problem, None);
    let stats = program.stats();
    assert_eq!(
        (stats.state, stats.sessions),
        (ConnectionState::Connected, 1)
    );
    assert_eq!((stats.repairs, stats.expirations), (0, 0));
}

#[test]
fn a_pattern_finds_new_jobs_and_forgets_removed_ones() {
    let Some(server) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    let announcer = AnnouncerSession::connect(&server);
    announce(&announcer, JOB, 0);
    announcer.make("/aurora/www/test/eightball");
    let program = Program::start(options());
    let follow = program.follow_now(&server, "/aurora/*/prod/*");
    assert_eq!(shards(&follow, JOB), [0]);
    let untouched = Arc::clone(&tree(&follow).paths[JOB]);

    // A job of a known role, one of a new role, and one of another environment.
    announce(&announcer, "/aurora/www/prod/ninepin", 4);
    announce(&announcer, "/aurora/ads/prod/bidder", 5);
    announce(&announcer, "/aurora/www/test/eightball", 6);
    see(&follow, "/aurora/www/prod/ninepin", &[4]);
    see(&follow, "/aurora/ads/prod/bidder", &[5]);
    let now = tree(&follow);
    let paths: Vec<&str> = now.paths.keys().map(|path| &**path).collect();
    assert_eq!(
        paths,
        ["/aurora/ads/prod/bidder", JOB, "/aurora/www/prod/ninepin"]
    );
    assert!(
        Arc::ptr_eq(&untouched, &now.paths[JOB]),
        "what has not changed is the same"
    );

    announcer.remove("/aurora/ads/prod/bidder/member_0000000000");
    announcer.remove("/aurora/ads/prod/bidder");
    wait_until("the job is forgotten", || {
        !tree(&follow).paths.contains_key("/aurora/ads/prod/bidder")
    });
    // The second of its name has the same child name, and is another one.
    announce(&announcer, "/aurora/ads/prod/bidder", 9);
    see(&follow, "/aurora/ads/prod/bidder", &[9]);
    assert_eq!(program.stats().repairs, 0);
}

#[test]
fn a_path_that_does_not_exist_is_waited_for_and_never_made() {
    let Some(server) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    let program = Program::start(options());
    let follow = program.follow_now(&server, JOB);
    assert_eq!(*tree(&follow).paths[JOB], PathNode::default());
    let announcer = AnnouncerSession::connect(&server);
    assert_eq!(server.counter("zk_znode_count"), 5, "only ZooKeeper's own");

    announce(&announcer, JOB, 3);
    see(&follow, JOB, &[3]);
    assert!(tree(&follow).paths[JOB].exists);
    announcer.remove(&format!("{JOB}/member_0000000000"));
    announcer.remove(JOB);
    wait_until("it is gone again", || !tree(&follow).paths[JOB].exists);
    announce(&announcer, JOB, 4);
    see(&follow, JOB, &[4]);
}

#[test]
fn the_data_of_a_path_is_followed_up_to_a_bound() {
    let Some(server) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    let announcer = AnnouncerSession::connect(&server);
    announcer.make(JOB);
    announcer.set(JOB, b"{\"haproxy\": {}}");
    let program = Program::start(options());
    let follow = program.follow_now(&server, JOB);
    let data = || Arc::clone(&tree(&follow).paths[JOB].data);
    assert_eq!(&*data(), b"{\"haproxy\": {}}");
    announcer.set(JOB, b"{}");
    wait_until("the data changes", || &*data() == b"{}");
    announcer.set(JOB, &vec![b'x'; (64 << 10) + 1]);
    wait_until("it is too large", || data().is_empty());
    let trouble = tree(&follow).problem.clone().unwrap();
    assert_eq!(
        trouble,
        format!("{JOB}: its data is too large: 65537 bytes")
    );
    announcer.set(JOB, b"{}");
    wait_until("it is used again", || &*data() == b"{}");
    wait_until("nothing is wrong", || tree(&follow).problem.is_none());
}

#[test]
fn what_cannot_be_read_is_refused_beside_what_can() {
    let Some(server) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    let announcer = AnnouncerSession::connect(&server);
    announce(&announcer, JOB, 0);
    let bad = announcer.register(JOB, "member_", b"\x0c\x00\x01 thrift");
    announcer.register(JOB, "lock-", b"somebody else's");
    let program = Program::start(options());
    let follow = program.follow_now(&server, JOB);
    announcer.register(JOB, "member_", b"");
    announce(&announcer, JOB, 1);
    see(&follow, JOB, &[0, 1]);
    let node = Arc::clone(&tree(&follow).paths[JOB]);
    assert_eq!(node.members.len(), 4, "{node:?}");
    let name = bad.rsplit('/').next().unwrap();
    let expected = MemberError {
        kind: MemberErrorKind::Malformed,
        detail: "not a JSON object".to_owned(),
    };
    assert!(
        matches!(&node.members[&name.into()].value, Err(refusal) if **refusal == expected),
        "{node:?}"
    );
}

#[test]
fn nerve_members_change_in_place_and_carry_payloads_in_names() {
    let Some(server) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    let announcer = AnnouncerSession::connect(&server);
    let path = "/nerve/services/web/services";
    let payload = serde_json::json!({"host": "10.0.0.1", "port": 3000, "weight": 1});
    let child = announcer.announce_nerve(path, "i-1", &payload);
    let program = Program::start(options());
    let follow = program.follow(&ensemble(&server), path, MemberFormat::Nerve);
    let weights = || -> Vec<u32> {
        let tree = tree(&follow);
        let members = tree
            .paths
            .get(path)
            .into_iter()
            .flat_map(|node| node.members.values());
        members
            .filter_map(|child| child.member()?.nerve.as_ref()?.weight)
            .collect()
    };
    wait_until("it is read", || weights() == [1]);
    announcer.set(
        &child,
        br#"{"host": "10.0.0.1", "port": 3000, "weight": 5}"#,
    );
    wait_until("it is read again", || weights() == [5]);

    let reads = program.stats().reads;
    // {"host":"h","port":1,"weight":9}
    let encoded = "eyJob3N0IjoiaCIsInBvcnQiOjEsIndlaWdodCI6OX0=";
    announcer.register(path, &format!("base64_{}_{encoded}_", encoded.len()), b"");
    wait_until("the name is read", || weights().contains(&9));
    assert_eq!(program.stats().reads, reads, "nothing had to be asked for");
}

#[test]
fn a_path_that_may_not_be_read_is_named_and_the_others_go_on() {
    let Some(server) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    let owner = AnnouncerSession::connect_as(&server, Some("aurora:secret"));
    announce(&owner, JOB, 0);
    let private = "/aurora/www/prod/private";
    owner.make_private(private);
    owner.register(private, "member_", b"{\"status\": \"ALIVE\", \"shard\": 8}");

    let program = Program::start(options());
    let follow = program.follow_now(&server, "/aurora/*/prod/*");
    assert_eq!(shards(&follow, JOB), [0]);
    let trouble = tree(&follow).problem.clone().unwrap_or_default();
    assert!(trouble.starts_with(&format!("{private}: ")), "{trouble}");
    assert!(trouble.contains("digest"), "{trouble}");
    announce(&owner, JOB, 1);
    see(&follow, JOB, &[0, 1]);

    let digest = Some("aurora:secret");
    let may = Ensemble::new([server.host()], None, digest).unwrap();
    let allowed = program.follow(&may, "/aurora/*/prod/*", MemberFormat::ServerSet);
    see(&allowed, private, &[8]);
    assert_eq!(tree(&allowed).problem, None);
    assert_eq!(program.sessions.stats().len(), 2, "one session each");
}

#[test]
fn a_member_that_may_not_be_read_is_refused_beside_those_that_can() {
    let Some(server) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    let owner = AnnouncerSession::connect_as(&server, Some("aurora:secret"));
    // More than one request asks for.
    for shard in 0..40 {
        announce(&owner, JOB, shard);
    }
    owner.make_private(&format!("{JOB}/member_private"));
    let program = Program::start(options());
    let follow = program.follow_now(&server, JOB);
    assert_eq!(shards(&follow, JOB), Vec::from_iter(0..40));
    let node = Arc::clone(&tree(&follow).paths[JOB]);
    let private = &node.members[&"member_private".into()].value;
    assert_eq!(
        private.as_ref().unwrap_err().kind,
        MemberErrorKind::Unreadable,
        "{private:?}"
    );
    assert_eq!(program.stats().reads, 42, "the path's data and each member");
}

#[test]
fn paths_are_relative_to_the_chroot() {
    let Some(server) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    let announcer = AnnouncerSession::connect(&server);
    let program = Program::start(options());
    let below = Ensemble::new([server.host()], Some("/site"), None).unwrap();
    // Not even the chroot exists yet.
    let follow = program.follow(&below, "/aurora/*/*/*", MemberFormat::ServerSet);
    wait_until("all is read", || tree(&follow).synced_at.is_some());
    announce(&announcer, &format!("/site{JOB}"), 0);
    announce(&announcer, JOB, 5);
    see(&follow, JOB, &[0]);
    announce(&announcer, &format!("/site{JOB}"), 1);
    see(&follow, JOB, &[0, 1]);
}

#[test]
fn equal_followers_are_one_and_the_last_one_ends_the_session() {
    let Some(server) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    let announcer = AnnouncerSession::connect(&server);
    announce(&announcer, JOB, 0);
    let program = Program::start(options());
    let one = program.follow_now(&server, JOB);
    let asked = (program.stats().reads, program.stats().lists);
    let two = program.follow_now(&server, JOB);
    assert_eq!((program.stats().reads, program.stats().lists), asked);
    drop(one);
    announce(&announcer, JOB, 1);
    see(&two, JOB, &[0, 1]);
    let connections = || server.counter("zk_num_alive_connections");
    let before = connections();
    drop(two);
    wait_until("the session is closed", || connections() < before);
    assert_eq!(program.sessions.stats(), []);
    let again = program.follow_now(&server, JOB);
    see(&again, JOB, &[0, 1]);
}
