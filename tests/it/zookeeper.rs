//! Discovery against real ZooKeeper servers. `follow` is what happens while all is well, `outage` what happens when it
//! is not, `servers` tests the harness.

mod servers;
