//! Whether the bytes are the right ones: digests, stamps of cached blobs, bit rot.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hostkit_tests::origin::{OriginFault, OriginServer};
use hostkit_tests::s3::S3Server;

use super::{CacheHost, bytes, every_file, sha256};

const PATH: &str = "/pex/job-1.2.bin";
const SIDECAR: &str = "/pex/job-1.2.bin.sha256";

/// An origin with an artifact, a host, and the artifact's URL.
fn start(body: &[u8]) -> (CacheHost, OriginServer, String) {
    let origin = OriginServer::start();
    origin.put(PATH, body.to_vec());
    let url = origin.url(PATH);
    (CacheHost::new(), origin, url)
}

fn count_requests(origin: &OriginServer, path: &str) -> usize {
    origin
        .requests()
        .iter()
        .filter(|request| request.path == path)
        .count()
}

/// The files of the cache in a folder such as `blobs`.
fn files(host: &CacheHost, folder: &str) -> Vec<PathBuf> {
    let files = every_file(&host.cache()).into_iter();
    files
        .filter(|file| file.components().any(|part| part.as_os_str() == folder))
        .collect()
}

/// Changes one byte of a cached blob, and keeps its times.
fn corrupt_byte(blob: &Path) {
    let before = fs::metadata(blob).unwrap();
    fs::set_permissions(blob, Permissions::from_mode(0o755)).unwrap();
    let file = File::options().read(true).write(true).open(blob).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5).unwrap();
    file.write_all_at(&[!byte[0]], 5).unwrap();
    fs::set_permissions(blob, before.permissions()).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
}

#[test]
fn requested_digest_is_compared_in_any_letter_case() {
    let (host, _origin, url) = start(b"the build");
    let digest = sha256(b"the build");
    let wrong = sha256(b"another");
    host.s3cache([&url, "--copy-to=out", &format!("--sha256={wrong}")])
        .exits(65)
        .logs(&format!("{wrong} (by --sha256)"))
        .logs(&digest);
    assert!(files(&host, "blobs").is_empty());
    host.s3cache([&url, "--offline"]).exits(69);
    let upper = format!("--sha256={}", digest.to_uppercase());
    host.s3cache([&url, "--copy-to=out", &upper]).exits(0);
    assert_eq!(host.read("out"), b"the build");
}

