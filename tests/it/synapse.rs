//! synapse against real servers.

mod config;
mod crash;
mod fleet;
mod guard;
mod haproxy_trouble;
mod keywords;
mod migration;
mod rig;
mod services;
mod traffic;
mod verbs;
mod zookeeper_trouble;
