//! The real servers: each answers, and rejects what it should.

use std::path::Path;
use std::process::Command;

use hostkit_tests::eightball::{PexLayout, build_jar, build_pex, build_zipapp};
use hostkit_tests::nginx::NginxServer;
use hostkit_tests::origin::{OriginFault, OriginServer};
use hostkit_tests::s3::S3Server;
use hostkit_tests::thermos::{ProcessState, TaskRunner, ThermosProcess, ThermosTask};
use hostkit_tests::tls::CertificateAuthority;
use hostkit_tests::{TOOLS, bin, is_installed, or_skip, skip, wait_until};
use tempfile::TempDir;

use super::talk;

/// Runs curl; returns its exit code and stdout.
fn curl(ca: &Path, rest: &[&str]) -> (i32, String) {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20", "--cacert"])
        .arg(ca)
        .args(rest)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code().unwrap(), text)
}

#[test]
fn s3_rejects_unsigned_requests() {
    let s3 = S3Server::start();
    s3.create_bucket("artifacts");
    let port = s3.endpoint().rsplit_once(':').unwrap().1.parse().unwrap();
    let seen = talk(port, "GET", "/artifacts/a.pex", &[]);
    assert_eq!(seen.code, 403, "{}", String::from_utf8_lossy(&seen.body));
    assert_eq!(s3.requests(), ["GET /artifacts/a.pex"]);
}

#[test]
fn s3_stores_objects_signed_with_its_key() {
    if !is_installed("curl") {
        return skip("curl", "not installed");
    }
    let s3 = S3Server::start();
    s3.create_bucket("artifacts");
    let url = format!("{}/artifacts/a.pex", s3.endpoint());
    let sign = |key: &str, rest: &[&str]| {
        let user = format!("{}:{key}", s3.access_key());
        let mut args = vec!["--aws-sigv4", "aws:amz:us-east-1:s3", "--user", &user];
        args.extend(["--header", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]);
        args.extend(["--output", "-", "--write-out", "%{http_code}"]);
        args.extend(rest);
        args.push(&url);
        curl(Path::new("/dev/null"), &args).1
    };
    assert_eq!(
        sign(
            s3.secret_key(),
            &["--request", "PUT", "--data-binary", "hello"]
        ),
        "200"
    );
    assert_eq!(sign(s3.secret_key(), &[]), "hello200");
    assert!(sign("wrong", &[]).ends_with("403"));
    assert_eq!(
        std::fs::read(s3.dir().join("artifacts/a.pex")).unwrap(),
        b"hello"
    );
}

#[test]
fn tls_certificate_is_trusted_only_by_its_authority() {
    if !is_installed("curl") {
        return skip("curl", "not installed");
    }
    let good = CertificateAuthority::new();
    let origin = OriginServer::start_tls(&good);
    origin.put("/a", "hello");
    assert_eq!(
        curl(&good.ca(), &[&origin.url("/a")]),
        (0, "hello".to_owned())
    );
    let untrusted = 60;
    assert_eq!(
        curl(&CertificateAuthority::new().ca(), &[&origin.url("/a")]).0,
        untrusted
    );
    for bad in [
        CertificateAuthority::expired(),
        CertificateAuthority::wrong_name(),
    ] {
        assert_eq!(
            curl(&bad.ca(), &[&OriginServer::start_tls(&bad).url("/a")]).0,
            untrusted
        );
    }
}

#[test]
fn mutual_tls_requires_client_certificate() {
    if !is_installed("curl") {
        return skip("curl", "not installed");
    }
    let authority = CertificateAuthority::new();
    let origin = OriginServer::start_mutual_tls(&authority);
    origin.put("/a", vec![7; 100_000]);
    origin.fault("/a", OriginFault::Truncate(70_000));
    let (client, key) = (authority.client(), authority.client_key());
    let identity = [
        "--cert",
        client.to_str().unwrap(),
        "--key",
        key.to_str().unwrap(),
    ];
    let count = [
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code} %{size_download}",
    ];
    let url = origin.url("/a");
    let args: Vec<&str> = identity
        .into_iter()
        .chain(count)
        .chain([url.as_str()])
        .collect();
    let (code, text) = curl(&authority.ca(), &args);
    assert_eq!(text, "200 70000");
    assert_ne!(code, 0, "a cut body is an error");
    assert_ne!(curl(&authority.ca(), &[&url]).0, 0);
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn nginx_serves_ranges_over_tls() {
    let (authority, root) = (CertificateAuthority::new(), TempDir::new().unwrap());
    std::fs::write(root.path().join("a.pex"), "0123456789").unwrap();
    let started = NginxServer::start_limited(&authority, root.path(), "40m");
    let Some(nginx) = or_skip("nginx", started) else {
        return;
    };
    let part = curl(
        &authority.ca(),
        &["--range", "2-4", "--tlsv1.3", &nginx.tls_url("/a.pex")],
    );
    assert_eq!(part, (0, "234".to_owned()));
    assert_eq!(
        curl(&authority.ca(), &[&nginx.url("/a.pex")]),
        (0, "0123456789".to_owned())
    );
    wait_until("both are in the access log", || nginx.requests().len() == 2);
    assert_eq!(
        nginx.requests(),
        ["GET /a.pex 206 3 bytes=2-4", "GET /a.pex 200 10 -"]
    );
}

