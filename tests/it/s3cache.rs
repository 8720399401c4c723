//! Tests of s3cache: the real binary against real servers. This file has what they share: a [`CacheHost`] with a cache
//! and a sandbox of its own.

use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use assert_fs::TempDir;
use assert_fs::fixture::ChildPath;
use assert_fs::prelude::*;
use hostkit_tests::{ChildGuard, CommandOutcome};
use sha2::Digest as _;

mod access;
mod archives;
mod bounds;
mod directory;
mod download;
mod fetch;
mod files;
mod freshness;
mod https;
mod in_use;
mod integrity;
mod kills;
mod netrc;
mod proxy;
mod publish;
mod replies;
mod s3;
mod seeds;
mod sidecar;
mod single_flight;
mod trust;
mod upgrade;
mod usage;
mod verbs;

/// A name that holds a git hash, so that it never changes.
const HASH: &str = "0123456789abcdef0123456789abcdef01234567";

/// A host: a cache directory, and a sandbox that is the working directory and home of runs.
#[derive(Debug)]
struct CacheHost {
    directory: TempDir,
}

impl CacheHost {
    /// A host with an empty cache.
    fn new() -> Self {
        // Built here and not at the first run, which a test may be timing.
        let _built = hostkit_tests::bin("s3cache");
        let directory = TempDir::new().unwrap();
        directory.child("sandbox").create_dir_all().unwrap();
        // Other users must be able to reach the cache in the tests of trust.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), mode).unwrap();
        Self { directory }
    }

    /// The cache directory, which the first run creates.
    fn cache(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    /// The working directory and home.
    fn sandbox(&self) -> PathBuf {
        self.directory.path().join("sandbox")
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.sandbox().join(name)
    }

    /// A file or directory of the sandbox, to create or to assert.
    fn file(&self, name: impl AsRef<Path>) -> ChildPath {
        ChildPath::new(self.path(name))
    }

    #[track_caller]
    fn read(&self, name: impl AsRef<Path>) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// A program in the sandbox with a clean environment: no proxies, no credentials, no instance metadata.
    fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        self.set_clean_environment(&mut command);
        command
    }

    /// Gives a command this host's environment and working directory.
    fn set_clean_environment(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.sandbox())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .current_dir(self.sandbox())
            .stdin(Stdio::null());
    }

    /// The binary with these arguments and this host's cache, not yet started.
    fn command<I>(&self, args: I) -> Command
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let mut command = self.program(hostkit_tests::bin("s3cache"));
        command.args(args).args(self.own_flags());
        command
    }

    /// The flags of every run here.
    fn own_flags(&self) -> [String; 2] {
        [
            format!("--cache-dir={}", self.cache().display()),
            "--keep-free=0".to_owned(),
        ]
    }

    /// Runs the binary to its end.
    fn s3cache<I>(&self, args: I) -> CommandOutcome
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.command(args).output().unwrap().into()
    }

    /// The same with these variables.
    fn s3cache_env<I>(&self, args: I, env: &[(String, String)]) -> CommandOutcome
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let variables = env.iter().map(|(name, value)| (name, value));
        self.command(args).envs(variables).output().unwrap().into()
    }

    /// Moves the last use of all blobs two hours into the past: recently used ones are protected.
    fn age_blobs(&self) {
        let blobs = format!("{}/blobs", nix::unistd::geteuid());
        hostkit_tests::cache::age_blobs(&self.cache().join(blobs), Duration::from_secs(7200));
    }

    /// The same for unpacked pexes.
    fn age_unpacked(&self) {
        let root = format!("{}/pex-root", nix::unistd::geteuid());
        hostkit_tests::cache::age_unpacked(&self.cache().join(root), Duration::from_secs(7200));
    }

    /// Starts the binary; its output goes to `/dev/null`.
    fn start<I>(&self, args: I) -> ChildGuard
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let mut command = self.command(args);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        ChildGuard(command.spawn().unwrap())
    }
}

/// `length` bytes without repetition, another sequence for each `seed`.
fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

/// SHA-256 in hex.
fn sha256(bytes: &[u8]) -> String {
    hostkit::hex::encode(&sha2::Sha256::digest(bytes))
}

/// A number from a seed (splitmix64), so that random choices are reproducible.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Every regular file below a directory.
pub(crate) fn every_file(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(every_file(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// A server that answers each request with the result of a function of its head, and closes: for responses that real
/// servers cannot be made to give.
pub(crate) struct FakeServer {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl FakeServer {
    /// Answers until the process ends.
    pub(crate) fn start(answer: impl Fn(&str) -> String + Send + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let log = heads.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    match stream.read(&mut byte) {
                        Ok(1) => head.push(byte[0]),
                        _ => break,
                    }
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                // The client may disconnect.
                let _ = stream.write_all(answer(&head).as_bytes());
                log.lock().unwrap().push(head);
            }
        });
        Self { port, heads }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The heads of the requests so far.
    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

/// A response of [`FakeServer`]; `headers` holds whole lines.
pub(crate) fn answer(status: &str, headers: &[&str], body: &str) -> String {
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}
