//! Real pexes and a real zipapp: they run as themselves, and unpack once per host, not once per sandbox.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use hostkit_tests::eightball::{PexLayout, build_pex, build_zipapp};
use hostkit_tests::{ChildGuard, or_skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{CommandOutcome, HASH, PexrunHost, pex};

/// A host whose repository has the eight ball as a pex of this layout.
fn host(kind: PexLayout) -> Option<PexrunHost> {
    let host = PexrunHost::new();
    let out = host.path("repo").join(pex("ball", HASH));
    or_skip("pex", build_pex(&out, kind))?;
    Some(host)
}

/// Runs Python code inside the pex, as pexes offer it, in a home of its own.
fn python(host: &PexrunHost, home: &Path, code: &str) -> CommandOutcome {
    let mut command = host.command(["ball", HASH, "-c", code]);
    command.env("PEX_INTERPRETER", "1");
    in_new_home(&mut command, host, home)
        .output()
        .unwrap()
        .into()
}

/// Moves a command to another, empty home, like that of the next sandbox.
fn in_new_home<'a>(
    command: &'a mut std::process::Command,
    host: &PexrunHost,
    home: &Path,
) -> &'a mut std::process::Command {
    std::fs::create_dir_all(home).unwrap();
    let config = host.home().join(".config/hostkit/pexrun.yaml");
    command
        .env("HOME", home)
        .env("HOSTKIT_PEXRUN_CONFIG", config)
        .current_dir(home)
}

/// Every directory below the shared `PEX_ROOT`.
fn unpacked_directories(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            // Python's own caches depend on what is imported.
            if entry.file_type().unwrap().is_dir() && entry.file_name() != "__pycache__" {
                found.push(entry.path());
                left.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// Starts the API through pexrun, requests its pid, and ends it.
fn assert_serves(host: &PexrunHost) {
    let mut command = host.command(["ball", HASH, "--port=0", "--console", "--logstash_tags=a,b"]);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut child = ChildGuard(child);
    let pid = child.0.id();
    let mut stderr = BufReader::new(child.0.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    let port = line.trim().strip_prefix("listening on ");
    let port: u16 = port.unwrap_or_else(|| panic!("{line}")).parse().unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .write_all(b"GET /private/stats/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(&format!("\"pid\": {pid},")), "{answer}");
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
}

fn runs_as_itself(kind: PexLayout) {
    let Some(host) = host(kind) else { return };
    assert_serves(&host);
    let first = unpacked_directories(&host.pex_root());
    let home = host.path("sandbox");
    let seen = python(
        &host,
        &home,
        "import os; print(os.path.basename(os.environ['PEX']))",
    );
    assert_eq!(seen.exits(0).stdout, format!("{}\n", pex("ball", HASH)));
    // A fresh sandbox unpacked nothing, neither in the shared root nor at home.
    assert!(!first.is_empty());
    assert_eq!(unpacked_directories(&host.pex_root()), first);
    let left: Vec<_> = std::fs::read_dir(&home).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn plain_pex_runs() {
    runs_as_itself(PexLayout::Plain);
}

#[test]
fn pex_with_dependency_runs() {
    runs_as_itself(PexLayout::WithSix);
    let Some(host) = host(PexLayout::WithSix) else {
        return;
    };
    let seen = python(
        &host,
        &host.path("sandbox"),
        "import six; print(six.__name__)",
    );
    assert_eq!(seen.exits(0).stdout, "six\n");
}

#[test]
fn venv_pex_with_shell_launcher_runs() {
    runs_as_itself(PexLayout::Venv);
}

#[test]
fn warm_unpacks_pex_and_runs_nothing() {
    for kind in [PexLayout::WithSix, PexLayout::Venv] {
        let Some(host) = host(kind) else { return };
        host.pexrun(["--warm", "ball", HASH]).exits(0).prints("");
        let warmed = unpacked_directories(&host.pex_root());
        assert!(!warmed.is_empty());
        assert_serves(&host);
        assert_eq!(unpacked_directories(&host.pex_root()), warmed, "{kind:?}");
    }
}

#[test]
fn zipapp_runs() {
    let host = PexrunHost::new();
    let out = host.path("repo").join(pex("ball", HASH));
    let Some(()) = or_skip("python", build_zipapp(&out)) else {
        return;
    };
    assert_serves(&host);
    assert!(unpacked_directories(&host.pex_root()).is_empty());
    let help = host.pexrun(["ball", HASH, "--help"]).exits(0).stdout;
    assert!(help.starts_with("usage: eightball"), "{help}");
}
