//! synapse against real servers.

mod keywords;
mod rig;
mod traffic;
