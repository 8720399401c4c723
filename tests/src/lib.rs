//! The test kit: real servers on loopback and shared helpers.
//!
//! Owns starting servers, injecting faults and stopping. Assertions about the tools are in `it/`.
#![allow(
    missing_docs,
    reason = "only the tests of this workspace use it: a doc line stands where name and type do not suffice"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a kit that cannot start a server must fail the test"
)]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hostkit::dir::{Dir, Durability};

pub mod authproxy;
pub mod cache;
pub mod dns;
pub mod eightball;
pub mod fuzz;
pub mod haproxy;
pub mod host;
pub mod load;
pub mod memcached;
pub mod misbehavior;
pub mod nginx;
pub mod origin;
mod outcome;
pub mod permissions;
pub mod s3;
pub mod tasks;
mod tcp_server;
pub mod thermos;
pub mod tls;
pub mod upstream;
pub mod web;
pub mod zookeeper;

pub use outcome::CommandOutcome;

/// The tools that [`bin`] builds.
pub const TOOLS: &[&str] = &[
    "s3cache",
    "pexrun",
    "proxy-healthcheck",
    "synapse",
    "log-healthcheck",
    "authproxy",
];

/// How often a condition is checked.
const POLL: Duration = Duration::from_millis(10);

/// The path of a built tool of [`TOOLS`]. The first call builds all of them, in the profile and target directory of the
/// running program.
#[must_use]
pub fn bin(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    assert!(TOOLS.contains(&name), "`{name}` is not one of {TOOLS:?}");
    let path = DIRECTORY.get_or_init(build_tools).join(name);
    assert!(path.is_file(), "{} was not built", path.display());
    path
}

/// Builds the workspace's binaries and returns their directory. All members are selected although only the tools are
/// needed: a smaller selection enables fewer features of shared crates, and would build the AWS SDK a second time
/// beside `cargo test --workspace`.
fn build_tools() -> PathBuf {
    let directory = profile_directory();
    let target = directory
        .parent()
        .expect("a profile lives in a target directory");
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(other) => other,
        None => panic!("{} names no profile", directory.display()),
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build
        .args(["build", "--quiet", "--workspace", "--bins", "--locked"])
        .args(["--profile", profile, "--target-dir"])
        .arg(target)
        .current_dir(workspace());
    // Cargo's variables of this package would rerun build scripts (ring's), now and again in the next build outside.
    for (name, _) in std::env::vars_os() {
        let own = [
            "CARGO_PKG_",
            "CARGO_MANIFEST_",
            "CARGO_BIN_",
            "CARGO_CRATE_",
        ];
        if name
            .to_str()
            .is_some_and(|name| own.iter().any(|start| name.starts_with(start)))
        {
            build.env_remove(name);
        }
    }
    let status = build.status().expect("cargo starts");
    assert!(status.success(), "cargo build --bins failed: {status}");
    directory
}

/// The path of `s3cache`, `pexrun` or `authproxy` of the earlier release that shares caches with this one.
///
/// # Errors
/// `tests/run` did not build it.
pub fn old_bin(name: &str) -> Result<PathBuf, String> {
    let path = tools().join("old").join(name);
    if path.is_file() {
        return Ok(path);
    }
    Err(format!(
        "{} is not there: tests/run builds it",
        path.display()
    ))
}

fn profile_directory() -> PathBuf {
    let program = std::env::current_exe().expect("the running program has a path");
    let directory = program.parent().expect("a program lives in a directory");
    if directory.ends_with("deps") {
        return directory
            .parent()
            .expect("deps lives in a profile directory")
            .to_owned();
    }
    directory.to_owned()
}

#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lives in the workspace")
}

/// The longest time a test waits for a condition (`HOSTKIT_TEST_PATIENCE` in seconds; 30).
#[must_use]
pub fn wait_limit() -> Duration {
    let seconds = std::env::var("HOSTKIT_TEST_PATIENCE").ok();
    Duration::from_secs(seconds.and_then(|text| text.parse().ok()).unwrap_or(30))
}

/// Whether the long variants run (`HOSTKIT_TEST_LONG=1`).
#[must_use]
pub fn is_long_run() -> bool {
    std::env::var("HOSTKIT_TEST_LONG").is_ok_and(|value| value == "1")
}

/// Waits until `condition` holds.
///
/// # Panics
/// It does not hold within [`wait_limit`]; the message has `what`.
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    let longest = wait_limit();
    assert!(
        wait_within(longest, condition),
        "waited {longest:.1?} in vain: {what}"
    );
}

/// Waits until `condition` holds or the time is over, and returns whether it held. For conditions that take longer than
/// [`wait_limit`].
pub fn wait_within(longest: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() >= longest {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

/// Reports that a class of tests cannot run on this host.
///
/// # Panics
/// `HOSTKIT_REQUIRE_SYSTEM` is 1: a skip counts as a failure.
pub fn skip(what: &str, why: &str) {
    println!("SKIP {what}: {why}");
    let required = std::env::var("HOSTKIT_REQUIRE_SYSTEM").is_ok_and(|value| value == "1");
    assert!(!required, "{what} is required here, but: {why}");
}

/// The resource, or `None` after a [`skip`] with the reason.
pub fn or_skip<T>(what: &str, found: Result<T, String>) -> Option<T> {
    found.map_err(|why| skip(what, &why)).ok()
}

/// Whether a program is installed, including in directories for system programs outside `PATH`.
#[must_use]
pub fn is_installed(program: &str) -> bool {
    find_program(program).is_ok()
}

/// The path of an installed program.
///
/// # Errors
/// It is not in `PATH`, in the directories of system programs, or among the tools that `tests/run` installs.
pub fn find_program(program: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into(), tools().join("bin")])
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| format!("{program} is not installed"))
}

/// The directory of what `tests/run` installs beside Debian's packages, and of expensive fixtures kept between runs.
pub(crate) fn tools() -> PathBuf {
    profile_directory()
        .parent()
        .expect("a target directory")
        .join("tools")
}

/// Replaces a file by one with these bytes; a reader sees either all of the old one or all of the new one.
pub fn replace_file(path: &Path, bytes: &[u8]) {
    let name = path.file_name().and_then(OsStr::to_str).unwrap();
    let directory = Dir::open(path.parent().unwrap()).unwrap();
    let written = directory.write_atomic(name, bytes, 0o644, Durability::Process);
    written.unwrap();
}

/// A port of 127.0.0.1 that was free a moment ago.
#[must_use]
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("a bound port").port()
}

/// A child process, killed on drop.
#[derive(Debug)]
pub struct ChildGuard(pub Child);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        // One that has exited already cannot be killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
