//! The tests that cross tools or need a real server, one module per tool. They are one binary because linking is
//! expensive.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at its first failed assertion"
)]

mod admin;
mod aurora;
mod authproxy;
mod cli;
mod conventions;
mod fuzz;
mod haproxy;
mod harness;
mod load;
mod log_healthcheck;
mod metrics;
mod pexrun;
mod proxy_healthcheck;
mod s3cache;
mod settings;
mod synapse;
mod synapse_render;
mod watchers;
mod zookeeper;
