//! Bytes from libFuzzer for the body `zookeeper_member` (`tests/src/fuzz.rs`).
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostkit_fuzz::run("zookeeper_member", bytes));
