//! Becoming the program: the command line, `PEX_ROOT`, the lease that outlives exec, and why exec failed.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use hostkit::dir::{Dir, try_shared};
use hostkit::{Exit, Failure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::AccessFlags;
use s3cache::cache::Blob;
use tracing::{debug, warn};

use crate::config::{Config, PexRoot};

/// A command that is ready to be run, and what must stay open for as long as it runs.
#[derive(Debug)]
pub struct Launch {
    /// The command.
    pub command: Command,
    path: PathBuf,
    leases: Vec<File>,
}

impl Launch {
    /// Prepares to run a build with these arguments.
    #[must_use]
    pub fn new(config: &Config, blob: Blob, args: &[OsString]) -> Self {
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
            if let Some((root, lease)) = pex_root(config, &blob.file) {
                command.env("PEX_ROOT", root);
                leases.push(lease);
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

    /// The command line, for people.
    #[must_use]
    pub fn shown(&self) -> String {
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

    /// Replaces this process by the program: same pid, signals, terminal and exit code.
    ///
    /// # Errors
    /// It cannot be executed (exit 126); on success this does not return.
    pub fn exec(mut self) -> Result<Exit, Failure> {
        for lease in &self.leases {
            // Handed on, so that the artifact is not evicted while the program runs from it.
            if let Err(error) = fcntl(lease.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())) {
                warn!(%error, "the lease ends with this process");
            }
        }
        let program = PathBuf::from(self.command.get_program());
        let error = self.command.exec();
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

/// Where pexes unpack themselves so that it outlives the sandbox, with the lock that keeps gc away. Only a directory
/// that is the caller's alone: what lies there is run.
fn pex_root(config: &Config, file: &File) -> Option<(PathBuf, File)> {
    if config.pex_root == PexRoot::Keep
        || std::env::var_os("PEX_ROOT").is_some()
        || !s3cache::verify::is_pex(file)
    {
        return None;
    }
    let me = nix::unistd::geteuid().as_raw();
    let path = config
        .settings
        .cache_dir
        .join(me.to_string())
        .join("pex-root");
    let dir = match Dir::open(&path) {
        Ok(dir) => dir,
        Err(error) => {
            debug!(%error, "there is no {}", path.display());
            return None;
        }
    };
    let found = dir.metadata().ok()?;
    if found.st_uid != me || found.st_mode & 0o077 != 0 {
        warn!(
            "{} is open to others: PEX_ROOT is left alone",
            path.display()
        );
        return None;
    }
    let lease = File::from(dir.as_fd().try_clone_to_owned().ok()?);
    let _ = try_shared(&lease);
    Some((path, lease))
}

/// Unpacks a pex by starting its interpreter with nothing to do. Other builds have nothing to unpack.
///
/// # Errors
/// It cannot be executed (exit 126), or its interpreter failed (exit 125).
pub fn warm(config: &Config, blob: Blob) -> Result<Exit, Failure> {
    let path = blob.path.clone();
    if !s3cache::verify::is_pex(&blob.file) {
        debug!(
            "{} is not a pex: there is nothing to unpack",
            path.display()
        );
        return Ok(Exit::OK);
    }
    let mut launch = Launch::new(config, blob, &["-c".into(), "".into()]);
    match launch.command.env("PEX_INTERPRETER", "1").status() {
        Ok(status) if status.success() => Ok(Exit::OK),
        Ok(status) => Err(Failure::new(
            Exit::LAUNCHER_FAILED,
            format!("{} did not unpack: {status}", path.display()),
        )
        .remedy("run it once to see why")),
        Err(error) => Err(explain(&path, &path, error)),
    }
}

/// Names what exec(2) leaves its reader to guess.
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
            "{} needs {interpreter}, which is not there",
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
            "mount it without, or name another cache with --cache-dir",
        );
    }
    let executable = build
        .metadata()
        .is_ok_and(|found| found.mode() & 0o111 != 0);
    let remedy = if executable {
        "check that it is a program for this machine"
    } else {
        "check its mode"
    };
    failure(format!("cannot execute {}", build.display()), remedy).because(error)
}

/// The interpreter of the `#!` line, when it cannot be found; of `env NAME` that is NAME.
fn missing_interpreter(build: &Path) -> Option<String> {
    let mut line = Vec::new();
    BufReader::new(File::open(build).ok()?.take(4096))
        .read_until(b'\n', &mut line)
        .ok()?;
    let line = String::from_utf8_lossy(&line);
    let mut words = line.strip_prefix("#!")?.split_whitespace();
    let interpreter = words.next()?;
    if nix::unistd::access(interpreter, AccessFlags::X_OK).is_err() {
        return Some(interpreter.to_owned());
    }
    if !interpreter.ends_with("/env") {
        return None;
    }
    let name = words.find(|word| !word.starts_with('-') && !word.contains('='))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .any(|dir| nix::unistd::access(&dir.join(name), AccessFlags::X_OK).is_ok());
    (!found).then(|| name.to_owned())
}

/// Whether a build's interpreter is there, before exec hands the question to env(1), whose 127 means something else.
///
/// # Errors
/// It is not (exit 126).
pub fn check_interpreter(build: &Path) -> Result<(), Failure> {
    match missing_interpreter(build) {
        Some(_) => Err(explain(build, build, io::ErrorKind::NotFound.into())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_shown_as_a_shell_would_read_them() {
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
    fn a_missing_interpreter_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let build = temp.path().join("b.pex");
        for (line, expected) in [
            ("#!/nowhere/python9\n", Some("/nowhere/python9")),
            (
                "#!/usr/bin/env python-of-nobody\n",
                Some("python-of-nobody"),
            ),
            (
                "#!/usr/bin/env -S A=1 python-of-nobody -x\n",
                Some("python-of-nobody"),
            ),
            ("#!/bin/sh\n", None),
            ("no line at all", None),
        ] {
            std::fs::write(&build, line).unwrap();
            assert_eq!(missing_interpreter(&build).as_deref(), expected, "{line}");
        }
    }
}
