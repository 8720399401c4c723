//! The harness: servers start, die, come back with or without data, and say what they count.

use hostkit_tests::zookeeper::{Announcer, Task, Zookeeper};
use hostkit_tests::{eventually, or_skip};

#[test]
fn members_vanish_with_their_session_and_data_with_the_disk() {
    for server in [Zookeeper::start(), Zookeeper::start_old()] {
        let Some(mut server) = or_skip("zookeeper", server) else {
            continue;
        };
        let task = Task {
            host: "agent1",
            shard: 0,
            ports: &[("http", 31000)],
        };
        let keeper = Announcer::connect(&server);
        keeper.make("/aurora/www/prod/eightball");
        let nodes = server.counter("zk_znode_count");
        let announcer = Announcer::connect(&server);
        let path = announcer.announce("/aurora/www/prod/eightball", &task);
        assert_eq!(path, "/aurora/www/prod/eightball/member_0000000000");
        assert_eq!(server.counter("zk_znode_count"), nodes + 1);
        drop(announcer);
        eventually("the member is gone", || {
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
