//! A line of the access log, for people or in logstash v1 shape.

use std::borrow::Cow;
use std::fmt;
use std::io::Write as _;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use hostkit::printable::{escape_json, is_printable};
use hostkit::{clock, log};

use crate::authorizer::AllowReason;
use crate::credential;
use crate::record::{Asked, Record};
use crate::settings::AccessLogFormat as Shape;

/// What is shown of a path and of a query, in bytes each.
const LONGEST: usize = 4096;
/// What is shown of a detail, in bytes.
const LONGEST_DETAIL: usize = 512;
/// What our lines are logged as.
const LOGGER: &str = "authproxy.access";

/// The shape of lines, and what is the same in all of them.
#[derive(Debug)]
pub struct LineFormatter {
    shape: Shape,
    /// Of plain lines the end; of JSON lines the members that never change.
    fixed: String,
}

/// What a line says, whatever its shape.
struct LineFields<'r> {
    /// The id of the request.
    id: &'r str,
    client: IpAddr,
    method: &'r str,
    path: Cow<'r, str>,
    query: Option<Cow<'r, str>>,
    status: u16,
    milliseconds: f64,
    server_milliseconds: Option<f64>,
    mark: Option<&'static str>,
}

impl LineFormatter {
    /// The shape of all lines of this process.
    #[must_use]
    pub fn new(shape: Shape, tags: &[String]) -> Self {
        let job = log::job_fields();
        let fixed = match shape {
            Shape::Plain => job
                .iter()
                .map(|(name, value)| format!(" {name}={}", PrintableWord(value)))
                .collect(),
            Shape::Json => {
                let frame = log::logstash_fields("INFO", LOGGER, tags, &job);
                let text = serde_json::Value::Object(frame).to_string();
                // Its members, to stand among others.
                text[1..text.len() - 1].to_owned()
            }
        };
        Self { shape, fixed }
    }

    /// Adds the line of a request that took so long. Its record was begun for a log.
    pub(super) fn write(&self, to: &mut Vec<u8>, record: &Record, took: Duration) {
        let Some(asked) = &record.asked else {
            return;
        };
        let said = said(record, asked, took);
        let before = to.len();
        let written = match self.shape {
            Shape::Plain => self.plain(to, record, &said),
            Shape::Json => self.json(to, record, &said),
        };
        if written.is_err() {
            // A vector takes everything; what cannot be shown leaves no half of a line.
            to.truncate(before);
        }
        if self.shape == Shape::Json && !to[before..].is_ascii() {
            let line = String::from_utf8_lossy(&to[before..]).into_owned();
            to.truncate(before);
            to.extend_from_slice(escape_json(line.trim_end()).as_bytes());
            to.push(b'\n');
        }
    }

    fn plain(
        &self,
        to: &mut Vec<u8>,
        record: &Record,
        said: &LineFields<'_>,
    ) -> std::io::Result<()> {
        write!(
            to,
            "{} {LOGGER}: {} {} {}",
            timestamp(),
            said.client,
            said.method,
            PrintableWord(&said.path)
        )?;
        if let Some(query) = &said.query {
            write!(to, "?{}", PrintableWord(query))?;
        }
        write!(to, " {} {:.3}ms", said.status, said.milliseconds)?;
        if let Some(server) = said.server_milliseconds {
            write!(to, " server={server:.3}ms")?;
        }
        write!(to, " in={} out={}", record.received, record.sent)?;
        if let Some(refusal) = record.refusal {
            write!(to, " refused={}", refusal.reason())?;
        }
        if let Some((needed, has)) = rights(record) {
            write!(
                to,
                " needed={} has={}",
                PrintableWord(&needed),
                PrintableWord(&has)
            )?;
        }
        if let Some(grant) = &record.grant {
            write!(to, " key={}", PrintableWord(&grant.id))?;
        }
        if let Some(key) = &record.key {
            write!(to, " key_sha256={:.8}", key.to_string())?;
        }
        if let Some(route) = &record.route {
            write!(to, " route={}", PrintableWord(route))?;
        }
        if let Some(mark) = said.mark {
            write!(to, " mark={mark}")?;
        }
        if let Some(truncation) = record.cut {
            write!(to, " cut={}", truncation.as_str())?;
        }
        if let Some(detail) = &record.detail {
            write!(to, " detail={:?}", start(detail, LONGEST_DETAIL))?;
        }
        writeln!(to, " request={}{}", PrintableWord(said.id), self.fixed)
    }

