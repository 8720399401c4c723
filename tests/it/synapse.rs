//! synapse against real servers.

mod keywords;
