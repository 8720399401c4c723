//! Tests of pexrun: the real binary against real servers. This file has what they share: a [`PexrunHost`] with a
//! repository, a cache and a home of its own, and small programs to publish.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use assert_fs::TempDir;
use assert_fs::prelude::*;
use hostkit_tests::CommandOutcome;
use hostkit_tests::s3::S3Server;

mod config;
mod find;
mod launch;
mod list;
mod long_list;
mod offline;
mod pex;
mod prune;
mod run;
mod settings;
mod unlistable;

/// The architecture of the builds here.
const ARCH: &str = "here_x86_64";
/// Git hashes; the first two have a common prefix.
const HASH: &str = "60a43ef1b9c0d2e4f6a8091b2c3d4e5f60718293";
const ALIKE: &str = "60a43ef9999999999999999999999999999999aa";
const OTHER: &str = "f00dfeed00000000000000000000000000000000";

/// A host: a repository in a directory, a shared cache, and a home that is the working directory of runs.
#[derive(Debug)]
struct PexrunHost {
    directory: TempDir,
}

impl PexrunHost {
    /// A host whose user configured the repository and the cache, which is empty.
    fn new() -> Self {
        let host = Self::bare();
        host.configure(&format!("repository: {}\n", host.repository()));
        host
    }

    /// A host without any configuration.
    fn bare() -> Self {
        let host = Self {
            directory: TempDir::new().unwrap(),
        };
        for name in ["home", "repo"] {
            host.directory.child(name).create_dir_all().unwrap();
        }
        // Other users must be able to reach the cache in the tests of trust.
        open_to_all(host.directory.path());
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn home(&self) -> PathBuf {
        self.path("home")
    }

    /// The cache directory, which the first run creates.
    fn cache(&self) -> PathBuf {
        self.path("cache")
    }

    /// The caller's part of the cache.
    fn share(&self) -> PathBuf {
        self.cache().join(nix::unistd::geteuid().to_string())
    }

    fn pex_root(&self) -> PathBuf {
        self.share().join("pex-root")
    }

    fn repository(&self) -> String {
        format!("file://{}", self.path("repo").display())
    }

    /// Writes the user's configuration: this text, the arch and the cache.
    fn configure(&self, yaml: &str) {
        let cache = self.cache();
        let common = format!("arch: {ARCH}\ncache-dir: {}\n", cache.display());
        let file = self.directory.child("home/.config/hostkit/pexrun.yaml");
        file.write_str(&format!("{common}{yaml}")).unwrap();
    }

    /// Configures repositories in this order.
    fn repositories(&self, urls: &[&str]) {
        self.configure(&format!("repository: [{}]\n", urls.join(", ")));
    }

    /// Publishes a file in the repository.
    fn publish(&self, name: &str, data: impl AsRef<[u8]>) -> PathBuf {
        let file = self.directory.child("repo").child(name);
        file.write_binary(data.as_ref()).unwrap();
        file.to_path_buf()
    }

    /// The binary with these arguments and a clean environment, not yet started.
    fn command<I>(&self, args: I) -> Command
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let mut command = self.program(hostkit_tests::bin("pexrun"));
        command.args(args);
        command
    }

    /// A program with the same clean environment.
    fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .current_dir(self.home())
            .stdin(Stdio::null());
        command
    }

    /// Runs the binary to its end.
    fn pexrun<I>(&self, args: I) -> CommandOutcome
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.command(args).output().unwrap().into()
    }

    /// Runs `s3cache` on the same cache.
    fn s3cache(&self, args: &[&str]) -> CommandOutcome {
        let mut command = self.program(hostkit_tests::bin("s3cache"));
        command.args(args).arg("--cache-dir").arg(self.cache());
        command.output().unwrap().into()
    }

    /// Moves the last use of all blobs two hours into the past: recently used ones are protected.
    fn age_blobs(&self) {
        let earlier = std::time::Duration::from_secs(7200);
        hostkit_tests::cache::age_blobs(&self.share().join("blobs"), earlier);
    }

    /// The same for unpacked pexes.
    fn age_unpacked(&self) {
        let earlier = std::time::Duration::from_secs(7200);
        hostkit_tests::cache::age_unpacked(&self.pex_root(), earlier);
    }

    /// Uploads a file to an S3 server.
    fn upload(&self, s3: &S3Server, name: &str, data: &[u8], to: &str) {
        let file = self.directory.child(name);
        file.write_binary(data).unwrap();
        let mut command = self.program(hostkit_tests::bin("s3cache"));
        command.arg("put").arg(file.path()).arg(to).envs(s3.env());
        CommandOutcome::from(command.output().unwrap()).exits(0);
    }
}

fn pex(job: &str, version: &str) -> String {
    format!("{job}-{version}-{ARCH}.pex")
}

/// A zipapp whose interpreter is the shell: runs `script`.
pub(crate) fn program(script: &str) -> Vec<u8> {
    zip_behind(script, b"a")
}

/// The same, recognisable as a pex by its contents.
fn pex_program(script: &str) -> Vec<u8> {
    zip_behind(script, b"PEX-INFO")
}

fn zip_behind(script: &str, entry: &[u8]) -> Vec<u8> {
    let mut bytes = format!("#!/bin/sh\n{script}\nexit\n").into_bytes();
    bytes.extend(zip(entry));
    bytes
}

/// The smallest zip with an (empty) file in it.
fn zip(entry: &[u8]) -> Vec<u8> {
    zip_of([entry])
}

/// A zip of empty files.
fn zip_of<T: AsRef<[u8]>>(entries: impl IntoIterator<Item = T>) -> Vec<u8> {
    let (mut bytes, mut central, mut count) = (Vec::new(), Vec::new(), 0_u16);
    for entry in entries {
        let (entry, at) = (entry.as_ref(), bytes.len() as u32);
        let length = u8::try_from(entry.len()).unwrap();
        bytes.extend(b"PK\x03\x04\x0a\0");
        bytes.extend([0; 20]);
        bytes.extend([length, 0, 0, 0]);
        bytes.extend(entry);
        central.extend(b"PK\x01\x02\x0a\0\x0a\0");
        central.extend([0; 20]);
        central.extend([length, 0]);
        central.extend([0; 12]);
        central.extend(at.to_le_bytes());
        central.extend(entry);
        count += 1;
    }
    let (at, size) = (bytes.len() as u32, central.len() as u32);
    bytes.extend(central);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    bytes.extend([size.to_le_bytes(), at.to_le_bytes()].concat());
    bytes.extend([0; 2]);
    bytes
}

fn open_to_all(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A copy of the binary that every user may run, in a directory of its own.
fn for_everybody() -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    open_to_all(directory.path());
    let copy = directory.path().join("pexrun");
    std::fs::copy(hostkit_tests::bin("pexrun"), &copy).unwrap();
    open_to_all(&copy);
    (directory, copy)
}

/// The URL of a port of this host without a listener.
fn unreachable_url() -> String {
    format!("http://127.0.0.1:{}/pex", hostkit_tests::free_port())
}
