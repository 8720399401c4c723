//! Users that share a cache without trusting one another, as real uids: which entries are used, which bytes are copied,
//! and which directories are rejected.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt, chown, lchown, symlink};
use std::path::PathBuf;
use std::process::Command;

use hostkit_tests::host::run_as;
use hostkit_tests::origin::OriginServer;
use hostkit_tests::{bin, or_skip};

use super::{CacheHost, CommandOutcome, HASH, bytes, every_file, sha256};

mod bounds;
mod hostile;
mod mutual;
mod unpacking;

const ANN: u32 = 20_001;
const BOB: u32 = 20_002;

/// A host with several users: a cache that root created, a binary that every user can run, a home for each.
struct HostUsers {
    host: CacheHost,
}

impl HostUsers {
    /// `None` when this process cannot switch users.
    fn new() -> Option<Self> {
        or_skip("two uids", run_as(ANN, "true").map(drop))?;
        let users = Self {
            host: CacheHost::new(),
        };
        std::fs::create_dir(users.host.cache()).unwrap();
        users.set_mode(0o1777);
        let (built, program) = (bin("s3cache"), users.program());
        if std::fs::hard_link(&built, &program).is_err() {
            std::fs::copy(&built, &program).unwrap();
        }
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        for uid in [0, ANN, BOB] {
            std::fs::create_dir(users.home(uid)).unwrap();
            chown(users.home(uid), Some(uid), Some(uid)).unwrap();
        }
        Some(users)
    }

    fn program(&self) -> PathBuf {
        self.host.path("s3cache")
    }

    fn home(&self, uid: u32) -> PathBuf {
        self.host.path(uid.to_string())
    }

    /// The part of a user, or a path in it.
    fn share(&self, uid: u32, path: &str) -> PathBuf {
        self.host.cache().join(uid.to_string()).join(path)
    }

    fn set_mode(&self, mode: u32) {
        std::fs::set_permissions(self.host.cache(), PermissionsExt::from_mode(mode)).unwrap();
    }

    /// The binary as `uid`, in its home.
    fn command(&self, uid: u32, args: &[&str]) -> Command {
        let mut command = run_as(uid, self.program()).unwrap();
        self.host.set_clean_environment(&mut command);
        command
            .args(args)
            .args(self.host.own_flags())
            .env("HOME", self.home(uid))
            .current_dir(self.home(uid));
        command
    }

    fn run(&self, uid: u32, args: &[&str]) -> CommandOutcome {
        self.command(uid, args).output().unwrap().into()
    }

    /// Fetches to the file `out` in the home of `uid`, and returns its content.
    #[track_caller]
    fn get(&self, uid: u32, url: &str) -> (CommandOutcome, Vec<u8>) {
        let outcome = self.run(uid, &[url, "--copy-to=out"]).exits(0);
        (outcome, std::fs::read(self.home(uid).join("out")).unwrap())
    }

    /// The only blob of a user.
    fn blob(&self, uid: u32) -> PathBuf {
        let blobs = every_file(&self.share(uid, "blobs"));
        assert_eq!(blobs.len(), 1, "{blobs:?}");
        blobs.into_iter().next().unwrap()
    }

    /// Replaces a file of `uid`.
    fn write(&self, uid: u32, path: &str, bytes: &[u8]) {
        let path = self.share(uid, path);
        // Nothing below a user's part belongs to root.
        let missing: Vec<_> = path.ancestors().take_while(|at| !at.exists()).collect();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        for made in missing.into_iter().chain([path.as_path()]) {
            chown(made, Some(uid), Some(uid)).unwrap();
        }
    }
}

/// An origin with one artifact, and its path.
fn publish_artifact() -> (OriginServer, String, Vec<u8>) {
    let (origin, path) = (OriginServer::start(), format!("/job-{HASH}.bin"));
    let body = bytes(100_000, 5);
    origin.put(&path, body.clone());
    (origin, path, body)
}

fn publish_sidecar(origin: &OriginServer, path: &str, body: &[u8]) {
    origin.put(&format!("{path}.sha256"), sha256(body));
}

#[test]
fn entry_of_root_is_used_without_request() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, path, body) = publish_artifact();
    users.get(0, &origin.url(&path));
    origin.reset_counters();
    assert_eq!(users.get(ANN, &origin.url(&path)).1, body);
    assert_eq!(origin.connections(), 0);
}

