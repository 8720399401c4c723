//! Bytes from libFuzzer for the body `request_validation` (`tests/src/fuzz.rs`).
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostkit_fuzz::run("request_validation", bytes));
