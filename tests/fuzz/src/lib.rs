//! Finds the body of a fuzz target among those of the test kit.

use hostkit_tests::fuzz::BODIES;

/// Runs the body of this name.
///
/// # Panics
/// The body is missing, or one of its assertions fails.
pub fn run(name: &str, bytes: &[u8]) {
    let (_, body) = BODIES
        .iter()
        .find(|(known, _)| *known == name)
        .expect("a body of this name");
    body(bytes);
}