#[test]
fn entry_of_other_user_is_fetched_again() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, path, body) = publish_artifact();
    for uid in [ANN, BOB, 0] {
        assert_eq!(users.get(uid, &origin.url(&path)).1, body);
    }
    assert_eq!(origin.bodies(&path), 3, "root trusts no other user");
}

#[test]
fn entry_of_other_user_is_used_when_store_confirms_digest() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, path, body) = publish_artifact();
    publish_sidecar(&origin, &path, &body);
    users.get(ANN, &origin.url(&path));
    let (outcome, copy) = users.get(BOB, &origin.url(&path));
    outcome.logs("digest verified");
    assert_eq!(copy, body);
    assert_eq!(origin.bodies(&path), 1, "one body in all");
    assert_eq!(users.blob(BOB).metadata().unwrap().uid(), BOB);
    origin.reset_counters();
    std::fs::remove_dir_all(users.share(ANN, "")).unwrap();
    assert_eq!(users.get(BOB, &origin.url(&path)).1, body);
    assert_eq!(origin.connections(), 0, "the copy belongs to the caller");
}

#[test]
fn poisoned_blob_of_other_user_is_not_used() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, path, body) = publish_artifact();
    publish_sidecar(&origin, &path, &body);
    users.get(ANN, &origin.url(&path));
    let mut poison = body.clone();
    poison[50_000] ^= 1;
    std::fs::write(users.blob(ANN), poison).unwrap();
    let (outcome, copy) = users.get(BOB, &origin.url(&path));
    outcome.logs("its digest differs");
    assert_eq!(copy, body);
    assert_eq!(origin.bodies(&path), 2);
}

#[test]
fn links_and_pipes_of_other_user_are_not_followed() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, path, body) = publish_artifact();
    publish_sidecar(&origin, &path, &body);
    users.get(ANN, &origin.url(&path));
    let blob = users.blob(ANN);
    let elsewhere = users.home(ANN).join("elsewhere");
    std::fs::write(&elsewhere, &body).unwrap();
    let folder = blob.parent().unwrap().to_owned();
    let fresh = || {
        let _ = std::fs::remove_dir_all(users.share(BOB, ""));
        let outcome = users.get(BOB, &origin.url(&path));
        assert_eq!(outcome.1, body);
        assert!(
            !outcome.0.stderr.contains("digest verified"),
            "{}",
            outcome.0.stderr
        );
    };
    std::fs::remove_file(&blob).unwrap();
    symlink(&elsewhere, &blob).unwrap();
    fresh();
    std::fs::remove_file(&blob).unwrap();
    nix::unistd::mkfifo(&blob, nix::sys::stat::Mode::S_IRWXU).unwrap();
    chown(&blob, Some(ANN), None).unwrap();
    fresh();
    // The whole folder of blobs is elsewhere.
    std::fs::remove_file(&blob).unwrap();
    std::fs::write(&blob, &body).unwrap();
    let moved = users.home(ANN).join("moved");
    std::fs::rename(users.share(ANN, "blobs"), &moved).unwrap();
    symlink(&moved, users.share(ANN, "blobs")).unwrap();
    assert!(folder.exists());
    fresh();
    assert_eq!(origin.bodies(&path), 4);
}

#[test]
fn folder_created_by_other_user_is_not_used() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, path, body) = publish_artifact();
    let trap = users.share(ANN, "");
    std::fs::create_dir(&trap).unwrap();
    chown(&trap, Some(BOB), Some(BOB)).unwrap();
    let (outcome, copy) = users.get(ANN, &origin.url(&path));
    outcome
        .logs("cannot use the cache")
        .logs("belongs to uid 20002");
    assert_eq!(copy, body);
    assert_eq!(std::fs::read_dir(&trap).unwrap().count(), 0);
    // A folder of the user's own that others can write to is rejected, too.
    chown(&trap, Some(ANN), Some(ANN)).unwrap();
    std::fs::set_permissions(&trap, PermissionsExt::from_mode(0o777)).unwrap();
    let (outcome, copy) = users.get(ANN, &origin.url(&path));
    outcome.logs("others can write to it");
    assert_eq!(copy, body);
    // A prefetch has nowhere to go.
    users.run(ANN, &[&origin.url(&path)]).exits(73);
}

#[test]
fn entry_of_root_is_used_when_own_folder_is_unusable() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, path, body) = publish_artifact();
    users.get(0, &origin.url(&path));
    std::fs::create_dir(users.share(ANN, "")).unwrap();
    chown(users.share(ANN, ""), Some(BOB), None).unwrap();
    origin.reset_counters();
    assert_eq!(users.get(ANN, &origin.url(&path)).1, body);
    assert_eq!(origin.connections(), 0);
}

