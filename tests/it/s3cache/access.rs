//! The selection of the S3 service by flags, environment and AWS configuration files, and the access to it.

use hostkit_tests::origin::OriginServer;
use hostkit_tests::s3::S3Server;
use hostkit_tests::tls::CertificateAuthority;
use hostkit_tests::{bin, find_program, or_skip};

use super::{CacheHost, CommandOutcome, FakeServer, HASH, answer};

fn uri() -> String {
    format!("s3://builds/pex/job-{HASH}.bin")
}

/// A server that has `text` at [`uri`].
fn server(text: &str) -> S3Server {
    let (host, s3) = (CacheHost::new(), S3Server::start());
    s3.create_bucket("builds");
    std::fs::write(host.path("made"), text).unwrap();
    host.s3cache_env(["put", "made", &uri()], &s3.env())
        .exits(0);
    s3
}

/// The environment of a client with the keys of the servers and the configuration file only.
fn env(s3: &S3Server, more: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut env = s3.env();
    env.retain(|(name, _)| !matches!(name.as_str(), "AWS_ENDPOINT_URL" | "AWS_REGION"));
    let more = [("AWS_CONFIG_FILE", "config")].iter().chain(more);
    env.extend(more.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    env
}

#[test]
fn same_bucket_name_on_two_services_is_two_entries() {
    let (host, first, second) = (CacheHost::new(), server("first"), server("second"));
    let config = format!(
        "[profile a]\nregion = us-east-1\nendpoint_url = {}\n\
        [profile b]\nregion = us-east-1\nservices = b\n[services b]\ns3 =\n  endpoint_url = {}\n",
        first.endpoint(),
        second.endpoint()
    );
    std::fs::write(host.path("config"), config).unwrap();
    let (one, two) = (first.endpoint(), second.endpoint());
    let shouted = format!("{}/", one.replace("http", "HTTP"));
    type SettingsSource<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let ways: [SettingsSource<'_>; 8] = [
        (&["--profile=a"], &[], "first"),
        (&["--profile=b"], &[], "second"),
        (&[], &[("AWS_PROFILE", "a")], "first"),
        (&[], &[("AWS_PROFILE", "b")], "second"),
        (&[], &[("AWS_ENDPOINT_URL", &shouted)], "first"),
        (
            &[],
            &[("AWS_ENDPOINT_URL_S3", &two), ("AWS_ENDPOINT_URL", &one)],
            "second",
        ),
        (
            &["--profile=b"],
            &[("HOSTKIT_S3CACHE_ENDPOINT_URL", &one)],
            "first",
        ),
        (
            &["--profile=a", &format!("--endpoint-url={two}")],
            &[],
            "second",
        ),
    ];
    let mut asked = None;
    for (flags, more, expected) in ways {
        let uri = uri();
        let args = [uri.as_str(), "--copy-to=out"];
        host.s3cache_env(args.iter().chain(flags), &env(&first, more))
            .exits(0);
        assert_eq!(host.read("out"), expected.as_bytes(), "{flags:?} {more:?}");
        let requests = first.requests().len() + second.requests().len();
        if flags == ["--profile=b"] && more.is_empty() {
            asked = Some(requests);
        }
        assert!(
            asked.is_none_or(|asked| asked == requests),
            "each service gets one request"
        );
    }
}

#[test]
fn cached_object_opens_no_socket_for_any_endpoint_setting() {
    let Some(strace) = or_skip("system calls of a hit", find_program("strace")) else {
        return;
    };
    let (host, s3) = (CacheHost::new(), server("the build"));
    let config = format!(
        "[profile a]\nendpoint_url = {}\n[profile none]\n",
        s3.endpoint()
    );
    std::fs::write(host.path("config"), config).unwrap();
    let uri = uri();
    let sockets = |profile: &str, more: &[(&str, &str)]| {
        let mut command = host.program(&strace);
        command
            .args([
                "-f",
                "-qq",
                "-e",
                "trace=socket,connect",
                "-e",
                "signal=none",
                "-o",
                "calls",
            ])
            .arg(bin("s3cache"))
            .args([
                &uri,
                "--copy-to=out",
                "--timeout=20",
                &format!("--profile={profile}"),
            ])
            .args(host.own_flags())
            .envs(env(&s3, more))
            // The instance metadata would be queried if the region were needed.
            .env("AWS_EC2_METADATA_DISABLED", "false")
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9");
        let outcome = CommandOutcome::from(command.output().unwrap());
        (outcome, String::from_utf8(host.read("calls")).unwrap())
    };
    sockets("a", &[]).0.exits(0);
    let (outcome, calls) = sockets("a", &[]);
    outcome.exits(0);
    assert_eq!(calls, "", "a hit");
    let offline = [("HOSTKIT_S3CACHE_OFFLINE", "true")];
    let (outcome, calls) = sockets("none", &offline);
    outcome.exits(69);
    assert_eq!(calls, "", "endpoint and region are looked up");
}

#[test]
fn settings_of_profile_stay_when_flag_names_endpoint() {
    let (host, authority) = (CacheHost::new(), CertificateAuthority::new());
    let ca = authority.ca();
    let config = format!(
        "[profile p]\nregion = eu-central-1\nca_bundle = {}\ns3 =\n  addressing_style = path\n",
        ca.display()
    );
    std::fs::write(host.path("config"), config).unwrap();
    let s3 = S3Server::start();
    let env = env(&s3, &[("AWS_PROFILE", "p")]);
    let seen = FakeServer::start(|_| answer("404 Not Found", &[], ""));
    let named = format!("--endpoint-url=http://localhost:{}", seen.port);
    host.s3cache_env([&uri(), &named], &env).exits(66);
    let head = seen.heads()[0].to_ascii_lowercase();
    assert!(head.contains("/eu-central-1/s3/aws4_request"), "{head}");
    assert!(
        head.contains("/builds/pex/job-"),
        "the bucket is in the path: {head}"
    );
    let origin = OriginServer::start_tls(&authority);
    origin.put(&format!("/builds/pex/job-{HASH}.bin"), "over TLS");
    let named = format!("--endpoint-url={}", origin.url(""));
    host.s3cache_env([&uri(), &named, "--copy-to=out"], &env)
        .exits(0);
    assert_eq!(host.read("out"), b"over TLS");
}

#[test]
fn endpoint_path_precedes_bucket_with_or_without_final_slash() {
    let (host, s3) = (CacheHost::new(), S3Server::start());
    let seen = FakeServer::start(|_| answer("404 Not Found", &[], ""));
    let key = format!("pex/job-{HASH}.bin");
    for (slash, style) in [("", "path"), ("/", "path"), ("", "host"), ("/", "host")] {
        let endpoint = match style {
            "path" => seen.url(),
            _ => "http://h.invalid".to_owned(),
        };
        let expected = match style {
            "path" => format!("HEAD /storage/v1/s3/builds/{key} "),
            _ => format!("HEAD http://builds.h.invalid/storage/v1/s3/{key} "),
        };
        let named = format!("--endpoint-url={endpoint}/storage/v1/s3{slash}");
        let env = env(
            &s3,
            &[("http_proxy", &seen.url()), ("no_proxy", "127.0.0.1")],
        );
        host.s3cache_env([&uri(), &named], &env).exits(66);
        let heads = seen.heads();
        let head = heads
            .iter()
            .rev()
            .find(|head| head.starts_with("HEAD") && head.contains(&format!("{key} ")));
        let head = head.unwrap();
        assert!(head.starts_with(&expected), "{named}: {head}");
    }
}

#[test]
fn each_denial_names_its_cause() {
    let (host, s3) = (CacheHost::new(), S3Server::start());
    std::fs::write(
        host.path("config"),
        "[profile console]\nlogin_session = arn:aws:iam::123456789012:user/me\n\
        [profile people]\nsso_session = corp\n[sso-session corp]\n",
    )
    .unwrap();
    let archived = FakeServer::start(|head| {
        let body = "<?xml version=\"1.0\"?><Error><Code>InvalidObjectState</Code><Message>m</Message></Error>";
        if head.starts_with("HEAD") {
            "HTTP/1.1 200 OK\r\nETag: \"e\"\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
                .to_owned()
        } else {
            answer("403 Forbidden", &["Content-Type: application/xml"], body)
        }
    });
    let (uri, archive) = (uri(), archived.url());
    let keyless = ("AWS_ACCESS_KEY_ID", "");
    type RefusalRow<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], i32, &'a [&'a str]);
    let rows: [RefusalRow<'_>; 10] = [
        (
            &[&uri],
            &[("AWS_ENDPOINT_URL", &archive)],
            69,
            &["archived", "restore"],
        ),
        (
            &["s3://arn:aws:s3:eu-west-1:1:accesspoint/b/a"],
            &[],
            2,
            &["ARN", "alias"],
        ),
        (
            &[&uri, "--endpoint-url=minio:9000"],
            &[],
            2,
            &["minio:9000", "http://minio:9000"],
        ),
        (
            &["ls", &uri, "--endpoint-url=minio:9000"],
            &[],
            2,
            &["http://minio:9000"],
        ),
        (
            &["rm", &uri, "--endpoint-url=minio:9000"],
            &[],
            2,
            &["http://minio:9000"],
        ),
        (
            &["verify", &uri, "--endpoint-url=minio:9000"],
            &[],
            2,
            &["http://minio:9000"],
        ),
        (&[&uri, "--profile=none"], &[], 78, &["\"none\"", "config"]),
        (
            &[&uri, "--profile=console"],
            &[keyless],
            77,
            &["aws login", "export-credentials"],
        ),
        (
            &[&uri, "--profile=people"],
            &[keyless],
            77,
            &["SSO", "export-credentials"],
        ),
        (
            &["file:///etc/passwd", "--cache-dir=/proc/none"],
            &[],
            73,
            &["/proc/none", "--cache-dir"],
        ),
    ];
    for (args, more, exit, says) in rows {
        let mut command = host.program(bin("s3cache"));
        if !args.iter().any(|arg| arg.starts_with("--cache-dir")) {
            command.args(host.own_flags());
        }
        let env = env(&s3, more);
        let outcome =
            CommandOutcome::from(command.args(args).envs(env).output().unwrap()).exits(exit);
        let outcome = says
            .iter()
            .fold(outcome, |outcome, word| outcome.logs(word));
        for wrong in ["check the credentials", "make room"] {
            assert!(!outcome.stderr.contains(wrong), "{}", outcome.stderr);
        }
    }
}

