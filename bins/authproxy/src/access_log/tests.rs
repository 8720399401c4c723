//! Lines as they come out of the log, plain and JSON.

use std::sync::mpsc;
use std::time::Instant;

use hyper::header::HeaderValue;
use hyper::{Request, StatusCode};
use serde_json::Value;

use super::*;
use crate::authorizer::DenyDecision;
use crate::grant::KeyHash;
use crate::headers::PeerAddress;
use crate::record::{Asked, Telemetry};
use crate::request_error::{RequestError, TruncationReason};
use crate::settings::AccessLogFormat as Shape;
use crate::settings::tests::site;

/// A writer that hands each chunk to a test, and waits while the test does not take it.
struct ChannelWriter(mpsc::SyncSender<Vec<u8>>);

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::from(ErrorKind::BrokenPipe);
        self.0.send(bytes.to_vec()).map_err(gone)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn record(telemetry: &Arc<Telemetry>, peer: &str, uri: &str, lines: &[(&str, &str)]) -> Record {
    let mut request = Request::builder().uri(uri);
    for (name, value) in lines {
        request = request.header(*name, *value);
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let site = site("");
    let client = PeerAddress::new(peer.parse().unwrap(), &site);
    let id = HeaderValue::from_static("id7");
    let mut record = Record::begin(telemetry, &site, &parts, &client, id.clone());
    // As if the telemetry had a log.
    record.asked = Some(Box::new(Asked::new(&site, &parts, &client, id)));
    record
}

const OUTSIDE: &str = "192.0.2.7:1";
const INSIDE: &str = "10.0.0.9:1";

/// The line of a request, after `change`.
fn line(shape: Shape, peer: &str, uri: &str, change: impl FnOnce(&mut Record)) -> String {
    let telemetry = Arc::default();
    let chain = [("x-forwarded-for", "198.51.100.1, 10.0.0.1")];
    let mut record = record(&telemetry, peer, uri, &chain);
    change(&mut record);
    let mut written = Vec::new();
    let format = LineFormatter::new(shape, &["eight_ball".to_owned()]);
    format.write(&mut written, &record, Duration::from_micros(12_345));
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
fn a_line_for_people_says_who_what_and_how_it_went() {
    let text = line(Shape::Plain, OUTSIDE, "/a?x=1&apikey=secret", |record| {
        record.answered(StatusCode::OK);
        record.server = Some(Duration::from_micros(11_500));
        record.sent = 17;
    });
    let (stamp, said) = text.trim_end().split_once(' ').unwrap();
    assert!(stamp.len() == 24 && stamp.ends_with('Z'), "{stamp}");
    assert_eq!(
        said,
        "authproxy.access: 192.0.2.7 GET /a?x=1&apikey=*** 200 12.345ms server=11.500ms in=0 out=17 request=id7"
    );
}

#[test]
fn a_refusal_is_told_with_its_word_and_no_more_of_the_key_than_shows_which_it_is() {
    let key = KeyHash::of(b"secret");
    for shape in [Shape::Plain, Shape::Json] {
        let text = line(shape, OUTSIDE, "/?apikey=secret", |record| {
            record.refuse(&DenyDecision::from(RequestError::UnknownKey));
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
fn a_json_line_is_a_logstash_object() {
    let text = line(Shape::Json, INSIDE, "/a\"b?c=d", |record| {
        record.answered(StatusCode::OK);
        record.cut = Some(TruncationReason::UpstreamClosed);
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
    assert_eq!((&line["status"], &line["cut"]), (&200.into(), &true.into()));
    assert_eq!(line["cut_cause"], "upstream_closed");
    assert_eq!(line["duration_ms"], 12.345);
    assert_eq!(line["tags"], serde_json::json!(["eight_ball"]));
    assert!(line["@timestamp"].is_string() && line["pid"].is_u64() && line["host"].is_string());
    assert!(line.get("refusal").is_none() && line.get("mark").is_none());
    let line = json(&self::line(Shape::Json, INSIDE, "/?", |_| {}));
    assert!(line.get("query").is_none(), "an empty field: {line}");
}

#[test]
fn the_client_is_the_last_address_that_is_not_a_trusted_proxy() {
    let telemetry = Arc::default();
    for (peer, lines, expected) in [
        (OUTSIDE, &["198.51.100.1"][..], "192.0.2.7"),
        (INSIDE, &[], "10.0.0.9"),
        (INSIDE, &["198.51.100.1"], "198.51.100.1"),
        // What the client has sent stands before what proxies have added.
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
        for shape in [Shape::Plain, Shape::Json] {
            let mut written = Vec::new();
            LineFormatter::new(shape, &[]).write(&mut written, &record, Duration::ZERO);
            let text = String::from_utf8(written).unwrap();
            let found = match shape {
                Shape::Plain => text.split(' ').nth(2).unwrap().to_owned(),
                Shape::Json => json(&text)["client"].as_str().unwrap().to_owned(),
            };
            assert_eq!(found, expected, "{peer} {lines:?}");
        }
    }
}

#[test]
fn a_request_without_an_answer_has_status_0() {
    assert_eq!(json(&line(Shape::Json, OUTSIDE, "/", |_| {}))["status"], 0);
}

#[test]
fn a_client_cannot_write_lines_of_its_own() {
    let telemetry = Arc::default();
    let record = record(&telemetry, INSIDE, "/a\u{9b}2J?\u{9b}", &[]);
    let mut plain = Vec::new();
    LineFormatter::new(Shape::Plain, &[]).write(&mut plain, &record, Duration::ZERO);
    let plain = String::from_utf8(plain).unwrap();
    assert!(!plain.trim_end().contains(char::is_control), "{plain:?}");
    assert!(plain.contains("GET /a\\u{9b}2J?\\u{9b} "), "{plain}");
    let long = format!("/{}?{}", "a".repeat(9_000), "b".repeat(9_000));
    assert!(line(Shape::Plain, OUTSIDE, &long, |_| {}).len() < 9_000);
}

#[test]
fn lines_are_gathered_and_the_last_ones_are_written_at_the_end() {
    let (to, chunks) = mpsc::sync_channel(1);
    let telemetry = Arc::default();
    let log =
        AccessLog::start_on(LineFormatter::new(Shape::Plain, &[]), ChannelWriter(to)).unwrap();
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
fn a_reader_that_reads_nothing_costs_lines_and_nothing_else() {
    let (to, chunks) = mpsc::sync_channel(0);
    let telemetry = Arc::default();
    let log =
        AccessLog::start_on(LineFormatter::new(Shape::Plain, &[]), ChannelWriter(to)).unwrap();
    let request = record(&telemetry, OUTSIDE, "/", &[]);
    let mut written = 0;
    while log.dropped() == 0 {
        log.write(&request, Duration::ZERO);
        written += 1;
        assert!(written < 100_000, "the buffer has no end");
    }
    let start = Instant::now();
    log.finish(Duration::from_millis(10));
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "the end waits for nobody"
    );
    drop(chunks);
    log.finish(Duration::from_secs(30));
    assert_eq!(log.dropped(), written, "what was not taken is counted");
}
