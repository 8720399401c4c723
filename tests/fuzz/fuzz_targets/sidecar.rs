//! Bytes from libFuzzer for the body `sidecar` (`tests/src/fuzz.rs`).
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostkit_fuzz::run("sidecar", bytes));