#[test]
fn home_of_other_user_is_named_by_pexrun() {
    let host = CacheHost::new();
    let mut command = host.program(bin("pexrun"));
    // Not even root can create a directory there.
    command.env("HOME", "/proc").args([
        "--repository=file:///nowhere",
        "--cache-dir=/proc/none",
        "job",
        HASH,
    ]);
    let outcome = CommandOutcome::from(command.output().unwrap()).exits(125);
    let outcome = outcome.logs("/proc/.cache/hostkit/s3cache").logs("HOME");
    assert!(!outcome.stderr.contains("make room"), "{}", outcome.stderr);
}

#[test]
fn ls_of_prefix_lists_store() {
    let (host, s3) = (CacheHost::new(), server("the build"));
    std::fs::write(host.path("b-1.2.bin"), "other").unwrap();
    host.s3cache_env(["put", "b-1.2.bin", "builds/pex/old/"], &s3.env())
        .exits(0);
    let ls = |args: &[&str]| host.s3cache_env(["ls"].iter().chain(args), &s3.env());
    let table = ls(&["s3://builds/pex/"]).exits(0).stdout;
    let sources: Vec<&str> = (table.lines().skip(1))
        .filter_map(|row| row.split_whitespace().last())
        .collect();
    let (uri, sidecar) = (uri(), format!("{}.sha256", uri()));
    assert_eq!(
        sources,
        [uri.as_str(), &sidecar, "s3://builds/pex/old/"],
        "{table}"
    );
    let row = ls(&["--json", "s3://builds/pex/old/"]).exits(0).stdout;
    let row: serde_json::Value = serde_json::from_str(row.lines().next().unwrap()).unwrap();
    assert_eq!(row["source"], "s3://builds/pex/old/b-1.2.bin");
    assert_eq!(
        (&row["name"], &row["size"]),
        (&"b-1.2.bin".into(), &5.into())
    );
    assert!(row["modified"].as_str().unwrap().ends_with('Z'));
    for bucket in ["s3://builds", "s3://builds/", "S3://builds/"] {
        assert!(ls(&[bucket]).exits(0).stdout.contains("s3://builds/pex/\n"));
    }
    ls(&["s3://builds/none/"])
        .exits(66)
        .logs("s3://builds/none/");
    ls(&["s3://nobucket/"])
        .exits(66)
        .logs("s3://nobucket/")
        .logs("correct the name or create it");
    ls(&["s3://b u/"]).exits(2);
    ls(&["https://127.0.0.1:9/pex/"])
        .exits(2)
        .logs("only s3:// and file:/// can be listed");
    let directory = format!("file://{}/", s3.dir().join("builds").display());
    assert!(
        ls(&[&directory])
            .exits(0)
            .stdout
            .ends_with("/builds/pex/\n")
    );
    // Without the slash it is an artifact, which is not cached.
    host.s3cache_env([&uri], &s3.env()).exits(0);
    let outcome = ls(&["s3://builds/pex"]).exits(66);
    assert_eq!(outcome.stdout, "");
    outcome.logs("end the prefix in a slash");
}