#[test]
fn eightball_zipapp_answers_under_thermos() {
    let temp = TempDir::new().unwrap();
    let zipapp = temp.path().join("eightball.pex");
    let Some(()) = or_skip("python3", build_zipapp(&zipapp)) else {
        return;
    };
    let cmdline = format!(
        "exec {} --port={{{{thermos.ports[private]}}}} --memcache_servers=a:11211,b:11211 --history_host{{x}} \
         --workers=34 --console --logstash_format=True --logstash_tags=eight_ball",
        zipapp.display()
    );
    let process = ThermosProcess::new("eightball", &cmdline);
    let mut task = TaskRunner::start(ThermosTask::new("eightball").process(process), temp.path());
    let port = task.port("private");
    wait_until("the zipapp listens", || {
        task.log("eightball", 0, "stderr")
            .contains(&format!("listening on {port}\n"))
    });
    let get = |path: &str| {
        let seen = talk(port, "GET", path, &[]);
        assert_eq!(
            seen.header("content-length"),
            Some(seen.body.len().to_string().as_str())
        );
        (
            seen.code,
            serde_json::from_slice::<serde_json::Value>(&seen.body).unwrap(),
        )
    };
    let (code, shaken) = get("/shake/?question=will+it+run");
    assert_eq!(
        (code, shaken["question"].as_str()),
        (200, Some("will it run"))
    );
    assert_eq!(
        get("/shake/?question=will+it+run").1,
        shaken,
        "the same question, the same answer"
    );
    assert!(
        get("/answers/").1["answers"]
            .as_array()
            .unwrap()
            .contains(&shaken["answer"])
    );
    assert_eq!(get("/history/").1["history"].as_array().unwrap().len(), 2);
    assert_eq!(get("/private/stats/").1["requests"]["/shake/"], 2);
    assert_eq!(get("/nowhere").0, 404);
    let log = task.log("eightball", 0, "stderr");
    let line: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(
        (line["status"].as_i64(), line["tags"][0].as_str()),
        (Some(404), Some("eight_ball"))
    );
    task.stop();
    assert_eq!(
        task.state("eightball"),
        ProcessState::Done,
        "SIGTERM is exit 0"
    );
}

#[test]
fn built_pexes_and_jars_run() {
    let temp = TempDir::new().unwrap();
    for kind in [PexLayout::Plain, PexLayout::WithSix, PexLayout::Venv] {
        let pex = temp.path().join("eightball.pex");
        let Some(()) = or_skip("pex", build_pex(&pex, kind)) else {
            continue;
        };
        let help = Command::new(&pex)
            .arg("--help")
            .env("PEX_ROOT", temp.path())
            .output()
            .unwrap();
        assert!(
            String::from_utf8_lossy(&help.stdout).contains("--series_daily_host"),
            "{help:?}"
        );
    }
    let jar = temp.path().join("hello.jar");
    let Some(()) = or_skip("jdk", build_jar(&jar)) else {
        return;
    };
    let message = Command::new("java")
        .args(["-Dprobe=x", "-jar"])
        .arg(&jar)
        .args(["a", "b c"])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&message.stdout),
        "a\nb c\nprobe=x\n"
    );
}

#[test]
fn tools_are_built_in_profile_directory_of_tests() {
    for tool in TOOLS {
        let message = Command::new(bin(tool)).arg("--version").output().unwrap();
        assert!(message.status.success(), "{message:?}");
    }
}
