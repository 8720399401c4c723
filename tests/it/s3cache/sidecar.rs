//! The digest published beside an artifact: in the formats of the usual tools, in an unknown format, as an HTML page in
//! place of a missing one, and on sites that require it.

use std::fs;
use std::process::Command;

use hostkit_tests::nginx::NginxServer;
use hostkit_tests::origin::OriginServer;
use hostkit_tests::tls::CertificateAuthority;
use hostkit_tests::{find_program, or_skip};
use tempfile::TempDir;

use super::{CacheHost, sha256};

const PATH: &str = "/pex/job-1.2.bin";
const SIDECAR: &str = "/pex/job-1.2.bin.sha256";

/// A web server that answers 200 with a page for missing files, as many single-page sites do.
fn nginx(root: &TempDir) -> Option<NginxServer> {
    fs::write(
        root.path().join("page.html"),
        format!("<html>{}", sha256(b"x")),
    )
    .unwrap();
    let page = "error_page 404 =200 /page.html;";
    or_skip(
        "nginx",
        NginxServer::start_with(&CertificateAuthority::new(), root.path(), page),
    )
}

#[test]
fn digest_written_by_real_tools_is_accepted_for_any_name() {
    let root = TempDir::new().unwrap();
    let Some(nginx) = nginx(&root) else { return };
    for (name, in_url) in [
        ("job-1.2.bin", "job-1.2.bin"),
        ("büro (a b)-1.2.bin", "b%C3%BCro%20(a%20b)-1.2.bin"),
    ] {
        fs::write(root.path().join(name), "the build").unwrap();
        for tool in [
            "sha256sum \"$1\"",
            "sha256sum -b \"./$1\"",
            "sha256sum --tag \"$1\"",
            "openssl dgst -sha256 \"$1\"",
            "openssl dgst -sha256 -c \"$1\"",
            "sha256sum <\"$1\"",
            "sha256sum page.html \"$1\" | LC_ALL=C sed 's/^[0-9a-f]*/\\U&/; s/$/\\r/; 1s/^/\\xef\\xbb\\xbf/'",
        ] {
            if tool.starts_with("openssl") && or_skip("openssl", find_program("openssl")).is_none()
            {
                continue;
            }
            let made = Command::new("bash")
                .args([
                    "-c",
                    &format!("set -e -o pipefail; {tool} >\"$1.sha256\""),
                    "-",
                    name,
                ])
                .current_dir(root.path())
                .status()
                .unwrap();
            assert!(made.success(), "{tool}");
            let host = CacheHost::new();
            host.s3cache([nginx.url(&format!("/{in_url}"))]).exits(0);
            let listed = host.s3cache(["ls", "--json"]).exits(0).stdout;
            assert!(
                listed.contains(r#""verified_by":"sidecar""#),
                "{name} {tool}: {listed}"
            );
        }
    }
}

#[test]
fn html_page_in_place_of_sidecar_counts_as_missing() {
    let root = TempDir::new().unwrap();
    let Some(nginx) = nginx(&root) else { return };
    fs::write(root.path().join("job-1.2.bin"), "the build").unwrap();
    let (host, url) = (CacheHost::new(), nginx.url("/job-1.2.bin"));
    host.s3cache([url.as_str(), "--copy-to=out"]).exits(0);
    assert_eq!(host.read("out"), b"the build");
    CacheHost::new()
        .s3cache([url.as_str(), "--require-sidecar"])
        .exits(65)
        .logs("job-1.2.bin.sha256");
}

#[test]
fn sidecar_of_unknown_format_is_65() {
    let ours = sha256(b"the build");
    for text in [
        "d41d8cd98f00b204e9800998ecf8427e  job-1.2.bin\n".to_owned(),
        format!("SHA512 (job-1.2.bin) = {ours}{ours}\n"),
        format!("{ours}  other.bin\n"),
        format!("{ours}\n{}\n", sha256(b"x")),
        format!("{ours}\n{}", " ".repeat(64 << 10)),
        "x".repeat(10 << 20),
    ] {
        let (host, origin) = (CacheHost::new(), OriginServer::start());
        origin.put(PATH, "the build");
        origin.put(SIDECAR, text.clone());
        host.s3cache([&origin.url(PATH), "--copy-to=out"])
            .exits(65)
            .logs(&origin.url(SIDECAR))
            .logs("sha256sum");
        assert!(!host.path("out").exists(), "{:.80}", text);
        let digest = format!("--sha256={ours}");
        host.s3cache([&origin.url(PATH), &digest]).exits(0);
    }
}

#[test]
fn required_sidecar_is_requested_until_verified() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put(PATH, "the build");
    let url = origin.url(PATH);
    fs::write(host.path("s3cache.yaml"), "require-sidecar: true\n").unwrap();
    let in_file = "--config=s3cache.yaml";
    let ours = sha256(b"the build");
    host.s3cache([&url, in_file])
        .exits(65)
        .logs("artifact has no sidecar")
        .logs(SIDECAR)
        .logs("put");
    host.s3cache([&url, in_file, "--require-sidecar=no"])
        .exits(0);
    let off = ["HOSTKIT_S3CACHE_REQUIRE_SIDECAR", "false"].map(str::to_owned);
    host.s3cache_env([&url, in_file], &[off.into()]).exits(0);
    // Cached, but no sidecar confirms it.
    host.s3cache([&url, "--require-sidecar"])
        .exits(65)
        .logs(SIDECAR);
    host.s3cache([&url, in_file, "--offline"])
        .exits(69)
        .logs("sidecar");
    host.s3cache([&url, in_file, &format!("--sha256={ours}")])
        .exits(0);
    origin.put(SIDECAR, sha256(b"another build"));
    host.s3cache([&url, in_file])
        .exits(65)
        .logs("(by its sidecar)");
    origin.put(SIDECAR, ours);
    host.s3cache([&url, in_file, "--copy-to=out"]).exits(0);
    assert_eq!(host.read("out"), b"the build");
    origin.reset_counters();
    host.s3cache([&url, in_file]).exits(0);
    host.s3cache([&url, in_file, "--offline"]).exits(0);
    assert_eq!(origin.connections(), 0, "the sidecar was verified");
}
