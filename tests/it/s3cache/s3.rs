//! s3:// against a real S3 server: signatures, the credential chain, publishing, and errors that name the remedy.

use std::os::unix::fs::PermissionsExt as _;

use hostkit_tests::origin::OriginServer;
use hostkit_tests::s3::S3Server;
use hostkit_tests::tls::CertificateAuthority;

use super::{CacheHost, CommandOutcome, FakeServer, HASH, answer, sha256};

/// A server with a bucket `builds`, and a host.
fn start() -> (CacheHost, S3Server) {
    let s3 = S3Server::start();
    s3.create_bucket("builds");
    (CacheHost::new(), s3)
}

fn uri() -> String {
    format!("s3://builds/pex/job-{HASH}.bin")
}

/// Publishes `text` at [`uri`].
fn put(host: &CacheHost, s3: &S3Server, text: &str, more: &[&str]) -> CommandOutcome {
    std::fs::write(host.path("made"), text).unwrap();
    let uri = uri();
    let args = ["put", "made", &uri];
    host.s3cache_env(args.iter().chain(more), &s3.env())
}

/// The environment of the server's client, with some variables changed and those without a value left out.
fn env(s3: &S3Server, changes: &[(&str, Option<&str>)]) -> Vec<(String, String)> {
    let mut env = s3.env();
    for (name, value) in changes {
        env.retain(|(known, _)| known != name);
        env.extend(value.map(|value| ((*name).to_owned(), value.to_owned())));
    }
    env
}

/// The environment without keys.
fn keyless(s3: &S3Server, more: &[(&str, &str)]) -> Vec<(String, String)> {
    let keys = [("AWS_ACCESS_KEY_ID", None), ("AWS_SECRET_ACCESS_KEY", None)];
    let more = more.iter().map(|(name, value)| (*name, Some(*value)));
    env(s3, &keys.into_iter().chain(more).collect::<Vec<_>>())
}

/// The server's keys in the format of the metadata services.
fn keys(s3: &S3Server) -> String {
    let (id, secret) = (s3.access_key(), s3.secret_key());
    format!(
        r#"{{"Version": 1, "Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": "{id}", "SecretAccessKey": "{secret}",
        "Token": "t", "LastUpdated": "2015-07-06T00:00:00Z", "Expiration": "2099-01-01T00:00:00Z"}}"#
    )
}

#[test]
fn published_object_is_fetched_with_signature() {
    let (host, s3) = start();
    let outcome = put(&host, &s3, "the build", &["--json"]).exits(0);
    let outcome: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(outcome["published"], true);
    assert_eq!(outcome["sha256"], sha256(b"the build"));
    host.s3cache_env([&uri(), "--copy-to=out"], &s3.env())
        .exits(0);
    assert_eq!(host.read("out"), b"the build");
    let asked = s3.requests().len();
    host.s3cache_env([&uri(), "--copy-to=out"], &s3.env())
        .exits(0);
    assert_eq!(s3.requests().len(), asked, "a hit sends no request");
}

#[test]
fn put_publishes_sidecar_that_sha256sum_accepts() {
    let (host, s3) = start();
    put(&host, &s3, "the build", &[]).exits(0);
    let name = format!("job-{HASH}.bin");
    let sidecar = s3.dir().join(format!("builds/pex/{name}.sha256"));
    let text = std::fs::read_to_string(sidecar).unwrap();
    assert_eq!(text, format!("{}  {name}\n", sha256(b"the build")));
}

