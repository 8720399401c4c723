//! Unpacked pexes count toward the bound of the cache: unused ones are removed, a running one stays complete.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::Stdio;

use hostkit_tests::eightball::{PexLayout, build_pex, vary_pex};
use hostkit_tests::{ChildGuard, old_bin, or_skip, wait_until};

use super::{HASH, OTHER, PexrunHost, pex};

/// Prints `runs`, and imports its dependency only after a line on stdin.
const SLEEPS: &str = "print('runs', flush=True); input(); import six; print(six.__name__)";
/// The same, but like a daemon that closes inherited files, including the lease.
const CLOSES: &str = "import os; os.closerange(3, 256); print('runs', flush=True); input(); import six; print(six.__name__)";

/// Bytes of all files below a directory.
fn directory_bytes(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    let sizes = entries.map(|entry| match entry.file_type().unwrap().is_dir() {
        true => directory_bytes(&entry.path()),
        false => entry.metadata().unwrap().len(),
    });
    sizes.sum()
}

/// The names of unpacked pexes in a folder of the root, in any version of its format.
fn unpacked_names(host: &PexrunHost, folder: &str) -> Vec<String> {
    let versions = std::fs::read_dir(host.pex_root().join(folder)).into_iter();
    let versions = versions.flatten().map(|version| version.unwrap().path());
    let entries = versions.flat_map(|version| std::fs::read_dir(version).unwrap());
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name.len() >= 40 && !name.starts_with('.'))
        .collect()
}

fn sleeping_pex_survives(kind: PexLayout, code: &str) {
    let host = PexrunHost::new();
    let repository = host.path("repo");
    let (built, build) = (host.path("built"), repository.join(pex("ball", HASH)));
    let Some(()) = or_skip("pex", build_pex(&built, kind)) else {
        return;
    };
    // Files used by a process of another test count as in use here too: each run has builds of its own.
    let seed = |job: &str| format!("{kind:?} {job} {}", code.len());
    vary_pex(&built, &build, &seed("ball")).unwrap();
    let mut command = host.command(["ball", HASH, "-c", code]);
    command.env("PEX_INTERPRETER", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = ChildGuard(command.spawn().unwrap());
    let mut stdout = BufReader::new(running.0.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "runs\n", "{kind:?}");
    let alone = directory_bytes(&host.pex_root());
    let mine = unpacked_names(&host, "unzipped_pexes");
    for n in 0..5 {
        let job = format!("job{n}");
        vary_pex(&built, &repository.join(pex(&job, OTHER)), &seed(&job)).unwrap();
        host.pexrun(["--warm", &job, OTHER]).exits(0);
    }
    assert_eq!(unpacked_names(&host, "bootstraps").len(), 6);
    let artifacts = directory_bytes(&host.share().join("blobs"));
    // gc may remove any of them.
    host.age_blobs();
    host.age_unpacked();
    let max = (artifacts + alone + 100_000).to_string();
    host.s3cache(&["gc", "--keep-free=0", "--max-size", &max])
        .exits(0);
    assert_eq!(
        directory_bytes(&host.share().join("blobs")),
        artifacts,
        "{kind:?}"
    );
    for (folder, left) in [("unzipped_pexes", 1), ("bootstraps", 1), ("user_code", 1)] {
        assert_eq!(
            unpacked_names(&host, folder).len(),
            left,
            "{kind:?}: {folder}"
        );
    }
    assert_eq!(unpacked_names(&host, "unzipped_pexes"), mine);
    assert!(
        directory_bytes(&host.pex_root()) < alone + 100_000,
        "{kind:?}"
    );
    // A removed one unpacks itself again.
    host.pexrun(["--warm", "job3", OTHER]).exits(0);
    host.age_unpacked();
    host.s3cache(&["gc", "--max-size=0"]).exits(0);
    assert_eq!(unpacked_names(&host, "unzipped_pexes"), mine);
    running.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "six\n", "{kind:?}: it still imports");
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
    host.s3cache(&["gc", "--max-size=0"]).exits(0);
    assert_eq!(
        unpacked_names(&host, "unzipped_pexes"),
        Vec::<String>::new()
    );
    assert!(
        directory_bytes(&host.pex_root()) < 1000,
        "all are removed when none runs"
    );
}

#[test]
fn sleeping_pex_keeps_running_while_others_are_pruned() {
    sleeping_pex_survives(PexLayout::WithSix, SLEEPS);
}

#[test]
fn sleeping_venv_keeps_running_while_others_are_pruned() {
    sleeping_pex_survives(PexLayout::Venv, SLEEPS);
}

#[test]
fn sleeping_pex_that_closed_its_lease_keeps_running_while_others_are_pruned() {
    sleeping_pex_survives(PexLayout::WithSix, CLOSES);
    sleeping_pex_survives(PexLayout::Venv, CLOSES);
}

/// A daemon that closes inherited files and hides from where it runs.
const HIDES: &str = "import os, sys; os.closerange(3, 256); os.environ['PYTHONPATH'] = ':'.join(sys.path); \
    os.execv(sys.executable, [sys.executable, '-c', os.environ['SLEEPS']])";