#[test]
fn sidecar_is_accepted_bare_or_in_sha256sum_format() {
    let digest = sha256(b"the build");
    for text in [
        digest.clone(),
        format!("{digest}\n"),
        format!("{digest}  job-1.2.bin\n"),
        format!("{}  other\n{digest} *dist/job-1.2.bin\n", sha256(b"x")),
    ] {
        let (host, origin, url) = start(b"the build");
        origin.put(SIDECAR, text.clone());
        host.s3cache([&url]).exits(0);
        let listed = host.s3cache(["ls", "--json"]).exits(0).stdout;
        assert!(
            listed.contains(r#""verified_by":"sidecar""#),
            "{text:?}: {listed}"
        );
    }
}

#[test]
fn sidecar_of_other_build_is_65_in_every_format() {
    let wrong = sha256(b"another build");
    for text in [wrong.clone(), format!("{wrong}  job-1.2.bin\n")] {
        let (host, origin, url) = start(b"the build");
        origin.put(SIDECAR, text);
        host.s3cache([&url, "--copy-to=out"])
            .exits(65)
            .logs("(by its sidecar)");
        assert!(files(&host, "blobs").is_empty() && !host.path("out").exists());
    }
}

#[test]
fn missing_sidecar_is_accepted_and_unknown_format_fails_fetch() {
    for (code, exit) in [
        (404, 0),
        (410, 0),
        (403, 0),
        (401, 77),
        (500, 69),
        (503, 69),
    ] {
        let (host, origin, url) = start(b"the build");
        origin.fault(
            SIDECAR,
            OriginFault::Status {
                code,
                retry_after: None,
            },
        );
        let outcome = host.s3cache([&url, "--copy-to=out"]).exits(exit);
        assert_eq!(host.path("out").exists(), exit == 0, "{code}");
        assert_eq!(files(&host, "blobs").is_empty(), exit != 0, "{code}");
        if exit != 0 {
            let outcome = outcome.logs(SIDECAR);
            let later = format!("server returned {code}: try again later");
            assert_eq!(
                outcome.stderr.contains(&later),
                code >= 500,
                "{}",
                outcome.stderr
            );
        }
    }
    let (host, origin, url) = start(b"the build");
    origin.fault(SIDECAR, OriginFault::Latency(Duration::from_secs(60)));
    host.s3cache([&url, "--copy-to=out", "--stall-timeout=100ms"])
        .exits(69)
        .logs(SIDECAR);
}

#[test]
fn sidecar_is_requested_once_per_fetch_and_never_on_hit() {
    let (host, origin, url) = start(b"the build");
    host.s3cache([&url]).exits(0);
    host.s3cache([&url]).exits(0);
    assert_eq!(count_requests(&origin, SIDECAR), 1);
    let digest = format!("--sha256={}", sha256(b"the build"));
    CacheHost::new().s3cache([&url, &digest]).exits(0);
    assert_eq!(
        count_requests(&origin, SIDECAR),
        1,
        "the flag names the digest already"
    );
}

#[test]
fn checksum_stored_by_s3_is_compared() {
    let (host, s3) = (CacheHost::new(), S3Server::start());
    s3.create_bucket("builds");
    fs::write(host.path("made"), bytes(100_000, 1)).unwrap();
    host.s3cache_env(["put", "made", "builds/job-1.2.bin"], &s3.env())
        .exits(0);
    let stored = s3.dir().join("builds/job-1.2.bin");
    // Without the sidecar only S3 itself has a checksum.
    fs::remove_file(s3.dir().join("builds/job-1.2.bin.sha256")).unwrap();
    let mut rotten = fs::read(&stored).unwrap();
    rotten[50_000] ^= 1;
    fs::write(&stored, &rotten).unwrap();
    host.s3cache_env(["builds/job-1.2.bin", "--copy-to=out"], &s3.env())
        .exits(65)
        .logs("by S3")
        .logs(&sha256(&rotten));
    assert!(files(&host, "blobs").is_empty());
}

#[test]
fn touched_blob_is_verified_once_and_stays_hit() {
    let (host, origin, url) = start(&bytes(100_000, 1));
    host.s3cache([&url]).exits(0);
    origin.reset_counters();
    let blob = &files(&host, "blobs")[0];
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_000_000);
    File::open(blob).unwrap().set_modified(old).unwrap();
    let reread = "stamp changed";
    host.s3cache([&url, "--copy-to=out", "--loglevel=debug"])
        .exits(0)
        .logs(reread);
    let third = host
        .s3cache([&url, "--copy-to=out", "--loglevel=debug"])
        .exits(0);
    assert!(!third.stderr.contains(reread), "{}", third.stderr);
    assert_eq!(origin.connections(), 0);
}

#[test]
fn corrupt_blob_is_quarantined_logged_and_fetched_again() {
    let body = bytes(100_000, 1);
    let (host, origin, url) = start(&body);
    host.s3cache([&url]).exits(0);
    corrupt_byte(&files(&host, "blobs")[0]);
    host.s3cache([&url, "--copy-to=out"])
        .exits(0)
        .logs("corrupt")
        .logs("quarantined")
        .logs(&url);
    assert!(host.read("out") == body);
    assert_eq!(origin.bodies(PATH), 2);
    let aside = files(&host, "partial")
        .into_iter()
        .filter(|file| file.extension().is_some_and(|e| e == "bad"));
    assert_eq!(aside.count(), 1, "the corrupt blob is in quarantine");
    host.s3cache([&url]).exits(0);
    assert_eq!(origin.bodies(PATH), 2);
}

#[test]
fn corrupt_copy_offline_is_65_and_then_missing() {
    let (host, _origin, url) = start(&bytes(100_000, 1));
    host.s3cache([&url]).exits(0);
    corrupt_byte(&files(&host, "blobs")[0]);
    let outcome = host.s3cache([&url, "--offline", "--copy-to=out"]).exits(65);
    outcome
        .logs("quarantined")
        .logs(&url)
        .logs("without --offline");
    assert!(!host.path("out").exists());
    host.s3cache([&url, "--offline"])
        .exits(69)
        .logs("not in the cache");
}

