//! Listings of any length: all pages are read, the newest builds are shown, and an endless listing fails.

use std::fmt::Write as _;

use super::{CommandOutcome, HASH, OTHER, PexrunHost, pex, program};
use crate::s3cache::{FakeServer, answer};

/// Builds in a page of S3.
const PAGE: usize = 1000;

/// An S3 server of `pages` pages (without end when `None`), whose builds are the newer the later they are listed.
fn start_listing_server(pages: Option<usize>) -> FakeServer {
    FakeServer::start(move |head| {
        let token = head.split_once("continuation-token=").map(|(_, rest)| rest);
        let digits = token.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
        let page: usize = digits.map_or(0, |digits| digits.parse().unwrap());
        if !head.contains("list-type=2") {
            return answer("404 Not Found", &[], "");
        }
        let prefix = "pex/job-";
        let mut xml = "<ListBucketResult>".to_owned();
        for at in page * PAGE..(page + 1) * PAGE {
            let (hours, minutes, seconds) = (at / 3600 % 24, at / 60 % 60, at % 60);
            write!(
                xml,
                "<Contents><Key>{prefix}{at:07}a-here_x86_64.pex</Key><Size>1</Size>\
                 <LastModified>2015-07-06T{hours:02}:{minutes:02}:{seconds:02}Z</LastModified></Contents>"
            )
            .unwrap();
        }
        let next = page + 1;
        let more = pages.is_none_or(|pages| next < pages);
        let token = if more {
            next.to_string()
        } else {
            String::new()
        };
        write!(xml, "<IsTruncated>{more}</IsTruncated><NextContinuationToken>{token}</NextContinuationToken></ListBucketResult>").unwrap();
        answer("200 OK", &["Content-Type: application/xml"], &xml)
    })
}

fn run(host: &PexrunHost, s3: &FakeServer, args: &[&str]) -> CommandOutcome {
    let mut command = host.command(args);
    command
        .env("AWS_ENDPOINT_URL", s3.url())
        .env("HOSTKIT_PEXRUN_NO_SIGN_REQUEST", "1");
    command.output().unwrap().into()
}

#[test]
fn newest_builds_of_all_pages_are_listed() {
    let (host, s3) = (PexrunHost::bare(), start_listing_server(Some(12)));
    host.repositories(&["s3://builds/pex"]);
    let outcome = run(&host, &s3, &["--list", "job"]).exits(0);
    let rows: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(rows.len(), 10_000);
    assert_eq!(rows[0], "job 0011999a 2015-07-06T03:19:59Z");
    assert_eq!(rows[9999], "job 0002000a 2015-07-06T00:33:20Z");
    outcome
        .logs("only the builds that were published last are listed")
        .logs("limit=10000")
        .logs("raise --limit");
    let all = run(&host, &s3, &["--list", "job", "--limit=12000"]).exits(0);
    assert_eq!(all.stdout.lines().count(), 12_000);
    assert_eq!(all.stderr, "", "nothing is omitted");
    let two = run(&host, &s3, &["--list", "--json", "--limit", "2", "job"]).exits(0);
    let rows: Vec<serde_json::Value> = two.stdout.lines().map(|row| row.parse().unwrap()).collect();
    assert_eq!(rows[0]["version"], "0011999a");
    assert_eq!(rows[1]["version"], "0011998a");
    let last = serde_json::json!({"job": "job", "truncated": true, "limit": 2});
    assert_eq!(rows[2..], [last]);
    // A short hash is searched for in all pages, and the matches are named up to a limit.
    run(&host, &s3, &["--fetch-only", "job", "0000"])
        .exits(125)
        .logs("0000 is ambiguous: more than 20 builds of job start with it")
        .logs("0000000a, ");
    run(&host, &s3, &["--fetch-only", "job", "0011999a"]).exits(127);
}

#[test]
fn directory_is_listed_completely() {
    let host = PexrunHost::new();
    for at in 0..2_500 {
        host.publish(&pex("job", &format!("{at:07}a")), "");
    }
    host.publish(&pex("job", HASH), program("echo ran"));
    std::fs::create_dir(host.path("repo").join(pex("job", OTHER))).unwrap();
    let outcome = host.pexrun(["--list", "job"]).exits(0);
    assert_eq!(outcome.stdout.lines().count(), 2_501);
    host.pexrun(["job", "60a4"]).exits(0).prints("ran\n");
    let few = host.pexrun(["--list", "job", "--limit=7"]).exits(0);
    assert_eq!(few.logs("limit=7").stdout.lines().count(), 7);
}

#[test]
fn endless_listing_fails_at_deadline() {
    let (host, s3) = (PexrunHost::bare(), start_listing_server(None));
    host.repositories(&["s3://builds/pex"]);
    for args in [["--list", "job"].as_slice(), &["job", "beef"]] {
        let args = [&["--timeout=1s"], args].concat();
        run(&host, &s3, &args)
            .exits(125)
            .logs("not finished within 1s");
    }
}
