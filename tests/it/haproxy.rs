//! What synapse does with a real HAProxy: its sockets, its commands, its reloads.

mod harness;
