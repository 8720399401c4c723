//! Every s3cache command line of the two articles, run as quoted through bash, after a table of substitutions for
//! hosts, hashes and directories.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use hostkit_tests::bin;
use hostkit_tests::origin::OriginServer;
use hostkit_tests::tls::CertificateAuthority;

use super::{CacheHost, CommandOutcome};

/// The lines of part 2 in their order: three processes of the job `eightball`, and their template, whose line the
/// article wraps.
const QUOTED: [&str; 4] = [
    "s3cache https://<our-repo>/pex/eightball-SOMEGITHASH-trusty_x86_64.pex --cache-dir=/mnt/s3cache --copy-to=eightball-SOMEGITHASH-trusty_x86_64.pex --console --loglevel=debug --logstash_format && chmod 700 eightball-SOMEGITHASH-trusty_x86_64.pex",
    "s3cache https://<our-repo>:7443/pex/authproxy_server-ANOTHERGITHASH-trusty_x86_64.pex --cache-dir=/mnt/s3cache --copy-to=authproxy_server-ANOTHERGITHASH-trusty_x86_64.pex --console --loglevel=debug --logstash_format && chmod 700 authproxy_server-ANOTHERGITHASH-trusty_x86_64.pex",
    "s3cache https://<our-repo>:7443/pex/aurora-proxy-healthcheck-ATHIRDGITHASH-trusty_x86_64.pex --cache-dir=/mnt/s3cache --copy-to=aurora-proxy-healthcheck-ATHIRDGITHASH-trusty_x86_64.pex --console --loglevel=debug --logstash_format && chmod 700 aurora-proxy-healthcheck-ATHIRDGITHASH-trusty_x86_64.pex",
    "s3cache {{pex.bucket}}/{{pex.pexfile}}\n--cache-dir=/mnt/s3cache\n--copy-to={{pex.pexfile}}\n&& chmod 700 {{pex.pexfile}}",
];

/// Substitutions, in this order.
fn substitutions(host: &CacheHost, origin: &OriginServer) -> Vec<(&'static str, String)> {
    let server = format!("127.0.0.1:{}", origin.port());
    vec![
        ("\n", " ".to_owned()),
        ("{{pex.bucket}}", "https://<our-repo>/pex".to_owned()),
        (
            "{{pex.pexfile}}",
            "{{appname}}-{{githash}}-{{arch}}.pex".to_owned(),
        ),
        ("{{appname}}", "annotation_service".to_owned()),
        ("{{githash}}", "SOMEGITHASH".to_owned()),
        ("{{arch}}", "trusty_x86_64".to_owned()),
        ("<our-repo>:7443", server.clone()),
        ("<our-repo>", server),
        (
            "SOMEGITHASH",
            "1f0c3a7e5d2b4968a0c1e3f5d7b9082645caefb1".to_owned(),
        ),
        (
            "ANOTHERGITHASH",
            "2b9d8e7f6a5c4b3d2e1f0a9b8c7d6e5f4a3b2c1d".to_owned(),
        ),
        (
            "ATHIRDGITHASH",
            "3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f".to_owned(),
        ),
        ("/mnt/s3cache", host.cache().display().to_string()),
    ]
}

/// Runs a line as thermos does: by bash, in the sandbox.
fn bash(host: &CacheHost, authority: &CertificateAuthority, line: &str) -> CommandOutcome {
    let tools = bin("s3cache");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories =
        std::iter::once(tools.parent().unwrap().to_owned()).chain(std::env::split_paths(&path));
    let mut bash: Command = host.program("bash");
    bash.args(["-c", line])
        .env("PATH", std::env::join_paths(directories).unwrap())
        .env("HOSTKIT_S3CACHE_CA_FILE", authority.ca());
    bash.output().unwrap().into()
}

#[test]
fn every_quoted_command_installs_its_program_cold_and_warm() {
    let authority = CertificateAuthority::new();
    let (host, origin) = (CacheHost::new(), OriginServer::start_tls(&authority));
    for quoted in QUOTED {
        let line = substitutions(&host, &origin)
            .iter()
            .fold(quoted.to_owned(), |line, (from, to)| line.replace(from, to));
        let file = line.rsplit(' ').next().unwrap();
        let url = format!("/pex/{file}");
        // A program, as our own tools are published: a pex need not be a zip.
        let program = [b"\x7fELF", file.as_bytes()].concat();
        origin.put(&url, program.clone());
        for run in ["cold", "warm"] {
            let outcome = bash(&host, &authority, &line).exits(0);
            assert_eq!(host.read(file), program, "{run}: {line}");
            let mode = host.path(file).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o700, "{run}: {line}");
            assert_eq!(outcome.stdout, "", "{run}: {line}");
            if line.contains("--logstash_format") {
                is_logstash(&outcome.stderr, run);
            }
        }
        assert_eq!(origin.bodies(&url), 1, "{line}");
    }
}

/// Asserts that a log is one logstash v1 object per line, including debug lines.
#[track_caller]
fn is_logstash(log: &str, run: &str) {
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for line in &lines {
        assert_eq!(line["@version"], "1", "{line}");
        assert!(
            line["@timestamp"].is_string() && line["message"].is_string(),
            "{line}"
        );
    }
    assert!(
        lines.iter().any(|line| line["message"] == "fetch finished"),
        "{log}"
    );
    let debug = lines.iter().any(|line| line["level"] == "DEBUG");
    assert!(debug || run == "warm", "{log}");
}

#[test]
fn failed_fetch_does_not_reach_chmod() {
    let authority = CertificateAuthority::new();
    let (host, origin) = (CacheHost::new(), OriginServer::start_tls(&authority));
    let line = substitutions(&host, &origin)
        .iter()
        .fold(QUOTED[0].to_owned(), |line, (from, to)| {
            line.replace(from, to)
        });
    let outcome = bash(&host, &authority, &line).exits(66);
    is_logstash_failure(&outcome.stderr);
}

/// Asserts that a failure too is a JSON line.
#[track_caller]
fn is_logstash_failure(log: &str) {
    let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(last["exit_code"], 66, "{last}");
    assert!(!log.contains("chmod"), "{log}");
}
