//! Responses that are not the object: however long they are, little of them is read and less is printed.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hostkit_tests::bin;

use super::{CacheHost, CommandOutcome, FakeServer, HASH, answer};

/// The announced length in bytes.
const LENGTH: usize = 400 << 20;
/// The most bytes sent for one run: kernel buffers on both sides, for a few attempts.
const READ_MAX: usize = 64 << 20;
/// The most bytes printed of it.
const PRINTED_MAX: usize = 4096;

/// A server that answers everything but HEAD with a body of [`LENGTH`] bytes, and counts the bytes it can send.
struct FloodServer {
    port: u16,
    sent: Arc<AtomicUsize>,
}

impl FloodServer {
    fn start(status: &'static str, begin: &'static str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let sent = Arc::new(AtomicUsize::new(0));
        let count = sent.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, count) = (stream.unwrap(), count.clone());
                std::thread::spawn(move || serve(stream, status, begin, &count));
            }
        });
        Self { port, sent }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

fn serve(mut stream: TcpStream, status: &str, begin: &str, count: &AtomicUsize) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        head.push(byte[0]);
    }
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {LENGTH}\r\nConnection: close\r\n\r\n"
    );
    if head.starts_with(b"HEAD") {
        // Its length is that of the body which a GET would have.
        let _ = stream.write_all(answer.as_bytes());
        return;
    }
    answer.push_str(begin);
    let piece = "<x>flood\n</x>".repeat(8192);
    let mut next = stream.write_all(answer.as_bytes());
    while next.is_ok() && count.load(Ordering::Relaxed) < LENGTH {
        next = stream.write_all(piece.as_bytes());
        count.fetch_add(piece.len(), Ordering::Relaxed);
    }
}

#[test]
fn reply_without_object_is_bounded_at_any_length() {
    let host = CacheHost::new();
    std::fs::write(host.path("made.bin"), "the build").unwrap();
    std::fs::write(host.path("token"), "a-token-of-the-cluster").unwrap();
    let keys = [
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    let s3 = format!("s3://builds/job-{HASH}.bin");
    let error = "<Error><Code>AccessDenied</Code><Message>";
    let list = "<ListBucketResult><IsTruncated>false</IsTruncated><Name>";
    let identity = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "token"),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/fetch"),
    ];
    let pexrun = ["--list", "job", "--repository=s3://builds", "--arch=x"];
    for (what, status, begin, tool, args, endpoint, env, exit) in [
        (
            "refused fetch",
            "403 Forbidden",
            error,
            "s3cache",
            &[s3.as_str()] as &[&str],
            "AWS_ENDPOINT_URL",
            keys,
            77,
        ),
        (
            "refused exists",
            "403 Forbidden",
            error,
            "s3cache",
            &["exists", &s3],
            "AWS_ENDPOINT_URL",
            keys,
            77,
        ),
        (
            "refused put",
            "403 Forbidden",
            error,
            "s3cache",
            &["put", "made.bin", &s3],
            "AWS_ENDPOINT_URL",
            keys,
            77,
        ),
        (
            "listing",
            "200 OK",
            list,
            "pexrun",
            &pexrun,
            "AWS_ENDPOINT_URL",
            keys,
            125,
        ),
        (
            "refused listing",
            "403 Forbidden",
            error,
            "pexrun",
            &pexrun,
            "AWS_ENDPOINT_URL",
            keys,
            125,
        ),
        (
            "STS",
            "200 OK",
            "<x>",
            "s3cache",
            &[&s3],
            "AWS_ENDPOINT_URL_STS",
            identity,
            77,
        ),
        (
            "container keys",
            "200 OK",
            "<x>",
            "s3cache",
            &[&s3],
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            [("X", ""); 2],
            77,
        ),
        (
            "refused http",
            "403 Forbidden",
            error,
            "s3cache",
            &["HTTP"],
            "X",
            keys,
            77,
        ),
    ] {
        let flood = FloodServer::start(status, begin);
        let http = format!("{}/job-{HASH}.bin", flood.url());
        let args = args
            .iter()
            .map(|arg| if *arg == "HTTP" { http.as_str() } else { arg });
        let mut command = host.program(bin(tool));
        command
            .arg(format!("--cache-dir={}", host.cache().display()))
            .args(args);
        command
            .envs(env)
            .env(endpoint, flood.url())
            .env("AWS_REGION", "us-east-1");
        let outcome = CommandOutcome::from(command.output().unwrap());
        let sent = flood.sent.load(Ordering::Relaxed);
        assert!(sent < READ_MAX, "{what}: {sent} bytes were read");
        assert!(
            outcome.stderr.len() < PRINTED_MAX,
            "{what}: {} bytes were printed",
            outcome.stderr.len()
        );
        let outcome = outcome.exits(exit);
        assert!(
            outcome.stderr.lines().all(|line| line.len() < 800),
            "{what}: {}",
            outcome.stderr
        );
    }
}