#[test]
fn name_is_published_once_unless_replaced() {
    let (host, s3) = start();
    let object = s3.dir().join(format!("builds/pex/job-{HASH}.bin"));
    put(&host, &s3, "first", &[]).exits(0);
    let again = put(&host, &s3, "first", &["--json"]).exits(0);
    assert!(
        again.stdout.contains(r#""published":false"#),
        "{}",
        again.stdout
    );
    put(&host, &s3, "other", &[]).exits(73).logs("another name");
    assert_eq!(std::fs::read_to_string(&object).unwrap(), "first");
    host.s3cache_env([&uri(), "--copy-to=out"], &s3.env())
        .exits(0);
    put(&host, &s3, "other", &["--replace"]).exits(0);
    assert_eq!(std::fs::read_to_string(&object).unwrap(), "other");
    host.s3cache_env([&uri(), "--copy-to=out", "--revalidate"], &s3.env())
        .exits(0);
    assert_eq!(host.read("out"), b"other");
}

#[test]
fn store_without_conditional_writes_is_checked_before_upload() {
    for status in [400, 405, 501] {
        let (host, s3) = start();
        s3.forbid_conditions(status);
        put(&host, &s3, "first", &[])
            .exits(0)
            .logs("has no conditional writes");
        let again = put(&host, &s3, "first", &["--json"]).exits(0);
        assert!(
            again.stdout.contains(r#""published":false"#),
            "{}",
            again.stdout
        );
        put(&host, &s3, "other", &[]).exits(73).logs("another name");
        let object = s3.dir().join(format!("builds/pex/job-{HASH}.bin"));
        assert_eq!(std::fs::read_to_string(&object).unwrap(), "first");
        let replaced = put(&host, &s3, "other", &["--replace"]).exits(0);
        assert!(
            !replaced.stderr.contains("conditional"),
            "{}",
            replaced.stderr
        );
        assert_eq!(std::fs::read_to_string(&object).unwrap(), "other");
    }
}

#[test]
fn write_only_publisher_never_replaces_and_missing_permission_is_named() {
    for (status, listing_only) in [(400, false), (501, false), (501, true)] {
        let (host, s3) = start();
        s3.forbid_conditions(status);
        match listing_only {
            true => s3.forbid_listing(),
            false => s3.forbid_reading(),
        }
        let object = s3.dir().join(format!("builds/pex/job-{HASH}.bin"));
        put(&host, &s3, "first", &[])
            .exits(77)
            .logs(&format!("the store rejects conditional writes ({status})"))
            .logs("does not show whether the object exists: access denied (403)")
            .logs("s3:ListBucket")
            .logs("overwrite it with --replace");
        assert!(!object.exists());
        put(&host, &s3, "first", &["--replace"]).exits(0);
        assert_eq!(std::fs::read_to_string(&object).unwrap(), "first");
    }
    // With conditional writes, reading is needed only to compare.
    let (host, s3) = start();
    s3.forbid_reading();
    put(&host, &s3, "first", &[]).exits(0);
    put(&host, &s3, "first", &[])
        .exits(73)
        .logs("exists, and cannot be compared with this file");
}

#[test]
fn incomplete_upload_is_not_retried_without_its_condition() {
    for code in ["RequestTimeout", "BadDigest", "IncompleteBody"] {
        let (host, s3) = start();
        s3.lose_conditional_uploads(code);
        let outcome = put(&host, &s3, "first", &[]).exits(69).logs(code);
        assert!(
            !outcome.stderr.contains("conditional"),
            "{}",
            outcome.stderr
        );
        assert!(!s3.dir().join(format!("builds/pex/job-{HASH}.bin")).exists());
    }
}

#[test]
fn conflicting_upload_is_retried() {
    let (host, s3) = start();
    s3.conflict_once();
    put(&host, &s3, "first", &[]).exits(0);
    s3.conflict_once();
    put(&host, &s3, "other", &[]).exits(73).logs("another name");
}

#[test]
fn put_rejects_broken_or_missing_file_and_appends_name_after_slash() {
    let (host, s3) = start();
    std::fs::write(host.path("a.pex"), "<html>").unwrap();
    let put = |file: &str, to: &str| host.s3cache_env(["put", file, to], &s3.env());
    put("a.pex", "builds/pex/").exits(65).logs("a.pex");
    put("none.txt", "builds/pex/").exits(66).logs("none.txt");
    std::fs::write(host.path("a-1.2.txt"), "text").unwrap();
    put("a-1.2.txt", "builds/text/").exits(0);
    assert!(s3.dir().join("builds/text/a-1.2.txt").exists());
    put("a-1.2.txt", "http://127.0.0.1:9/a")
        .exits(2)
        .logs("s3://");
}

#[test]
fn each_s3_error_has_exit_code_and_remedy() {
    let (host, s3) = start();
    put(&host, &s3, "the build", &[]).exits(0);
    let get = |source: &str, env: &[(String, String)], more: &[&str]| {
        let outcome = host.s3cache_env([source, "--copy-to=out"].iter().chain(more), env);
        assert!(!host.path("out").exists());
        outcome.logs(source)
    };
    let wrong = env(&s3, &[("AWS_SECRET_ACCESS_KEY", Some("wrong"))]);
    get(&uri(), &wrong, &[])
        .exits(77)
        .logs("SignatureDoesNotMatch");
    let unknown = env(&s3, &[("AWS_ACCESS_KEY_ID", Some("AKIDNOBODY"))]);
    get(&uri(), &unknown, &[]).exits(77);
    get(&uri(), &keyless(&s3, &[]), &["--no-sign-request"]).exits(77);
    get(&uri(), &keyless(&s3, &[]), &[])
        .exits(77)
        .logs("AWS_PROFILE");
    get("s3://builds/none-1.2", &s3.env(), &[]).exits(66);
    get("s3://nobucket/a-1.2", &s3.env(), &[]).exits(66);
    let dead = format!("http://127.0.0.1:{}", hostkit_tests::free_port());
    let dead = env(&s3, &[("AWS_ENDPOINT_URL", Some(&dead))]);
    get(&uri(), &dead, &["--timeout=20"]).exits(69);
    let stranger = OriginServer::start_tls(&CertificateAuthority::new());
    let stranger = env(&s3, &[("AWS_ENDPOINT_URL", Some(&stranger.url("")))]);
    get(&uri(), &stranger, &[]).exits(69).logs("--ca-file");
}

#[test]
fn exists_reports_by_exit_code() {
    let (host, s3) = start();
    put(&host, &s3, "the build", &[]).exits(0);
    let exists = |source: &str, env: &[(String, String)]| host.s3cache_env(["exists", source], env);
    assert_eq!(exists(&uri(), &s3.env()).exits(0).stdout, "");
    exists("builds/none", &s3.env()).exits(66);
    assert!(
        !s3.requests().iter().any(|line| line.starts_with("GET")),
        "nothing is fetched"
    );
    let wrong = env(&s3, &[("AWS_SECRET_ACCESS_KEY", Some("wrong"))]);
    exists(&uri(), &wrong).exits(77);
    let dead = format!("http://127.0.0.1:{}", hostkit_tests::free_port());
    exists(&uri(), &env(&s3, &[("AWS_ENDPOINT_URL", Some(&dead))])).exits(69);
    let outcome = host
        .s3cache_env(["exists", "--json", &uri()], &s3.env())
        .exits(0);
    let outcome: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(outcome["size"], 9);
    // Without permission to list the bucket, a missing object looks like a forbidden one.
    s3.forbid_listing();
    exists("builds/none", &s3.env())
        .exits(77)
        .logs("S3 returns 403 for an absent object too")
        .logs("s3:ListBucket");
    exists(&uri(), &s3.env()).exits(0);
}

#[test]
fn credentials_come_from_profile_or_its_process() {
    let (host, s3) = start();
    put(&host, &s3, "the build", &[]).exits(0);
    let script = host.path("keys.sh");
    std::fs::write(
        &script,
        format!("#!/bin/sh\ncat <<'END'\n{}\nEND\n", keys(&s3)),
    )
    .unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = format!(
        "[profile plain]\naws_access_key_id = {}\naws_secret_access_key = {}\n[profile process]\ncredential_process = {}\n",
        s3.access_key(),
        s3.secret_key(),
        script.display()
    );
    std::fs::write(host.path("config"), config).unwrap();
    let env = keyless(&s3, &[("AWS_CONFIG_FILE", "config")]);
    for profile in ["plain", "process"] {
        let host = CacheHost::new();
        std::fs::copy(script.with_file_name("config"), host.path("config")).unwrap();
        let args = [
            uri(),
            format!("--profile={profile}"),
            "--copy-to=out".to_owned(),
        ];
        host.s3cache_env(args, &env).exits(0);
        assert_eq!(host.read("out"), b"the build", "{profile}");
    }
}

#[test]
fn sso_profile_error_names_remedy() {
    let (host, s3) = start();
    let config = "[profile people]\nsso_session = corp\nsso_account_id = 123456789012\nsso_role_name = dev\n\
        [sso-session corp]\nsso_region = us-east-1\nsso_start_url = https://corp.invalid/start\n";
    std::fs::write(host.path("config"), config).unwrap();
    let env = keyless(
        &s3,
        &[("AWS_CONFIG_FILE", "config"), ("AWS_PROFILE", "people")],
    );
    host.s3cache_env([uri()], &env)
        .exits(77)
        .logs("SSO")
        .logs("aws configure export-credentials");
}

#[test]
fn credentials_come_from_container() {
    let (host, s3) = start();
    put(&host, &s3, "the build", &[]).exits(0);
    let body = keys(&s3);
    let agent =
        FakeServer::start(move |_| answer("200 OK", &["Content-Type: application/json"], &body));
    let full = format!("{}/creds", agent.url());
    let env = keyless(&s3, &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &full)]);
    host.s3cache_env([&uri(), "--copy-to=out"], &env).exits(0);
    assert_eq!(host.read("out"), b"the build");
    assert!(
        agent.heads()[0].starts_with("GET /creds "),
        "{:?}",
        agent.heads()
    );
}

