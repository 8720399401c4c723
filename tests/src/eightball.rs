//! Things to run: the blog's eight-ball API as a zipapp and as real pexes, and a small jar. Their sources are in
//! `fixtures/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::host::succeed;
use crate::{find_program, tools, workspace};

/// The shapes a pex comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PexLayout {
    /// A zipapp without dependencies.
    Plain,
    /// A zipapp that carries `six`.
    WithSix,
    /// One that makes itself a venv on its first run and starts through `/bin/sh`.
    Venv,
}

impl PexLayout {
    const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::WithSix => "six",
            Self::Venv => "venv",
        }
    }

    const fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::WithSix => &["six"],
            Self::Venv => &["six", "--venv", "prepend", "--sh-boot"],
        }
    }
}

/// Builds the API as a zipapp, an executable file.
///
/// # Errors
/// There is no Python here.
pub fn build_zipapp(out: &Path) -> Result<(), String> {
    succeed(
        Command::new(python()?)
            .args([
                "-m",
                "zipapp",
                "--python",
                "/usr/bin/env python3",
                "--output",
            ])
            .arg(out)
            .arg(fixture("eightball")),
    )
}

/// Builds the API as a pex. That takes seconds and, with dependencies, a package index, so one is kept between runs.
///
/// # Errors
/// There is no `pex` here, or it failed.
pub fn build_pex(out: &Path, kind: PexLayout) -> Result<(), String> {
    let source = fixture("eightball").join("eightball.py");
    let name = format!("{}.pex", kind.name());
    keep(&name, &source, out, |scratch, made| {
        let sources = scratch.join("src");
        fs::create_dir(&sources).unwrap();
        fs::copy(&source, sources.join("eightball.py")).unwrap();
        succeed(
            Command::new(find_program("pex")?)
                .args(kind.arguments())
                .arg("--sources-directory")
                .arg(&sources)
                .args(["--entry-point", "eightball", "--output-file"])
                .arg(made)
                .env("PEX_ROOT", tools().join("pex-root")),
        )
    })
}

/// Copies a pex as another build of it would be: what it unpacks has names of its own.
///
/// # Errors
/// There is no Python here.
pub fn vary_pex(from: &Path, to: &Path, seed: &str) -> Result<(), String> {
    let script = "
import hashlib, json, os, sys, zipfile
source, target, seed = sys.argv[1:]
with zipfile.ZipFile(source) as old:
    info = json.loads(old.read('PEX-INFO'))
    hashes = [info[key].encode() for key in ('pex_hash', 'code_hash', 'bootstrap_hash')]
    def vary(data):
        for found in hashes:
            data = data.replace(found, hashlib.sha1(found + seed.encode()).hexdigest().encode())
        return data
    with open(source, 'rb') as data, open(target, 'wb') as out:
        out.write(vary(data.read(min(entry.header_offset for entry in old.infolist()))))
    with zipfile.ZipFile(target, 'a') as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename in ('PEX-INFO', '__main__.py'):
                content = vary(content)
            new.writestr(entry, content)
os.chmod(target, 0o755)
";
    let mut command = Command::new(python()?);
    succeed(command.args(["-c", script]).args([from, to]).arg(seed))
}

/// Builds a jar that prints its arguments, one per line, and then `probe=` with the system property of that name.
///
/// # Errors
/// There is no JDK here.
pub fn build_jar(out: &Path) -> Result<(), String> {
    let source = fixture("hello").join("Hello.java");
    keep("hello.jar", &source, out, |scratch, made| {
        succeed(
            Command::new(find_program("javac")?)
                .arg("-d")
                .arg(scratch)
                .arg(&source),
        )?;
        succeed(
            Command::new(find_program("jar")?)
                .args(["--create", "--main-class", "Hello", "--file"])
                .arg(made)
                .arg("-C")
                .arg(scratch)
                .arg("Hello.class"),
        )
    })
}

/// Copies what `make` makes of `source` to `out`, and makes it only if no earlier run did.
fn keep(
    name: &str,
    source: &Path,
    out: &Path,
    make: impl FnOnce(&Path, &Path) -> Result<(), String>,
) -> Result<(), String> {
    let digest = Sha256::digest(fs::read(source).unwrap());
    let hex: String = digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let directory = tools().join("fixtures");
    let kept = directory.join(format!("{hex}-{name}"));
    if !kept.exists() {
        fs::create_dir_all(&directory).unwrap();
        let scratch = TempDir::new_in(&directory).unwrap();
        let made = scratch.path().join(name);
        make(scratch.path(), &made)?;
        fs::rename(&made, &kept).unwrap();
    }
    fs::copy(&kept, out).unwrap();
    Ok(())
}

/// The system's Python where there is one: a version manager's shim is ten times slower to start.
fn python() -> Result<PathBuf, String> {
    let system = PathBuf::from("/usr/bin/python3");
    if system.is_file() {
        return Ok(system);
    }
    find_program("python3")
}

fn fixture(name: &str) -> PathBuf {
    workspace().join("tests/fixtures").join(name)
}
