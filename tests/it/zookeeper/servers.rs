//! The harness: servers start, die, come back with or without data, and say what they count.

use hostkit_tests::zookeeper::{AnnouncerSession, ServerSetMember, ZookeeperServer};
use hostkit_tests::{or_skip, wait_until};

#[test]
fn members_vanish_with_their_session_and_data_with_the_disk() {
    for server in [ZookeeperServer::start(), ZookeeperServer::start_old()] {
        let Some(mut server) = or_skip("zookeeper", server) else {
            continue;
        };
        let task = ServerSetMember {
            host: "agent1",
            shard: 0,
            ports: &[("http", 31000)],
        };
        let keeper = AnnouncerSession::connect(&server);
        keeper.make("/aurora/www/prod/eightball");
        let nodes = server.counter("zk_znode_count");
        let announcer = AnnouncerSession::connect(&server);
        let path = announcer.announce("/aurora/www/prod/eightball", &task);
        assert_eq!(path, "/aurora/www/prod/eightball/member_0000000000");
        assert_eq!(server.counter("zk_znode_count"), nodes + 1);
        drop(announcer);
        wait_until("the member is gone", || {
            server.counter("zk_znode_count") == nodes
        });
        drop(keeper);

        server.restart();
        assert_eq!(server.counter("zk_znode_count"), nodes);
        server.restart_empty();
        assert!(server.counter("zk_znode_count") < nodes);

        server.pause();
        assert_eq!(server.ask("srvr"), None);
        server.resume();
        assert!(server.packets_received() > 0);
    }
}