#[test]
fn shorter_or_missing_blob_is_fetched_again() {
    let (host, origin, url) = start(&bytes(100_000, 1));
    host.s3cache([&url]).exits(0);
    let blob = files(&host, "blobs")[0].clone();
    fs::set_permissions(&blob, Permissions::from_mode(0o755)).unwrap();
    File::options()
        .write(true)
        .open(&blob)
        .unwrap()
        .set_len(99_999)
        .unwrap();
    host.s3cache([&url]).exits(0).logs("corrupt");
    fs::remove_file(&blob).unwrap();
    host.s3cache([&url]).exits(0);
    assert_eq!(origin.bodies(PATH), 3);
}

#[test]
fn verify_detects_corruption_with_unchanged_times() {
    let (host, origin, url) = start(&bytes(100_000, 1));
    origin.put("/good-1.2.bin", "good");
    host.s3cache([&url]).exits(0);
    host.s3cache([origin.url("/good-1.2.bin")]).exits(0);
    assert_eq!(
        host.s3cache(["verify"]).exits(0).stdout,
        "2 ok, 0 corrupt, 97.7 KiB read\n"
    );
    let blobs = files(&host, "blobs");
    let bad = blobs
        .iter()
        .find(|blob| blob.ends_with("job-1.2.bin"))
        .unwrap();
    corrupt_byte(bad);
    let outcome = host.s3cache(["verify"]).exits(65);
    assert!(
        outcome
            .stdout
            .contains(&format!("corrupt {} {url}", sha256(&bytes(100_000, 1)))),
        "{}",
        outcome.stdout
    );
    assert!(
        outcome.stdout.ends_with("1 ok, 1 corrupt, 97.7 KiB read\n"),
        "{}",
        outcome.stdout
    );
    host.s3cache(["verify"]).exits(0);
    host.s3cache([&url]).exits(0);
    assert_eq!(origin.bodies(PATH), 2);
}

#[test]
fn verify_reads_blobs_with_matching_stamp() {
    let (host, _origin, url) = start(&bytes(1000, 1));
    host.s3cache([&url]).exits(0);
    let (blob, index) = (&files(&host, "blobs")[0], &files(&host, "index")[0]);
    corrupt_byte(blob);
    // As if the disk itself had rotted: the recorded stamp is that of the file now.
    let found = fs::metadata(blob).unwrap();
    let mut entry: serde_json::Value = serde_json::from_slice(&fs::read(index).unwrap()).unwrap();
    entry["stamp"]["ctime"] = serde_json::json!([found.ctime(), found.ctime_nsec()]);
    fs::write(index, entry.to_string()).unwrap();
    let hit = host
        .s3cache([&url, "--copy-to=out", "--loglevel=debug"])
        .exits(0);
    assert!(
        !hit.stderr.contains("stamp"),
        "the premise holds: {}",
        hit.stderr
    );
    host.s3cache(["verify"]).exits(65);
}

#[test]
fn verify_reads_and_counts_blob_of_several_sources_once() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    for path in ["/x/a-1.2", "/y/a-1.2", "/x/b-1.2"] {
        origin.put(path, bytes(100_000, 1));
        host.s3cache([origin.url(path)]).exits(0);
    }
    let outcome = host.s3cache(["verify"]).exits(0);
    assert_eq!(outcome.stdout, "1 ok, 0 corrupt, 97.7 KiB read\n");
    corrupt_byte(&files(&host, "blobs")[0]);
    let outcome = host
        .s3cache(["verify"])
        .exits(65)
        .logs("1 cached artifact was corrupt");
    assert_eq!(
        outcome.stdout.matches("corrupt ").count(),
        3,
        "{}",
        outcome.stdout
    );
    assert!(
        outcome.stdout.ends_with("0 ok, 1 corrupt, 97.7 KiB read\n"),
        "{}",
        outcome.stdout
    );
}
