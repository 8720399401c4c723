//! Starts the program: its command line, `PEX_ROOT`, the lease that is inherited through exec, and errors of exec.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hostkit::dir::Dir;
use hostkit::{Exit, Failure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::AccessFlags;
use s3cache::CachedBlob;
use tracing::{debug, info, warn};

use crate::config::{Config, PexRoot};

/// How long a build may stay open for writing (ETXTBSY).
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const BUSY_POLL_INTERVAL: Duration = Duration::from_millis(2);
/// The path of execvp(3) when `PATH` is unset.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// A command that is ready to run, and the leases that it needs.
#[derive(Debug)]
pub(crate) struct ProgramLaunch {
    pub command: Command,
    path: PathBuf,
    leases: Vec<File>,
}

impl ProgramLaunch {
    #[must_use]
    pub(crate) fn new(config: &Config, blob: CachedBlob, args: &[OsString]) -> Self {
        let path = blob.path.clone();
        let jar =
            path.extension().is_some_and(|extension| extension == "jar") && !is_elf(&blob.file);
        let mut leases = Vec::new();
        let command = if jar {
            let mut command = Command::new(&config.java);
            command.args(&config.java_flags).arg("-jar").arg(&path);
            command.args(args);
            command
        } else {
            let mut command = Command::new(&path);
            command.args(args);
            if let Some((root, held)) = pex_root(config, &blob) {
                command.env("PEX_ROOT", root);
                leases.extend(held);
            }
            command
        };
        leases.push(blob.file);
        Self {
            command,
            path,
            leases,
        }
    }

    /// The command line, quoted for a shell.
    #[must_use]
    pub(crate) fn command_line(&self) -> String {
        let words = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        let env = self.command.get_envs().filter_map(|(name, value)| {
            Some(format!(
                "{}={} ",
                name.to_string_lossy(),
                quoted(&value?.to_string_lossy())
            ))
        });
        let words: Vec<String> = words.map(|word| quoted(&word.to_string_lossy())).collect();
        format!("{}{}", env.collect::<String>(), words.join(" "))
    }

    /// Replaces this process by the program, with the same pid, signals, terminal and exit code.
    ///
    /// # Errors
    /// It cannot be executed (exit 126); on success this does not return.
    pub(crate) fn exec(mut self) -> Result<Exit, Failure> {
        for lease in &self.leases {
            // Inherited, so that the artifact is not evicted while the program runs.
            if let Err(error) = fcntl(lease.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())) {
                warn!(%error, "cannot pass the lease on to the program");
            }
        }
        let program = PathBuf::from(self.command.get_program());
        let mut waited = Duration::ZERO;
        let error = loop {
            let error = self.command.exec();
            // Another process has it open for writing, such as a child between fork and exec that inherited the
            // descriptor.
            if error.kind() != io::ErrorKind::ExecutableFileBusy || waited >= BUSY_TIMEOUT {
                break error;
            }
            if waited.is_zero() {
                info!(path = %self.path.display(), "build is open for writing; waiting");
            }
            std::thread::sleep(BUSY_POLL_INTERVAL);
            waited += BUSY_POLL_INTERVAL;
        };
        Err(explain(&program, &self.path, error))
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+{}".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

fn is_elf(file: &File) -> bool {
    use std::os::unix::fs::FileExt as _;
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).is_ok() && magic == *b"\x7fELF"
}

/// The `PEX_ROOT` that outlives the sandbox, with the locks that keep gc away. Only a directory that is the caller's
/// alone, because its content is executed.
fn pex_root(config: &Config, blob: &CachedBlob) -> Option<(PathBuf, [File; 2])> {
    if config.pex_root == PexRoot::Keep || !blob.is_pex() {
        return None;
    }
    let me = nix::unistd::geteuid().as_raw();
    let path = config
        .settings
        .cache_dir
        .join(me.to_string())
        .join("pex-root");
    // A program that pexrun runs may run another one, which needs a lease of its own.
    if hostkit::env::var_os("PEX_ROOT").is_some_and(|given| given != *path) {
        return None;
    }
    let dir = match Dir::open(&path) {
        Ok(dir) => dir,
        Err(error) => {
            debug!(%error, path = %path.display(), "cannot open the pex root");
            return None;
        }
    };
    let found = dir.metadata().ok()?;
    if found.st_uid != me || found.st_mode & 0o077 != 0 {
        warn!(
            path = %path.display(),
            "PEX_ROOT not set: other users can access the directory"
        );
        return None;
    }
    match s3cache::lease_unpacked_pex(&dir, &blob.entry.sha256, &blob.file) {
        Ok(leases) => Some((path, leases)),
        Err(error) => {
            warn!(%error, path = %path.display(), "PEX_ROOT not set: cannot take a lease");
            None
        }
    }
}

/// Unpacks a pex by starting its interpreter with nothing to do. Other builds have nothing to unpack.
///
/// # Errors
/// It cannot be executed (exit 126), or its interpreter failed (exit 125).
pub(crate) fn warm(config: &Config, blob: CachedBlob) -> Result<Exit, Failure> {
    let path = blob.path.clone();
    if !blob.is_pex() {
        debug!(path = %path.display(), "the build is not a pex; nothing to unpack");
        return Ok(Exit::OK);
    }
    check(&path)?;
    let mut launch = ProgramLaunch::new(config, blob, &["-c".into(), "".into()]);
    match launch.command.env("PEX_INTERPRETER", "1").status() {
        Ok(status) if status.success() => Ok(Exit::OK),
        Ok(status) => Err(Failure::new(
            Exit::LAUNCHER_FAILED,
            format!("cannot unpack {}: {status}", path.display()),
        )
        .remedy("run it once to see the cause")),
        Err(error) => Err(explain(&path, &path, error)),
    }
}

/// Finds the cause of a failed exec(2), whose error code is ambiguous.
fn explain(program: &Path, build: &Path, error: io::Error) -> Failure {
    let failure =
        |message: String, remedy: &str| Failure::new(Exit::NOT_EXECUTABLE, message).remedy(remedy);
    if program != build && error.kind() == io::ErrorKind::NotFound {
        let program = program.display();
        return failure(
            format!("{program} is not installed"),
            "install it, or name another with `java:` in pexrun.yaml",
        );
    }
    if let Some(interpreter) = missing_interpreter(build) {
        let message = format!(
            "{} needs {interpreter}, which does not exist",
            build.display()
        );
        return failure(
            message,
            "install it, or run a build for this host's interpreter",
        );
    }
    let noexec = statvfs(build).is_ok_and(|found| found.flags().contains(FsFlags::ST_NOEXEC));
    if noexec {
        return failure(
            format!("{} is on a filesystem mounted noexec", build.display()),
            "remount it with exec, or name another cache with --cache-dir",
        );
    }
    let found = build.metadata();
    let is_gone = found
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    let executable = found.is_ok_and(|found| found.mode() & 0o111 != 0);
    let remedy = if is_gone {
        "try again: it was removed meanwhile"
    } else if executable && error.kind() == io::ErrorKind::NotFound {
        "run a build for this host's distribution: its loader or interpreter is missing"
    } else if executable {
        "check that it is a program for this machine"
    } else {
        "check its mode"
    };
    failure(format!("cannot execute {}", build.display()), remedy).because(error)
}

/// The first line of a build, up to 4096 bytes.
fn first_line(build: &Path) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(File::open(build)?.take(4096)).read_until(b'\n', &mut line)?;
    Ok(line)
}

