//! The verbs of authproxy as people and scripts use them.

mod key;
mod manage;
mod serve_acl;

use std::io::Write as _;
use std::process::{Command, Stdio};

use hostkit_tests::{CommandOutcome, bin};
use serde_json::Value;

fn authproxy(args: &[&str]) -> Command {
    let mut command = Command::new(bin("authproxy"));
    command.args(args);
    command
}

/// Runs a command with `stdin`.
#[track_caller]
fn run(mut command: Command, stdin: &str) -> CommandOutcome {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A process that rejects its command line does not read.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap().into()
}

fn check(engine: &[&str], asked: &[&str], key: &str) -> CommandOutcome {
    run(authproxy(&[&["key", "check"], engine, asked].concat()), key)
}

fn parsed(outcome: &CommandOutcome) -> Value {
    serde_json::from_str(&outcome.stdout).unwrap()
}
