//! Which S3 service is meant: by flags, environment and the AWS configuration files; and how it is reached.

use hostkit_tests::origin::Origin;
use hostkit_tests::s3::S3;
use hostkit_tests::tls::Authority;
use hostkit_tests::{bin, or_skip, which};

use super::{Fake, HASH, Host, Outcome, answer};

fn uri() -> String {
    format!("s3://builds/pex/job-{HASH}.bin")
}

/// A server that has `text` at [`uri`].
fn server(text: &str) -> S3 {
    let (host, s3) = (Host::new(), S3::start());
    s3.create_bucket("builds");
    std::fs::write(host.path("made"), text).unwrap();
    host.s3cache_env(["put", "made", &uri()], &s3.env())
        .exits(0);
    s3
}

/// The environment of a client that has the keys of the servers, and nothing else but the configuration file.
fn env(s3: &S3, more: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut env = s3.env();
    env.retain(|(name, _)| !matches!(name.as_str(), "AWS_ENDPOINT_URL" | "AWS_REGION"));
    let more = [("AWS_CONFIG_FILE", "config")].iter().chain(more);
    env.extend(more.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    env
}

#[test]
fn one_bucket_name_on_two_services_is_two_entries_however_the_service_is_named() {
    let (host, first, second) = (Host::new(), server("first"), server("second"));
    let config = format!(
        "[profile a]\nregion = us-east-1\nendpoint_url = {}\n\
        [profile b]\nregion = us-east-1\nservices = b\n[services b]\ns3 =\n  endpoint_url = {}\n",
        first.endpoint(),
        second.endpoint()
    );
    std::fs::write(host.path("config"), config).unwrap();
    let (one, two) = (first.endpoint(), second.endpoint());
    let shouted = format!("{}/", one.replace("http", "HTTP"));
    type Way<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let ways: [Way<'_>; 8] = [
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
            "each service is asked once"
        );
    }
}

#[test]
fn a_cached_object_opens_no_socket_whatever_names_the_service() {
    let Some(strace) = or_skip("system calls of a hit", which("strace")) else {
        return;
    };
    let (host, s3) = (Host::new(), server("the build"));
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
            // The instance is asked for its region if anything asks for it.
            .env("AWS_EC2_METADATA_DISABLED", "false")
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9");
        let told = Outcome::from(command.output().unwrap());
        (told, String::from_utf8(host.read("calls")).unwrap())
    };
    sockets("a", &[]).0.exits(0);
    let (told, calls) = sockets("a", &[]);
    told.exits(0);
    assert_eq!(calls, "", "a hit");
    let offline = [("HOSTKIT_S3CACHE_OFFLINE", "true")];
    let (told, calls) = sockets("none", &offline);
    told.exits(69);
    assert_eq!(calls, "", "a look-up without an endpoint and a region");
}

#[test]
fn what_the_profile_says_stays_when_a_flag_names_the_endpoint() {
    let (host, authority) = (Host::new(), Authority::new());
    let ca = authority.ca();
    let config = format!(
        "[profile p]\nregion = eu-central-1\nca_bundle = {}\ns3 =\n  addressing_style = path\n",
        ca.display()
    );
    std::fs::write(host.path("config"), config).unwrap();
    let s3 = S3::start();
    let env = env(&s3, &[("AWS_PROFILE", "p")]);
    let seen = Fake::start(|_| answer("404 Not Found", &[], ""));
    let named = format!("--endpoint-url=http://localhost:{}", seen.port);
    host.s3cache_env([&uri(), &named], &env).exits(66);
    let head = seen.heads()[0].to_ascii_lowercase();
    assert!(head.contains("/eu-central-1/s3/aws4_request"), "{head}");
    assert!(
        head.contains("/builds/pex/job-"),
        "the bucket is in the path: {head}"
    );
    let origin = Origin::start_tls(&authority);
    origin.put(&format!("/builds/pex/job-{HASH}.bin"), "over TLS");
    let named = format!("--endpoint-url={}", origin.url(""));
    host.s3cache_env([&uri(), &named, "--copy-to=out"], &env)
        .exits(0);
    assert_eq!(host.read("out"), b"over TLS");
}
