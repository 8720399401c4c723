//! Running from the cache alone: which entries are used, and the cache of a user's own.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use hostkit_tests::host::{TmpfsMount, is_root, run_as};
use hostkit_tests::origin::OriginServer;
use hostkit_tests::{or_skip, skip};

use super::{
    ALIKE, ARCH, CommandOutcome, HASH, OTHER, PexrunHost, for_everybody, open_to_all, pex, program,
};

/// A uid without a user.
const OTHER_USER: u32 = 54_321;

#[test]
fn offline_runs_cached_build_without_network() {
    let origin = OriginServer::start();
    origin.put(&format!("/{}", pex("job", HASH)), program("echo ran"));
    origin.put("/job.pex", program("echo static"));
    let host = PexrunHost::bare();
    host.repositories(&[&origin.url("")]);
    host.pexrun(["job", HASH]).exits(0);
    host.pexrun(["job", "static"]).exits(0);
    origin.reset_counters();
    for (version, says) in [
        (HASH, "ran\n"),
        (&HASH[..5], "ran\n"),
        ("static", "static\n"),
    ] {
        let outcome = host.pexrun(["--offline", "job", version]);
        outcome.exits(0).prints(says);
    }
    for missing in [OTHER, "f00d", "1.2"] {
        host.pexrun(["--offline", "job", missing])
            .exits(125)
            .logs("is not in the cache")
            .logs("without --offline");
    }
    assert_eq!(origin.connections(), 0);
    // A cached build runs although its source is not configured.
    std::fs::remove_file(host.home().join(".config/hostkit/pexrun.yaml")).unwrap();
    let mut command = host.command(["--offline", "job", &HASH[..7]]);
    command
        .env("HOSTKIT_PEXRUN_CACHE_DIR", host.cache())
        .env("HOSTKIT_PEXRUN_ARCH", ARCH);
    CommandOutcome::from(command.output().unwrap())
        .exits(0)
        .prints("ran\n");
}

#[test]
fn ambiguous_short_hash_is_ambiguous_offline() {
    let host = PexrunHost::new();
    for hash in [HASH, ALIKE] {
        host.publish(&pex("job", hash), program("echo ran"));
        host.pexrun(["--fetch-only", "job", hash])
            .exits(0)
            .prints("");
    }
    host.pexrun(["--offline", "job", "60a43ef"])
        .exits(125)
        .logs(HASH)
        .logs(ALIKE);
}

/// Two users of one host, and a binary that both may run.
struct PexrunUsers {
    host: PexrunHost,
    _directory: assert_fs::TempDir,
    binary: PathBuf,
}

impl PexrunUsers {
    fn new() -> Option<Self> {
        or_skip("other users", run_as(OTHER_USER, "true"))?;
        let host = PexrunHost::new();
        let (directory, binary) = for_everybody();
        let own = host.path("own");
        std::fs::create_dir(&own).unwrap();
        std::os::unix::fs::chown(&own, Some(OTHER_USER), Some(OTHER_USER)).unwrap();
        Some(Self {
            host,
            _directory: directory,
            binary,
        })
    }

    /// Runs as the other user, whose home is `own`; the shared cache and the repository are the same.
    fn run_as_other_user(&self, args: &[&str]) -> CommandOutcome {
        let mut command = run_as(OTHER_USER, &self.binary).unwrap();
        self.set_up(&mut command);
        command.args(args).output().unwrap().into()
    }

    fn set_up(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.host.path("own"))
            .env("HOSTKIT_PEXRUN_CACHE_DIR", self.host.cache())
            .env("HOSTKIT_PEXRUN_ARCH", ARCH)
            .env("HOSTKIT_PEXRUN_REPOSITORY", self.host.repository())
            .current_dir("/");
    }
}

#[test]
fn root_does_not_run_build_cached_by_other_user() {
    let Some(users) = PexrunUsers::new() else {
        return;
    };
    let host = &users.host;
    // Root creates the shared cache for all.
    host.pexrun(["--list", "--cached"]).exits(0);
    let published = host.publish(&pex("job", HASH), program("echo anything"));
    open_to_all(&published);
    users
        .run_as_other_user(&["job", HASH])
        .exits(0)
        .prints("anything\n");
    std::fs::remove_file(published).unwrap();
    for version in [HASH, &HASH[..6]] {
        host.pexrun(["--offline", "job", version])
            .exits(125)
            .logs("is not in the cache");
    }
    host.pexrun(["--list", "--cached"]).exits(0).prints("");
    users
        .run_as_other_user(&["--list", "--cached"])
        .exits(0)
        .prints(&format!("job {HASH} cached\n"));
}

#[test]
fn user_without_write_access_to_shared_cache_gets_own_cache() {
    let Some(users) = PexrunUsers::new() else {
        return;
    };
    let host = &users.host;
    for (hash, says) in [(HASH, "shared"), (OTHER, "own")] {
        let published = host.publish(&pex("job", hash), program(&format!("echo {says}")));
        open_to_all(&published);
    }
    host.pexrun(["--fetch-only", "job", HASH]).exits(0);
    std::fs::set_permissions(host.cache(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::remove_file(host.path("repo").join(pex("job", HASH))).unwrap();
    // A build that root fetched is used in place; a new build goes to the user's own cache.
    users
        .run_as_other_user(&["job", HASH])
        .exits(0)
        .prints("shared\n");
    let at = |hash: &str| {
        users
            .run_as_other_user(&["--which", "job", hash])
            .exits(0)
            .stdout
    };
    let path = |path: &str| host.path(path).display().to_string();
    assert!(
        at(HASH).starts_with(&path("cache/0/blobs/")),
        "{}",
        at(HASH)
    );
    let own = path("own/.cache/hostkit/s3cache/54321/blobs/");
    assert!(at(OTHER).starts_with(&own), "{}", at(OTHER));
    users
        .run_as_other_user(&["job", OTHER])
        .exits(0)
        .prints("own\n");
    for hash in ["60a4", "f00d"] {
        users
            .run_as_other_user(&["--offline", "job", hash])
            .exits(0);
    }
    let listed = users
        .run_as_other_user(&["--list", "--cached", "job"])
        .exits(0)
        .stdout;
    assert_eq!(listed, format!("job {HASH} cached\njob {OTHER} cached\n"));
}

#[test]
fn read_only_shared_cache_is_still_read() {
    if !is_root() {
        return skip("a read-only filesystem", "needs root");
    }
    let Some(tmpfs) = or_skip("tmpfs", TmpfsMount::mount(8 << 20)) else {
        return;
    };
    let host = PexrunHost::new();
    for (hash, says) in [(HASH, "before"), (OTHER, "after")] {
        host.publish(&pex("job", hash), program(&format!("echo {says}")));
    }
    let cache = tmpfs.path().join("cache").display().to_string();
    let run = |hash: &str| {
        let flags = ["--cache-dir", &cache, "--keep-free=0", "job", hash];
        host.pexrun(flags)
    };
    run(HASH).exits(0).prints("before\n");
    let remount = Command::new("mount")
        .args(["-o", "remount,ro"])
        .arg(tmpfs.path())
        .status();
    assert!(remount.unwrap().success());
    run(HASH).exits(0).prints("before\n");
    run(OTHER).exits(0).prints("after\n");
    assert!(host.home().join(".cache/hostkit/s3cache").is_dir());
}
