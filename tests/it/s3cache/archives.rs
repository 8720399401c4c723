//! Archives: corrupt ones are not cached, those that the tools accept pass, and an intact one that is rejected stays
//! cached.

use std::fs;

use hostkit_tests::eightball::build_zipapp;
use hostkit_tests::nginx::NginxServer;
use hostkit_tests::or_skip;
use hostkit_tests::origin::OriginServer;
use hostkit_tests::tls::CertificateAuthority;

use super::CacheHost;

const ARCHIVE: &str = "/pex/job-1.2.tar";

#[test]
fn unreadable_archives_are_rejected() {
    let host = CacheHost::new();
    let Some(()) = or_skip("zipapps", build_zipapp(&host.path("whole"))) else {
        return;
    };
    let whole = host.read("whole");
    let origin = OriginServer::start();
    let get = |name: &str, body: &[u8]| {
        origin.put(name, body.to_vec());
        CacheHost::new().s3cache([origin.url(name)])
    };
    for extension in ["pex", "jar"] {
        let name = |what: &str| format!("/{what}-1.2.{extension}");
        get(&name("whole"), &whole).exits(0);
        get(
            &name("elf"),
            &fs::read(hostkit_tests::bin("s3cache")).unwrap()[..100_000],
        )
        .exits(0);
        get(&name("short"), &whole[..whole.len() - 10])
            .exits(65)
            .logs("readable");
        // As java and Python do: they search the zip directory within the last 64 KiB.
        for length in [1, 60_000] {
            get(
                &name(&format!("padded{length}")),
                &[whole.clone(), vec![b'x'; length]].concat(),
            )
            .exits(0);
        }
        get(&name("page"), b"<html>Sign in</html>").exits(65);
        get(&name("empty"), b"").exits(65);
    }
    get("/page-1.2.txt", b"<html>Sign in</html>").exits(0);
}

#[test]
fn corrupt_tar_or_gzip_is_not_cached_and_valid_one_is_fetched_later() {
    let host = CacheHost::new();
    let script = "mkdir d && seq 300000 >d/a && seq 3 >d/z && tar cf a.tar d && gzip -k a.tar && gzip -c d/a >a.gz";
    let made = host.program("bash").args(["-c", script]).status();
    assert!(made.unwrap().success());
    let [tar, tgz, gz] = ["a.tar", "a.tar.gz", "a.gz"].map(|name| host.read(name));
    let origin = OriginServer::start();
    let flipped = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    for (name, whole, broken) in [
        ("/cut-1.2.tar", &tar, tar[..tar.len() / 2].to_vec()),
        ("/header-1.2.tar", &tar, flipped(&tar, 512)),
        ("/page-1.2.tar", &tar, b"<html>Sign in</html>".to_vec()),
        ("/flipped-1.2.tar.gz", &tgz, flipped(&tgz, tgz.len() / 2)),
        ("/cut-1.2.tgz", &tgz, tgz[..tgz.len() - 4].to_vec()),
        ("/cut-1.2.txt.gz", &gz, gz[..gz.len() - 1].to_vec()),
        ("/flipped-1.2.txt.gz", &gz, flipped(&gz, gz.len() - 5)),
        ("/decoded-1.2.txt.gz", &gz, b"1\n2\n3\n".to_vec()),
    ] {
        let url = origin.url(name);
        let get = |host: &CacheHost| host.s3cache([&url, "--part-size=64K", "--connections=4"]);
        origin.put(name, broken);
        get(&host).exits(65).logs(&url).logs("is not a readable");
        host.s3cache([&url, "--offline"]).exits(69);
        // Nor is it copied when the cache has no room, or published.
        let past = host.s3cache([&url, "--copy-to=past", "--max-size=1"]);
        past.exits(65);
        assert!(!host.path("past").exists(), "{name}");
        origin.put(name, whole.clone());
        get(&host).exits(0);
        host.s3cache([&url, "--offline", "--copy-to=out"]).exits(0);
        assert!(host.read("out") == *whole, "{name}");
    }
    fs::write(host.path("cut.tgz"), &tgz[..tgz.len() - 4]).unwrap();
    let dest = format!("file://{}", host.path("repo/cut-1.2.tgz").display());
    host.s3cache(["put", "cut.tgz", &dest])
        .exits(65)
        .logs("is not a readable")
        .logs("nothing was published");
}

#[test]
fn gzip_file_arrives_as_it_is_published() {
    let root = tempfile::tempdir().unwrap();
    let made = "seq 1000 >words.txt && gzip -k words.txt && tar czf words.tgz words.txt";
    let mut bash = std::process::Command::new("bash");
    let made = bash.args(["-c", made]).current_dir(root.path()).status();
    assert!(made.unwrap().success());
    let labelled = "add_header Content-Encoding gzip; gzip on; gzip_types *; gzip_min_length 1;";
    for extra in ["", labelled] {
        let served = NginxServer::start_with(&CertificateAuthority::new(), root.path(), extra);
        let Some(nginx) = or_skip("nginx", served) else {
            return;
        };
        for name in ["words.txt.gz", "words.tgz"] {
            let host = CacheHost::new();
            let url = nginx.url(&format!("/{name}"));
            host.s3cache([&url, "--copy-to=out"]).exits(0);
            assert!(
                host.read("out") == fs::read(root.path().join(name)).unwrap(),
                "{name}"
            );
            host.s3cache([&url, "--unpack-to=words"]).exits(0);
            assert!(
                host.read("words/words.txt").starts_with(b"1\n2\n"),
                "{name}"
            );
        }
    }
}

#[test]
fn intact_archive_that_is_rejected_stays_cached() {
    let host = CacheHost::new();
    let script = "echo x >a && ln -s /etc/passwd l && tar cf bad.tar a l";
    let made = host.program("bash").args(["-c", script]).status();
    assert!(made.unwrap().success());
    let origin = OriginServer::start();
    origin.put(ARCHIVE, host.read("bad.tar"));
    let url = origin.url(ARCHIVE);
    host.s3cache([&url]).exits(0);
    for more in [[].as_slice(), &["--revalidate"], &["--offline"]] {
        let args = [url.as_str(), "--unpack-to=out"];
        let outcome = host.s3cache(args.iter().chain(more)).exits(65);
        assert!(
            !outcome.stderr.contains("again"),
            "{more:?}: {}",
            outcome.stderr
        );
    }
    assert_eq!(origin.bodies(ARCHIVE), 1);
    host.s3cache([&url, "--offline"]).exits(0);
}

#[test]
fn unpacking_of_hostile_archive_ends_at_deadline() {
    let host = CacheHost::new();
    // Chains of links that are just short enough, each with detours: millions of names to look up.
    let script = "detour=$(printf 'd/../%.0s' {1..800}); for at in {0..227}; do \
        [ $((at % 38)) = 37 ] && to=. || to=${detour}l$((at + 1)); ln -s $to l$at; done; tar cf a-1.2.tar l* && rm l*";
    let made = host.program("bash").args(["-c", script]).status();
    assert!(made.unwrap().success());
    let url = format!("file://{}", host.path("a-1.2.tar").display());
    host.s3cache([&url]).exits(0);
    host.s3cache([&url, "--unpack-to=out", "--timeout=500ms"])
        .exits(75)
        .logs(&format!(
            "{url}: not finished within 500ms: try again, or raise --timeout"
        ));
    let left = std::fs::read_dir(host.sandbox()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["a-1.2.tar"]);
}
