//! Sample programs: the eight-ball API of the blog as a zipapp and as real pexes, and a small jar. Sources are in
//! `fixtures/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::host::succeed;
use crate::{find_program, tools, workspace};

/// The layouts of a pex.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PexLayout {
    /// A zipapp without dependencies.
    Plain,
    /// A zipapp that carries `six`.
    WithSix,
    /// A pex that creates a venv on its first run and starts through `/bin/sh`.
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

/// Builds the API as an executable zipapp.
///
/// # Errors
/// Python is not installed.
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

/// Builds the API as a pex and keeps it between runs: building takes seconds and, with dependencies, a package index.
///
/// # Errors
/// `pex` is not installed or failed.
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

/// Copies a pex so that it unpacks into directories of its own, as another build would.
///
/// # Errors
/// Python is not installed.
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
/// No JDK is installed.
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

/// Copies the file that `make` builds from `source` to `out`; builds it unless an earlier run did.
fn keep(
    name: &str,
    source: &Path,
    out: &Path,
    make: impl FnOnce(&Path, &Path) -> Result<(), String>,
) -> Result<(), String> {
    let digest = Sha256::digest(fs::read(source).unwrap());
    let hex = hostkit::hex::encode(&digest[..8]);
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

/// Prefers the system's Python: the shim of a version manager starts ten times slower.
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
