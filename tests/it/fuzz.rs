//! Every fuzz body over its corpus and over random bytes, on stable, so that past findings stay fixed.

use std::fs;
use std::path::{Path, PathBuf};

use hostkit_tests::fuzz::BODIES;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

/// The files of a body's corpus.
fn inputs(name: &str) -> Vec<Vec<u8>> {
    let files = fs::read_dir(corpus().join(name)).unwrap();
    files
        .map(|file| fs::read(file.unwrap().path()).unwrap())
        .collect()
}

#[test]
fn every_fuzz_body_accepts_its_corpus() {
    for (name, body) in BODIES {
        let inputs = inputs(name);
        assert!(!inputs.is_empty(), "{name} has no corpus");
        inputs.iter().for_each(|bytes| body(bytes));
    }
}

#[test]
fn every_corpus_and_target_has_fuzz_body() {
    let known: Vec<&str> = BODIES.iter().map(|(name, _)| *name).collect();
    let targets = corpus().with_file_name("fuzz_targets");
    for directory in [corpus(), targets] {
        let mut found: Vec<String> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .map(|name| name.trim_end_matches(".rs").to_owned())
            .collect();
        found.sort_unstable();
        assert_eq!(found, known, "{}", directory.display());
    }
}

/// Random bytes, and mutated corpus files, which get further into a parser.
#[test]
fn every_fuzz_body_accepts_any_bytes() {
    for (name, body) in BODIES {
        let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8);
        let broken = (prop::sample::select(inputs(name)), edits).prop_map(|(mut bytes, edits)| {
            for (at, byte) in edits {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            bytes
        });
        let bytes = prop_oneof![broken, any::<Vec<u8>>()];
        let config = Config {
            cases: 512,
            failure_persistence: None,
            ..Config::default()
        };
        TestRunner::new(config)
            .run(&bytes, |bytes| {
                body(&bytes);
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
