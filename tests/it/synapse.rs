//! synapse against real servers.

mod keywords;
mod migration;
mod rig;
mod traffic;
mod verbs;
