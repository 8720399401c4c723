//! Lines in both formats, and the writer.

use std::sync::mpsc;
use std::time::Instant;

use hyper::header::HeaderValue;
use hyper::{Request, StatusCode};
use serde_json::Value;

use super::*;
use crate::authorizer::DenyDecision;
use crate::grant::KeyHash;
use crate::headers::PeerAddress;
use crate::record::{LoggedRequest, Telemetry};
use crate::request_error::{RequestError, TruncationReason};
use crate::settings::AccessLogFormat as LineFormat;
use crate::settings::tests::site;

/// A writer that sends each chunk to the test, and blocks while the test does not receive it.
struct ChannelWriter(mpsc::SyncSender<Vec<u8>>);

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let closed = |_| io::Error::from(ErrorKind::BrokenPipe);
        self.0.send(bytes.to_vec()).map_err(closed)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn record(
    telemetry: &Arc<Telemetry>,
    peer: &str,
    uri: &str,
    lines: &[(&str, &str)],
) -> RequestRecord {
    let mut request = Request::builder().uri(uri);
    for (name, value) in lines {
        request = request.header(*name, *value);
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let site = site("");
    let client = PeerAddress::new(peer.parse().unwrap(), &site);
    let id = HeaderValue::from_static("id7");
    let mut record = RequestRecord::begin(telemetry, &site, &parts, &client, id.clone());
    // The telemetry has no log.
    record.logged = Some(Box::new(LoggedRequest::new(&site, &parts, &client, id)));
    record
}

const OUTSIDE: &str = "192.0.2.7:1";
const INSIDE: &str = "10.0.0.9:1";

/// The line of a request, after `change`.
fn line(
    format: LineFormat,
    peer: &str,
    uri: &str,
    change: impl FnOnce(&mut RequestRecord),
) -> String {
    let telemetry = Arc::default();
    let chain = [("x-forwarded-for", "198.51.100.1, 10.0.0.1")];
    let mut record = record(&telemetry, peer, uri, &chain);
    change(&mut record);
    let mut written = Vec::new();
    let formatter = LineFormatter::new(format, &["eight_ball".to_owned()]);
    formatter.write(&mut written, &record, Duration::from_micros(12_345));
    let text = String::from_utf8(written).unwrap();
    assert!(
        text.ends_with('\n') && text.trim_end().lines().count() == 1,
        "{text:?}"
    );
    text
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap()
}

#[test]
fn plain_line_has_client_request_and_result() {
    let text = line(
        LineFormat::Plain,
        OUTSIDE,
        "/a?x=1&apikey=secret",
        |record| {
            record.respond(StatusCode::OK);
            record.upstream_duration = Some(Duration::from_micros(11_500));
            record.bytes_out = 17;
        },
    );
    let (stamp, fields) = text.trim_end().split_once(' ').unwrap();
    assert!(stamp.len() == 24 && stamp.ends_with('Z'), "{stamp}");
    assert_eq!(
        fields,
        "authproxy.access: 192.0.2.7 GET /a?x=1&apikey=*** 200 12.345ms upstream_ms=11.500 bytes_in=0 bytes_out=17 request_id=id7"
    );
}

#[test]
fn denied_request_has_its_reason_and_eight_digits_of_the_key_hash() {
    let key = KeyHash::of(b"secret");
    for format in [LineFormat::Plain, LineFormat::Json] {
        let text = line(format, OUTSIDE, "/?apikey=secret", |record| {
            record.deny(&DenyDecision::from(RequestError::UnknownKey));
            record.key = Some(key);
        });
        let short = &key.to_string()[..8];
        assert!(
            text.contains("unknown_key") && text.contains(short),
            "{text}"
        );
        assert!(text.contains("403") && !text.contains("secret"), "{text}");
        assert!(!text.contains(&key.to_string()[..9]), "{text}");
    }
}

#[test]
fn json_line_is_a_logstash_object() {
    let text = line(LineFormat::Json, INSIDE, "/a\"b?c=d", |record| {
        record.respond(StatusCode::OK);
        record.truncation = Some(TruncationReason::UpstreamClosed);
    });
    let line = json(&text);
    for (name, value) in [
        ("@version", "1"),
        ("level", "INFO"),
        ("logger_name", "authproxy.access"),
        ("message", "GET /a\"b 200"),
        ("client", "198.51.100.1"),
        ("method", "GET"),
        ("path", "/a\"b"),
        ("query", "c=d"),
        ("request_id", "id7"),
    ] {
        assert_eq!(line[name], value, "{name}");
    }
    assert_eq!(
        (&line["status"], &line["truncated"]),
        (&200.into(), &true.into())
    );
    assert_eq!(line["truncation_reason"], "upstream_closed");
    assert_eq!(line["duration_ms"], 12.345);
    assert_eq!(line["tags"], serde_json::json!(["eight_ball"]));
    assert!(line["@timestamp"].is_string() && line["pid"].is_u64() && line["host"].is_string());
    assert!(line.get("reason").is_none() && line.get("allow_reason").is_none());
    let line = json(&self::line(LineFormat::Json, INSIDE, "/?", |_| {}));
    assert!(line.get("query").is_none(), "an empty field: {line}");
}

#[test]
fn client_is_the_last_address_that_is_not_a_trusted_proxy() {
    let telemetry = Arc::default();
    for (peer, lines, expected) in [
        (OUTSIDE, &["198.51.100.1"][..], "192.0.2.7"),
        (INSIDE, &[], "10.0.0.9"),
        (INSIDE, &["198.51.100.1"], "198.51.100.1"),
        // The client's own addresses precede those that proxies added.
        (INSIDE, &["1.1.1.1, 198.51.100.1, 10.0.0.1"], "198.51.100.1"),
        (
            INSIDE,
            &["1.1.1.1", "198.51.100.1,10.0.0.1"],
            "198.51.100.1",
        ),
        (INSIDE, &["127.0.0.1, 198.51.100.1"], "198.51.100.1"),
        (INSIDE, &["10.0.0.2,10.0.0.3", "10.0.0.1"], "10.0.0.2"),
        (INSIDE, &["junk, 10.0.0.3, unknown"], "10.0.0.3"),
        (INSIDE, &["junk", "", ", ,"], "10.0.0.9"),
        (INSIDE, &["198.51.100.1:4711"], "198.51.100.1"),
        (INSIDE, &["[2001:DB8::1]:80"], "2001:db8::1"),
        (INSIDE, &["[2001:db8::1]"], "2001:db8::1"),
        (INSIDE, &["2001:db8::1, ::ffff:10.0.0.1"], "2001:db8::1"),
        (INSIDE, &["::ffff:198.51.100.1"], "198.51.100.1"),
        (INSIDE, &["1.1.1.1\u{9b}2J\tx"], "10.0.0.9"),
    ] {
        let chain: Vec<_> = lines
            .iter()
            .map(|line| ("x-forwarded-for", *line))
            .collect();
        let record = record(&telemetry, peer, "/", &chain);
        for format in [LineFormat::Plain, LineFormat::Json] {
            let mut written = Vec::new();
            LineFormatter::new(format, &[]).write(&mut written, &record, Duration::ZERO);
            let text = String::from_utf8(written).unwrap();
            let found = match format {
                LineFormat::Plain => text.split(' ').nth(2).unwrap().to_owned(),
                LineFormat::Json => json(&text)["client"].as_str().unwrap().to_owned(),
            };
            assert_eq!(found, expected, "{peer} {lines:?}");
        }
    }
}

#[test]
fn request_without_a_response_has_status_0() {
    assert_eq!(
        json(&line(LineFormat::Json, OUTSIDE, "/", |_| {}))["status"],
        0
    );
}

#[test]
fn client_cannot_inject_lines() {
    let telemetry = Arc::default();
    let record = record(&telemetry, INSIDE, "/a\u{9b}2J?\u{9b}", &[]);
    let mut plain = Vec::new();
    LineFormatter::new(LineFormat::Plain, &[]).write(&mut plain, &record, Duration::ZERO);
    let plain = String::from_utf8(plain).unwrap();
    assert!(!plain.trim_end().contains(char::is_control), "{plain:?}");
    assert!(plain.contains("GET /a\\u{9b}2J?\\u{9b} "), "{plain}");
    let long = format!("/{}?{}", "a".repeat(9_000), "b".repeat(9_000));
    assert!(line(LineFormat::Plain, OUTSIDE, &long, |_| {}).len() < 9_000);
}

#[test]
fn lines_are_gathered_and_flushed_at_the_end() {
    let (to, chunks) = mpsc::sync_channel(1);
    let telemetry = Arc::default();
    let log = AccessLog::start_on(
        LineFormatter::new(LineFormat::Plain, &[]),
        ChannelWriter(to),
    )
    .unwrap();
    let request = record(&telemetry, OUTSIDE, "/", &[]);
    for _ in 0..3 {
        log.write(&request, Duration::ZERO);
    }
    log.finish(Duration::from_secs(30));
    let chunk = chunks.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(
        chunk.iter().filter(|byte| **byte == b'\n').count(),
        3,
        "one write"
    );
    assert_eq!(log.dropped(), 0);
}

#[test]
fn blocked_writer_drops_lines_and_never_blocks_requests() {
    let (to, chunks) = mpsc::sync_channel(0);
    let telemetry = Arc::default();
    let log = AccessLog::start_on(
        LineFormatter::new(LineFormat::Plain, &[]),
        ChannelWriter(to),
    )
    .unwrap();
    let request = record(&telemetry, OUTSIDE, "/", &[]);
    let mut written = 0;
    while log.dropped() == 0 {
        log.write(&request, Duration::ZERO);
        written += 1;
        assert!(written < 100_000, "the buffer is unbounded");
    }
    let start = Instant::now();
    log.finish(Duration::from_millis(10));
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "finish waits for the writer"
    );
    drop(chunks);
    log.finish(Duration::from_secs(30));
    assert_eq!(log.dropped(), written, "dropped lines are counted");
}
