//! Bytes from libFuzzer for the body `upstream_response` (`tests/src/fuzz.rs`).
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostkit_fuzz::run("upstream_response", bytes));
