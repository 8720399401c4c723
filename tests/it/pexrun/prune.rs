//! Unpacked pexes share the bound of the cache: those that do not run go, the one that runs stays whole.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::Stdio;

use hostkit_tests::eightball::{Pex, build_pex, vary_pex};
use hostkit_tests::{Running, or_skip};

use super::{HASH, Host, OTHER, pex};

/// Says that it runs, and imports what it carries only when told to.
const SLEEPS: &str = "print('runs', flush=True); input(); import six; print(six.__name__)";
/// The same, but like a daemon that closes what it inherited, the lease among it.
const CLOSES: &str = "import os; os.closerange(3, 256); print('runs', flush=True); input(); import six; print(six.__name__)";

/// Bytes of all files below a directory.
fn bytes(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    let sizes = entries.map(|entry| match entry.file_type().unwrap().is_dir() {
        true => bytes(&entry.path()),
        false => entry.metadata().unwrap().len(),
    });
    sizes.sum()
}

/// The names of what pexes have unpacked in a folder of the root, whatever the version of its format.
fn names(host: &Host, folder: &str) -> Vec<String> {
    let versions = std::fs::read_dir(host.pex_root().join(folder)).into_iter();
    let versions = versions.flatten().map(|version| version.unwrap().path());
    let entries = versions.flat_map(|version| std::fs::read_dir(version).unwrap());
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name.len() >= 40 && !name.starts_with('.'))
        .collect()
}

fn sleeping_pex_survives(kind: Pex, code: &str) {
    let host = Host::new();
    let repository = host.path("repo");
    let (built, build) = (host.path("built"), repository.join(pex("ball", HASH)));
    let Some(()) = or_skip("pex", build_pex(&built, kind)) else {
        return;
    };
    // What a process of another test names is in use here too: each run has builds of its own.
    let seed = |job: &str| format!("{kind:?} {job} {}", code.len());
    vary_pex(&built, &build, &seed("ball")).unwrap();
    let mut command = host.command(["ball", HASH, "-c", code]);
    command.env("PEX_INTERPRETER", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = Running(command.spawn().unwrap());
    let mut stdout = BufReader::new(running.0.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "runs\n", "{kind:?}");
    let alone = bytes(&host.pex_root());
    let mine = names(&host, "unzipped_pexes");
    for n in 0..5 {
        let job = format!("job{n}");
        vary_pex(&built, &repository.join(pex(&job, OTHER)), &seed(&job)).unwrap();
        host.pexrun(["--warm", &job, OTHER]).exits(0);
    }
    assert_eq!(names(&host, "bootstraps").len(), 6);
    let artifacts = bytes(&host.share().join("blobs"));
    // Any of them may go, if gc thinks so.
    host.age_blobs();
    let max = (artifacts + alone + 100_000).to_string();
    host.s3cache(&["gc", "--keep-free=0", "--max-size", &max])
        .exits(0);
    assert_eq!(bytes(&host.share().join("blobs")), artifacts, "{kind:?}");
    for (folder, left) in [("unzipped_pexes", 1), ("bootstraps", 1), ("user_code", 1)] {
        assert_eq!(names(&host, folder).len(), left, "{kind:?}: {folder}");
    }
    assert_eq!(names(&host, "unzipped_pexes"), mine);
    assert!(bytes(&host.pex_root()) < alone + 100_000, "{kind:?}");
    // What was removed unpacks itself again.
    host.pexrun(["--warm", "job3", OTHER]).exits(0);
    host.s3cache(&["gc", "--max-size=0"]).exits(0);
    assert_eq!(names(&host, "unzipped_pexes"), mine);
    running.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "six\n", "{kind:?}: it still imports");
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
    host.s3cache(&["gc", "--max-size=0"]).exits(0);
    assert_eq!(names(&host, "unzipped_pexes"), Vec::<String>::new());
    assert!(bytes(&host.pex_root()) < 1000, "nothing runs: all goes");
}

#[test]
fn sleeping_pex_keeps_running_while_others_are_pruned() {
    sleeping_pex_survives(Pex::WithSix, SLEEPS);
}

#[test]
fn sleeping_venv_keeps_running_while_others_are_pruned() {
    sleeping_pex_survives(Pex::Venv, SLEEPS);
}

#[test]
fn sleeping_pex_that_closed_its_lease_keeps_running_while_others_are_pruned() {
    sleeping_pex_survives(Pex::WithSix, CLOSES);
    sleeping_pex_survives(Pex::Venv, CLOSES);
}