#[test]
fn incomplete_listing_fails_and_names_endpoint() {
    let page = |rest: &str| {
        format!(
            "<ListBucketResult><Contents><Key>pex/job-1-x.pex</Key><Size>1</Size></Contents>{rest}"
        )
    };
    let more = "<IsTruncated>true</IsTruncated>";
    let again =
        format!("{more}<NextContinuationToken>t</NextContinuationToken></ListBucketResult>");
    for (status, body, says) in [
        ("200 OK", page(&again), "a continuation token twice"),
        (
            "200 OK",
            page(&format!("{more}</ListBucketResult>")),
            "without a continuation token",
        ),
        (
            "200 OK",
            page("<Contents><Key>pex/jo"),
            "an invalid S3 listing",
        ),
        (
            "200 OK",
            page("<Contents><Key>pex/jo</ListBucketResult>"),
            "an invalid S3 listing",
        ),
        (
            "200 OK",
            "<html><body>sign in</body></html>".to_owned(),
            "an invalid S3 listing",
        ),
        (
            "400 Bad Request",
            "<html>no</html>".to_owned(),
            "returned 400 without an S3 error",
        ),
        (
            "405 Method Not Allowed",
            String::new(),
            "returned 405 without an S3 error",
        ),
    ] {
        let (host, is_ok) = (CacheHost::new(), status.starts_with("200"));
        let s3 = FakeServer::start(move |head| match head.contains("list-type=2") {
            true => answer(status, &["Content-Type: application/xml"], &body),
            false => answer("404 Not Found", &[], ""),
        });
        let run = |tool: &str, args: &[&str]| {
            let mut command = host.program(bin(tool));
            command
                .arg(format!("--cache-dir={}", host.cache().display()))
                .args(args)
                .env("AWS_ENDPOINT_URL", s3.url())
                .env("AWS_ACCESS_KEY_ID", "id")
                .env("AWS_SECRET_ACCESS_KEY", "secret");
            CommandOutcome::from(command.output().unwrap())
        };
        let outcome = run("s3cache", &["ls", "s3://builds/pex/"]).exits(69);
        let outcome = outcome.logs(says).logs("is an S3 service");
        assert!(
            !is_ok || outcome.stderr.contains(&s3.url()),
            "{}",
            outcome.stderr
        );
        // Whether such a build exists is unknown.
        let repository = ["--repository=s3://builds/pex", "--arch=x"];
        for args in [&["--list", "job"], &["job", "beef"]] {
            run("pexrun", &[&repository[..], args].concat()).exits(125);
        }
    }
}

#[test]
fn listing_with_repeating_tokens_fails() {
    // The tokens t1, t2, t3, t1, ..
    let s3 = FakeServer::start(|head| {
        let at = head.split("continuation-token=t").nth(1);
        let at = at
            .and_then(|rest| rest[..1].parse::<u32>().ok())
            .unwrap_or(0);
        let next = at % 3 + 1;
        let body = format!(
            "<ListBucketResult><Contents><Key>pex/job-{at}-x.pex</Key><Size>1</Size></Contents>\
             <IsTruncated>true</IsTruncated><NextContinuationToken>t{next}</NextContinuationToken></ListBucketResult>"
        );
        answer("200 OK", &["Content-Type: application/xml"], &body)
    });
    let host = CacheHost::new();
    let env = [
        ("AWS_ENDPOINT_URL", s3.url()),
        ("AWS_ACCESS_KEY_ID", "id".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "secret".to_owned()),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value));
    host.s3cache_env(["ls", "s3://builds/pex/", "--timeout=60"], &env)
        .exits(69)
        .logs("sent a continuation token twice: the listing has no end");
    assert!(s3.heads().len() < 20, "{:?}", s3.heads());
}
