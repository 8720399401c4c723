//! Bytes from libFuzzer for the body `unpack` (`tests/src/fuzz.rs`).
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostkit_fuzz::run("unpack", bytes));