#[test]
fn cache_directory_without_sticky_bit_is_rejected_with_remedy() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, path, body) = publish_artifact();
    users.set_mode(0o777);
    let (outcome, copy) = users.get(ANN, &origin.url(&path));
    outcome.logs("chmod +t");
    assert_eq!(copy, body);
    assert!(!users.share(ANN, "").exists());
}

#[test]
fn symlink_to_cache_is_followed_only_when_owned_by_root_or_caller() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, path, body) = publish_artifact();
    let link = users.host.path("link");
    symlink(users.host.cache(), &link).unwrap();
    let flag = format!("--cache-dir={}", link.display());
    let get = |uid: u32| -> CommandOutcome {
        let mut command = run_as(uid, users.program()).unwrap();
        users.host.set_clean_environment(&mut command);
        command.args([&origin.url(&path), "--copy-to=out", "--keep-free=0", &flag]);
        command.current_dir(users.home(uid));
        let outcome = CommandOutcome::from(command.output().unwrap()).exits(0);
        assert_eq!(std::fs::read(users.home(uid).join("out")).unwrap(), body);
        outcome
    };
    lchown(&link, Some(BOB), Some(BOB)).unwrap();
    for uid in [ANN, 0] {
        get(uid).logs("a symlink of uid 20002");
        assert!(!users.share(uid, "").exists());
    }
    for (owner, uid) in [(BOB, BOB), (0, ANN)] {
        lchown(&link, Some(owner), Some(owner)).unwrap();
        assert!(!get(uid).stderr.contains("symlink"));
        assert_eq!(every_file(&users.share(uid, "blobs")).len(), 1);
    }
}

#[test]
fn older_entry_of_root_does_not_replace_newer_own_entry() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, url) = (OriginServer::start(), "/static.bin");
    let url = origin.url(url);
    for (uid, text) in [(0, "first"), (ANN, "second"), (ANN, "third")] {
        origin.put("/static.bin", text);
        assert_eq!(users.get(uid, &url).1, text.as_bytes());
    }
    // But an object that root has already is not fetched.
    origin.put("/static.bin", "fourth");
    users.get(0, &url);
    origin.reset_counters();
    assert_eq!(users.get(ANN, &url).1, b"fourth");
    assert_eq!(origin.bodies("/static.bin"), 0);
}

#[test]
fn other_users_cannot_hold_lock_of_lone_user() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, path, _) = publish_artifact();
    users.get(ANN, &origin.url(&path));
    for lock in every_file(&users.share(ANN, "locks")) {
        let mode = lock.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600, "{}", lock.display());
    }
}

#[test]
fn stats_of_other_user_names_unreadable_parts() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, path, body) = publish_artifact();
    users.get(ANN, &origin.url(&path));
    let stats = |uid: u32| -> serde_json::Value {
        let outcome = users.run(uid, &["stats", "--json"]).exits(0);
        serde_json::from_str(&outcome.stdout).unwrap()
    };
    let (hers, his) = (stats(ANN), stats(BOB));
    for key in ["pex_root_bytes", "used_bytes", "total_bytes"] {
        assert!(hers[key].is_u64() && his[key].is_null(), "{key}: {his}");
    }
    assert_eq!(his["bytes"], body.len());
    let table = users.run(BOB, &["stats"]).exits(0).stdout;
    assert_eq!(table.matches("readable").count(), 3, "{table}");
    assert!(!users.run(ANN, &["stats"]).stdout.contains("readable"));
    // An unreadable folder holds an unknown number of artifacts, not none.
    std::fs::set_permissions(users.share(ANN, "blobs"), PermissionsExt::from_mode(0o700)).unwrap();
    let outcome = users.run(BOB, &["stats"]).exits(0);
    assert_eq!(outcome.stdout, "");
    outcome.logs("cannot read this user's share");
}

#[test]
fn gc_of_one_user_reports_that_total_bound_needs_root() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, path, _) = publish_artifact();
    users.get(ANN, &origin.url(&path));
    for (uid, warned) in [(ANN, true), (0, false)] {
        let outcome = users.run(uid, &["gc", "--total-max-size=1G"]).exits(0);
        assert_eq!(
            outcome.stderr.contains("--total-max-size has no effect"),
            warned,
            "{uid}"
        );
    }
}
