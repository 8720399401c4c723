//! `server` has hyper behind the gate.

mod server;

const LIMIT: usize = 1024;
