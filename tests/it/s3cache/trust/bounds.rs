//! `gc` of root: every user within its bound, and all of them together within the total.

use std::time::Duration;

use hostkit_tests::origin::OriginServer;

use super::{ANN, BOB, HostUsers, bytes, every_file};

#[test]
fn gc_of_root_keeps_bound_of_each_user_and_total() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let origin = OriginServer::start();
    let all = [ANN, BOB, 0];
    for uid in all {
        for n in 0..3 {
            let path = format!("/{uid}-1.{n}");
            origin.put(&path, bytes(1 << 20, u64::from(uid) * 3 + n));
            users.run(uid, &[&origin.url(&path)]).exits(0);
        }
        let earlier = Duration::from_secs(7200);
        hostkit_tests::cache::age_blobs(&users.share(uid, "blobs"), earlier);
    }
    let left = || all.map(|uid| every_file(&users.share(uid, "blobs")).len());
    // `gc` of another user applies only to its own bound.
    let run = |uid: u32, flag: &str| users.run(uid, &["gc", flag]).exits(0);
    run(ANN, "--total-max-size=1");
    assert_eq!(left(), [3, 3, 3]);
    run(BOB, "--max-size=2M");
    assert_eq!(left(), [3, 2, 3]);
    run(0, "--max-size=2M");
    assert_eq!(left(), [2, 2, 2]);
    // Least recently used first, of any owner.
    run(0, "--total-max-size=3M");
    assert_eq!(left(), [0, 1, 2]);
}