    fn json(
        &self,
        to: &mut Vec<u8>,
        record: &Record,
        said: &LineFields<'_>,
    ) -> std::io::Result<()> {
        write!(
            to,
            "{{\"@timestamp\":\"{}\",{},\"message\":",
            timestamp(),
            self.fixed
        )?;
        let message = format_args!("{} {} {}", said.method, said.path, said.status);
        serde_json::to_writer(&mut *to, &JsonText(message))?;
        write!(to, ",\"client\":\"{}\"", said.client)?;
        member(to, "method", said.method)?;
        member(to, "path", &said.path)?;
        if let Some(query) = &said.query {
            member(to, "query", query)?;
        }
        write!(
            to,
            ",\"status\":{},\"bytes_in\":{},\"bytes_out\":{},\"duration_ms\":{:.3}",
            said.status, record.received, record.sent, said.milliseconds
        )?;
        if let Some(server) = said.server_milliseconds {
            write!(to, ",\"server_ms\":{server:.3}")?;
        }
        if let Some(refusal) = record.refusal {
            member(to, "refusal", refusal.reason())?;
        }
        if let Some((needed, has)) = rights(record) {
            member(to, "needed", &needed)?;
            member(to, "has", &has)?;
        }
        if let Some(grant) = &record.grant {
            member(to, "key_id", &grant.id)?;
        }
        if let Some(key) = &record.key {
            write!(to, ",\"key_sha256\":\"{:.8}\"", key.to_string())?;
        }
        if let Some(route) = &record.route {
            member(to, "route", route)?;
        }
        if let Some(mark) = said.mark {
            member(to, "mark", mark)?;
        }
        if let Some(truncation) = record.cut {
            write!(to, ",\"cut\":true")?;
            member(to, "cut_cause", truncation.as_str())?;
        }
        if let Some(detail) = &record.detail {
            member(to, "detail", start(detail, LONGEST_DETAIL))?;
        }
        member(to, "request_id", said.id)?;
        writeln!(to, "}}")
    }
}

fn said<'r>(record: &Record, asked: &'r Asked, took: Duration) -> LineFields<'r> {
    let credentials = &asked.site.credentials;
    let query = asked.uri.query();
    LineFields {
        id: asked.id.to_str().unwrap_or_default(),
        client: asked.client,
        method: asked.method.as_str(),
        path: short(credential::mask_path(asked.uri.path(), credentials)),
        query: query.map(|query| short(credential::mask_query(query, credentials))),
        status: record.status.map_or(0, |status| status.as_u16()),
        milliseconds: milliseconds(took),
        server_milliseconds: record.server.map(milliseconds),
        mark: match record.mark {
            Some(AllowReason::StaleGrant) => Some("stale"),
            Some(AllowReason::OpenPath) => Some("open"),
            Some(AllowReason::ForwardedPreflight | AllowReason::AnsweredPreflight) => {
                Some("preflight")
            }
            Some(AllowReason::FailOpen) => Some("fail-open"),
            Some(AllowReason::ValidKey) | None => None,
        },
    }
}

/// No more of a text than is shown.
fn short(text: Cow<'_, str>) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(start(text, LONGEST)),
        Cow::Owned(text) => Cow::Owned(start(&text, LONGEST).to_owned()),
    }
}

fn start(text: &str, longest: usize) -> &str {
    &text[..text.floor_char_boundary(longest)]
}

/// The rights that a request needs and those of its key, if the key lacks one of them.
fn rights(record: &Record) -> Option<(String, String)> {
    let grant = record.grant.as_ref()?;
    let listed = |rights: &[String]| start(&rights.join(","), LONGEST).to_owned();
    (!record.needed.is_empty()).then(|| (listed(&record.needed), listed(&grant.rights)))
}

fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// RFC 3339 in UTC with milliseconds.
fn timestamp() -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_millis(clock::now().max(SystemTime::UNIX_EPOCH))
}

/// `,"name":"value"`.
fn member(to: &mut Vec<u8>, name: &str, value: &str) -> std::io::Result<()> {
    // As in all our lines, a field that says nothing is left out: the query of `/?`.
    if value.is_empty() {
        return Ok(());
    }
    write!(to, ",\"{name}\":")?;
    serde_json::to_writer(to, value)?;
    Ok(())
}

/// What is formatted, as a JSON string.
struct JsonText<'a>(fmt::Arguments<'a>);

impl serde::Serialize for JsonText<'_> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

/// A text that cannot drive a terminal, nor end a line or a word of it.
struct PrintableWord<'a>(&'a str);

impl fmt::Display for PrintableWord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| is_printable(c) && c != ' ';
        if self.0.chars().all(plain) {
            return f.write_str(self.0);
        }
        for c in self.0.chars() {
            if plain(c) {
                fmt::Write::write_char(f, c)?;
            } else {
                write!(f, "{}", c.escape_unicode())?;
            }
        }
        Ok(())
    }
}