/// The interpreter of the `#!` line, if it is missing; of `env NAME`, that is NAME.
fn missing_interpreter(build: &Path) -> Option<String> {
    let line = first_line(build).ok()?;
    let line = String::from_utf8_lossy(&line);
    // As the kernel reads it: a carriage return is part of the name, and everything after the first blank is one
    // argument.
    let blank = [' ', '\t'];
    let line = line
        .strip_prefix("#!")?
        .trim_end_matches('\n')
        .trim_matches(blank);
    let (interpreter, rest) = line.split_once(blank).unwrap_or((line, ""));
    if nix::unistd::access(interpreter, AccessFlags::X_OK).is_err() {
        return Some(interpreter.escape_debug().to_string());
    }
    if !interpreter.ends_with("/env") {
        return None;
    }
    let rest = rest.trim_start_matches(blank);
    let name = match rest.strip_prefix("-S") {
        None => rest,
        Some(words) => words
            .split_ascii_whitespace()
            .find(|word| *word != "-i" && !word.contains('='))?,
    };
    if name.is_empty() || name.starts_with('-') {
        return None;
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let found = name.contains('/')
        || std::env::split_paths(&path)
            .any(|dir| nix::unistd::access(&dir.join(name), AccessFlags::X_OK).is_ok());
    (!found).then(|| name.escape_debug().to_string())
}

/// Checks before exec whether a build can be run: env(1) would exit with 127, which has another meaning here, and
/// execvp(3) would pass unknown content to `/bin/sh`.
///
/// # Errors
/// It cannot be run (exit 126).
pub(crate) fn check(build: &Path) -> Result<(), Failure> {
    if missing_interpreter(build).is_some() {
        return Err(explain(build, build, io::ErrorKind::NotFound.into()));
    }
    let head = first_line(build).unwrap_or_default();
    let executable = head.starts_with(b"#!") || head.starts_with(b"\x7fELF");
    let jar = build
        .extension()
        .is_some_and(|extension| extension == "jar");
    if !executable && !jar && (head.starts_with(b"PK") || head.contains(&0)) {
        return Err(Failure::new(
            Exit::NOT_EXECUTABLE,
            format!(
                "{} is not a program or script: it does not start with #!",
                build.display()
            ),
        )
        .remedy("build it with an interpreter (`pex`, or `zipapp --python`)"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_shell() {
        for (word, expected) in [
            ("--port=80", "--port=80"),
            ("a b", "'a b'"),
            ("", "''"),
            ("it's", "'it'\\''s'"),
        ] {
            assert_eq!(quoted(word), expected);
        }
    }

    #[test]
    fn missing_interpreter_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let build = temp.path().join("b.pex");
        for (line, expected) in [
            ("#!/nowhere/python9\n", Some("/nowhere/python9")),
            ("#!/usr/bin/env missing-python\n", Some("missing-python")),
            (
                "#!/usr/bin/env -S A=1 missing-python -x\n",
                Some("missing-python"),
            ),
            (
                "#!/usr/bin/env missing-python -u\n",
                Some("missing-python -u"),
            ),
            ("#!/bin/sh\r\n", Some("/bin/sh\\r")),
            ("#!/usr/bin/env -S -u A missing-python\n", None),
            ("#!/bin/sh\n", None),
            ("no line at all", None),
        ] {
            std::fs::write(&build, line).unwrap();
            assert_eq!(missing_interpreter(&build).as_deref(), expected, "{line}");
        }
    }
}