#[test]
fn credentials_come_from_instance_by_imdsv2() {
    let (host, s3) = start();
    put(&host, &s3, "the build", &[]).exits(0);
    let body = keys(&s3);
    let imds = FakeServer::start(move |head| {
        let ttl = ["x-aws-ec2-metadata-token-ttl-seconds: 21600"];
        if head.starts_with("PUT /latest/api/token ") {
            answer("200 OK", &ttl, "the-token")
        } else if !head
            .to_ascii_lowercase()
            .contains("x-aws-ec2-metadata-token: the-token")
        {
            answer("401 Unauthorized", &[], "")
        } else if head.contains("/security-credentials/role ") {
            answer("200 OK", &[], &body)
        } else {
            answer("200 OK", &[], "role")
        }
    });
    let more = [
        ("AWS_EC2_METADATA_DISABLED", "false"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &imds.url()),
    ];
    host.s3cache_env([&uri(), "--copy-to=out"], &keyless(&s3, &more))
        .exits(0);
    assert_eq!(host.read("out"), b"the build");
    assert!(
        imds.heads()[0].starts_with("PUT /latest/api/token "),
        "{:?}",
        imds.heads()
    );
}

#[test]
fn credentials_come_from_web_identity() {
    let (host, s3) = start();
    put(&host, &s3, "the build", &[]).exits(0);
    let body = format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
        <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey>\
        <SessionToken>t</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>\
        </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
        s3.access_key(),
        s3.secret_key()
    );
    let sts = FakeServer::start(move |_| answer("200 OK", &["Content-Type: text/xml"], &body));
    std::fs::write(host.path("token"), "a-token-of-the-cluster").unwrap();
    let more = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "token"),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/fetch"),
        ("AWS_ENDPOINT_URL_STS", &sts.url()),
    ];
    host.s3cache_env([&uri(), "--copy-to=out"], &keyless(&s3, &more))
        .exits(0);
    assert_eq!(host.read("out"), b"the build");
}

