//! Many paths at once, and what they cost the server.

use hostkit_tests::zookeeper::{AnnouncerSession, ServerSetMember, ZookeeperServer};
use hostkit_tests::{or_skip, wait_until};

use super::{Program, announce, options, see, tree};

const JOBS: usize = 1000;
const EACH: u32 = 3;

#[test]
fn a_thousand_jobs_are_read_once_and_a_new_member_costs_one_read() {
    let Some(server) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    let announcer = AnnouncerSession::connect(&server);
    let job = |index: usize| format!("/aurora/role{}/prod/job{index}", index % 10);
    let payload = |shard| {
        let ports = [("http", 31000)];
        ServerSetMember {
            host: "agent1",
            shard,
            ports: &ports,
        }
        .payload()
    };
    let all = (0..JOBS).flat_map(|index| (0..EACH).map(move |shard| (index, shard)));
    announcer.register_all(
        all.map(|(index, shard)| (job(index), "member_".to_owned(), payload(shard)))
            .collect(),
    );
    let program = Program::start(options());
    let follow = program.follow_now(&server, "/aurora/*/prod/*");
    let members = || -> usize {
        let tree = tree(&follow);
        tree.paths.values().map(|node| node.members.len()).sum()
    };
    assert_eq!(members(), JOBS * EACH as usize);
    let stats = program.stats();
    let jobs = JOBS as u64;
    assert_eq!(stats.lists, 1 + 10 + jobs, "the root, the roles, the jobs");
    assert_eq!(
        stats.reads,
        jobs * (1 + u64::from(EACH)),
        "data and members"
    );

    for shard in 10..30 {
        announce(&announcer, &job(7), shard);
    }
    let expected: Vec<u32> = (0..EACH).chain(10..30).collect();
    see(&follow, &job(7), &expected);
    let now = program.stats();
    assert_eq!((now.lists, now.reads), (stats.lists, stats.reads + 20));
    assert_eq!(now.events, 20);

    // After a restart of the server, nothing that cannot have changed is read again; unless it takes so long that the
    // session is given up, which is tried again.
    let mut server = server;
    for _ in 0..5 {
        let before = program.stats();
        server.restart();
        wait_until("all is read again", || {
            let now = program.stats();
            now.disconnects + now.expirations > before.disconnects + before.expirations
                && tree(&follow).problem.is_none()
        });
        let after = program.stats();
        assert_eq!(after.repairs, 0);
        if after.sessions == before.sessions && after.disconnects == before.disconnects + 1 {
            assert_eq!(after.reads, before.reads + jobs, "the data of paths alone");
            return;
        }
    }
    panic!("no session was resumed: {:?}", program.stats());
}

#[test]
fn a_storm_of_changes_ends_in_the_truth() {
    let Some(server) = or_skip("zookeeper", ZookeeperServer::start()) else {
        return;
    };
    let announcer = AnnouncerSession::connect(&server);
    let path = "/aurora/www/prod/storm";
    announce(&announcer, path, 99);
    let program = Program::start(options());
    let follow = program.follow_now(&server, path);
    let task = |shard| {
        let ports = [("http", 31000)];
        ServerSetMember {
            host: "agent1",
            shard,
            ports: &ports,
        }
        .payload()
    };
    for _ in 0..5 {
        let all = (0..200).map(|shard| (path.to_owned(), "member_".to_owned(), task(shard)));
        let made = announcer.register_all(all.collect());
        announcer.remove_all(made);
    }
    announce(&announcer, path, 100);
    see(&follow, path, &[99, 100]);
    let stats = program.stats();
    assert_eq!(stats.events, 2001);
    assert_eq!(stats.repairs, 0);
}