#[test]
fn pex_without_lease_and_name_keeps_its_files_for_an_hour_after_its_start() {
    let host = PexrunHost::new();
    let built = host.path("built");
    let Some(()) = or_skip("pex", build_pex(&built, PexLayout::WithSix)) else {
        return;
    };
    vary_pex(&built, &host.path("repo").join(pex("ball", HASH)), "hides").unwrap();
    let mut command = host.command(["ball", HASH, "-c", HIDES]);
    command.env("PEX_INTERPRETER", "1").env("SLEEPS", SLEEPS);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = ChildGuard(command.spawn().unwrap());
    let mut stdout = BufReader::new(running.0.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "runs\n");
    let before = directory_bytes(&host.pex_root());
    host.s3cache(&["gc", "--max-size=0"]).exits(0);
    assert_eq!(directory_bytes(&host.pex_root()), before);
    running.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "six\n", "it still imports");
    host.age_unpacked();
    host.s3cache(&["gc", "--max-size=0"]).exits(0);
    assert!(
        directory_bytes(&host.pex_root()) < 1000,
        "all are removed when none runs"
    );
}

/// It holds a lock on the whole root, and continues without one during a removal.
#[test]
fn pex_that_old_release_started_without_lock_unpacks_itself_beside_gc() {
    let Some(old) = or_skip("an old pexrun", old_bin("pexrun")) else {
        return;
    };
    let host = PexrunHost::new();
    let built = host.path("built");
    let Some(()) = or_skip("pex", build_pex(&built, PexLayout::WithSix)) else {
        return;
    };
    let build = host.path("repo").join(pex("ball", HASH));
    vary_pex(&built, &build, "old").unwrap();
    host.s3cache(&[&format!("file://{}", build.display())])
        .exits(0);
    let removal = File::open(host.pex_root()).unwrap();
    removal.lock().unwrap();
    let mut command = host.program(old);
    command.args(["--warm", "ball", HASH]);
    let mut starting = ChildGuard(command.spawn().unwrap());
    wait_until("the pex unpacks itself", || {
        std::fs::read_dir(host.pex_root()).unwrap().next().is_some()
    });
    drop(removal);
    let code = loop {
        if let Some(status) = starting.0.try_wait().unwrap() {
            break status.code();
        }
        host.s3cache(&["gc", "--max-size=0"]).exits(0);
    };
    assert_eq!(code, Some(0));
    assert_eq!(unpacked_names(&host, "unzipped_pexes").len(), 1);
}

/// The contents of the cache by `stats`: everything that counts toward the bound, and unpacked pexes.
fn stats(host: &PexrunHost) -> (u64, u64) {
    let stats = json(host, &["stats", "--json"]);
    let number = |key: &str| stats[key].as_u64().unwrap();
    (number("used_bytes"), number("pex_root_bytes"))
}

fn json(host: &PexrunHost, args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&host.s3cache(args).exits(0).stdout).unwrap()
}

/// A host on which three builds have unpacked themselves. pex makes hard links between its folders.
fn host_with_three_unpacked_pexes(seed: &str) -> Option<PexrunHost> {
    let host = PexrunHost::new();
    let built = host.path("built");
    or_skip("pex", build_pex(&built, PexLayout::WithSix))?;
    for n in 0..3 {
        let job = format!("job{n}");
        let build = host.path("repo").join(pex(&job, OTHER));
        vary_pex(&built, &build, &format!("{seed} {job}")).unwrap();
        host.pexrun(["--warm", &job, OTHER]).exits(0);
    }
    host.age_unpacked();
    Some(host)
}

#[test]
fn gc_of_linked_unpacked_files_counts_each_once_and_keeps_the_bound() {
    let Some(host) = host_with_three_unpacked_pexes("gc") else {
        return;
    };
    let (whole, unpacked) = stats(&host);
    let artifacts = whole - unpacked;
    for share in [100, 90, 60, 30, 1, 0] {
        let max = artifacts + unpacked * share / 100;
        let flag = format!("--max-size={max}");
        let before = stats(&host);
        let mut outcome = json(&host, &["gc", "--json", "--dry-run", &flag]);
        assert_eq!(stats(&host), before, "{share} %");
        outcome["dry_run"] = false.into();
        let done = json(&host, &["gc", "--json", &flag]);
        assert_eq!(outcome, done, "{share} %");
        let after = stats(&host);
        assert_eq!(
            done["freed_bytes"],
            before.0 - after.0,
            "{share} %: {before:?}"
        );
        assert_eq!(done["used_bytes"], after.0, "{share} %");
        assert!(after.0 <= max, "{share} %: {after:?}, at most {max}");
    }
}

#[test]
fn fetch_that_prunes_linked_unpacked_files_keeps_the_bound_and_counts_what_is_left() {
    let Some(host) = host_with_three_unpacked_pexes("fetch") else {
        return;
    };
    host.s3cache(&["gc"]).exits(0);
    let (whole, unpacked) = stats(&host);
    let url = format!("file://{}", host.publish("data-1.2", "data").display());
    let max = whole - unpacked * 2 / 3;
    host.s3cache(&[&url, "--keep-free=0", &format!("--max-size={max}")])
        .exits(0);
    let (held, left) = stats(&host);
    assert!(held <= max, "{held}, at most {max}");
    let counter = std::fs::read_to_string(host.share().join("index/v1/unpacked")).unwrap();
    assert_eq!(counter.trim(), left.to_string());
}