#[test]
fn wrong_region_and_wrong_clock_are_named_with_remedy() {
    let (host, s3) = start();
    let moved = FakeServer::start(|_| {
        answer(
            "301 Moved Permanently",
            &["x-amz-bucket-region: eu-west-1"],
            "",
        )
    });
    let at = |url: String| env(&s3, &[("AWS_ENDPOINT_URL", Some(&url))]);
    host.s3cache_env([uri()], &at(moved.url()))
        .exits(69)
        .logs("--region eu-west-1");
    let skewed = FakeServer::start(|head| {
        let body = "<?xml version=\"1.0\"?><Error><Code>RequestTimeTooSkewed</Code><Message>m</Message></Error>";
        answer(
            "403 Forbidden",
            &["Content-Type: application/xml"],
            if head.starts_with("HEAD") { "" } else { body },
        )
    });
    host.s3cache_env([uri()], &at(skewed.url()))
        .exits(77)
        .logs("clock");
}

#[test]
fn region_of_command_line_beats_environment() {
    let (host, s3) = start();
    let seen = FakeServer::start(|_| answer("404 Not Found", &[], ""));
    let env = env(&s3, &[("AWS_ENDPOINT_URL", Some(&seen.url()))]);
    host.s3cache_env([&uri(), "--region=eu-central-1"], &env)
        .exits(66);
    let head = seen.heads()[0].to_ascii_lowercase();
    assert!(head.contains("/eu-central-1/s3/aws4_request"), "{head}");
    assert!(
        head.contains("/builds/pex/job-"),
        "the bucket is in the path of a bare address: {head}"
    );
}
