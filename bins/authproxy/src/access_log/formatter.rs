//! The format of an access log line: plain text, or logstash v1 JSON.

use std::borrow::Cow;
use std::fmt;
use std::io::Write as _;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use hostkit::printable::{escape_json, is_printable};
use hostkit::{clock, log};

use crate::authorizer::AllowReason;
use crate::credential;
use crate::record::{LoggedRequest, RequestRecord};
use crate::settings::AccessLogFormat as LineFormat;

/// The most bytes of a path, and of a query.
const MAX_TARGET: usize = 4096;
/// The most bytes of a detail.
const MAX_DETAIL: usize = 512;
const LOGGER: &str = "authproxy.access";

/// The format of lines, and the part that is the same in all of them.
#[derive(Debug)]
pub(super) struct LineFormatter {
    format: LineFormat,
    /// The end of plain lines; the constant members of JSON lines.
    fixed: String,
}

/// The fields of a line in both formats.
struct LineFields<'r> {
    request_id: &'r str,
    client: IpAddr,
    method: &'r str,
    path: Cow<'r, str>,
    query: Option<Cow<'r, str>>,
    status: u16,
    duration_ms: f64,
    upstream_ms: Option<f64>,
    allow_reason: Option<&'static str>,
}

impl LineFormatter {
    pub(super) fn new(format: LineFormat, tags: &[String]) -> Self {
        let job = log::job_fields();
        let fixed = match format {
            LineFormat::Plain => job
                .iter()
                .map(|(name, value)| format!(" {name}={}", PrintableWord(value)))
                .collect(),
            LineFormat::Json => {
                let frame = log::logstash_fields("INFO", LOGGER, tags, &job);
                let text = serde_json::Value::Object(frame).to_string();
                // Without the braces: other members follow.
                text[1..text.len() - 1].to_owned()
            }
        };
        Self { format, fixed }
    }

    /// Appends the line of a request.
    pub(super) fn write(&self, to: &mut Vec<u8>, record: &RequestRecord, duration: Duration) {
        let Some(asked) = &record.logged else {
            return;
        };
        let fields = LineFields::new(record, asked, duration);
        let before = to.len();
        let written = match self.format {
            LineFormat::Plain => self.write_plain(to, record, &fields),
            LineFormat::Json => self.write_json(to, record, &fields),
        };
        if written.is_err() {
            // Not a part of a line.
            to.truncate(before);
        }
        if self.format == LineFormat::Json && !to[before..].is_ascii() {
            let line = String::from_utf8_lossy(&to[before..]).into_owned();
            to.truncate(before);
            to.extend_from_slice(escape_json(line.trim_end()).as_bytes());
            to.push(b'\n');
        }
    }

    fn write_plain(
        &self,
        to: &mut Vec<u8>,
        record: &RequestRecord,
        fields: &LineFields<'_>,
    ) -> std::io::Result<()> {
        write!(
            to,
            "{} {LOGGER}: {} {} {}",
            timestamp(),
            fields.client,
            fields.method,
            PrintableWord(&fields.path)
        )?;
        if let Some(query) = &fields.query {
            write!(to, "?{}", PrintableWord(query))?;
        }
        write!(to, " {} {:.3}ms", fields.status, fields.duration_ms)?;
        if let Some(upstream_ms) = fields.upstream_ms {
            write!(to, " upstream_ms={upstream_ms:.3}")?;
        }
        write!(
            to,
            " bytes_in={} bytes_out={}",
            record.bytes_in, record.bytes_out
        )?;
        if let Some(error) = record.error {
            write!(to, " reason={}", error.reason())?;
        }
        if let Some((required, granted)) = missing_rights(record) {
            write!(
                to,
                " required_rights={} key_rights={}",
                PrintableWord(&required),
                PrintableWord(&granted)
            )?;
        }
        if let Some(grant) = &record.grant {
            write!(to, " key_id={}", PrintableWord(&grant.id))?;
        }
        if let Some(key) = &record.key {
            write!(to, " key_sha256={:.8}", key.to_string())?;
        }
        if let Some(route) = &record.route {
            write!(to, " route={}", PrintableWord(route))?;
        }
        if let Some(allow_reason) = fields.allow_reason {
            write!(to, " allow_reason={allow_reason}")?;
        }
        if let Some(truncation) = record.truncation {
            write!(to, " truncated={}", truncation.as_str())?;
        }
        if let Some(detail) = &record.detail {
            write!(to, " detail={:?}", prefix(detail, MAX_DETAIL))?;
        }
        writeln!(
            to,
            " request_id={}{}",
            PrintableWord(fields.request_id),
            self.fixed
        )
    }

    fn write_json(
        &self,
        to: &mut Vec<u8>,
        record: &RequestRecord,
        fields: &LineFields<'_>,
    ) -> std::io::Result<()> {
        write!(
            to,
            "{{\"@timestamp\":\"{}\",{},\"message\":",
            timestamp(),
            self.fixed
        )?;
        let message = format_args!("{} {} {}", fields.method, fields.path, fields.status);
        serde_json::to_writer(&mut *to, &JsonText(message))?;
        write!(to, ",\"client\":\"{}\"", fields.client)?;
        write_member(to, "method", fields.method)?;
        write_member(to, "path", &fields.path)?;
        if let Some(query) = &fields.query {
            write_member(to, "query", query)?;
        }
        write!(
            to,
            ",\"status\":{},\"bytes_in\":{},\"bytes_out\":{},\"duration_ms\":{:.3}",
            fields.status, record.bytes_in, record.bytes_out, fields.duration_ms
        )?;
        if let Some(upstream_ms) = fields.upstream_ms {
            write!(to, ",\"upstream_ms\":{upstream_ms:.3}")?;
        }
        if let Some(error) = record.error {
            write_member(to, "reason", error.reason())?;
        }
        if let Some((required, granted)) = missing_rights(record) {
            write_member(to, "required_rights", &required)?;
            write_member(to, "key_rights", &granted)?;
        }
        if let Some(grant) = &record.grant {
            write_member(to, "key_id", &grant.id)?;
        }
        if let Some(key) = &record.key {
            write!(to, ",\"key_sha256\":\"{:.8}\"", key.to_string())?;
        }
        if let Some(route) = &record.route {
            write_member(to, "route", route)?;
        }
        if let Some(allow_reason) = fields.allow_reason {
            write_member(to, "allow_reason", allow_reason)?;
        }
        if let Some(truncation) = record.truncation {
            write!(to, ",\"truncated\":true")?;
            write_member(to, "truncation_reason", truncation.as_str())?;
        }
        if let Some(detail) = &record.detail {
            write_member(to, "detail", prefix(detail, MAX_DETAIL))?;
        }
        write_member(to, "request_id", fields.request_id)?;
        writeln!(to, "}}")
    }
}

impl<'r> LineFields<'r> {
    fn new(record: &RequestRecord, asked: &'r LoggedRequest, duration: Duration) -> Self {
        let credentials = &asked.site.credentials;
        let query = asked.uri.query();
        Self {
            request_id: asked.id.to_str().unwrap_or_default(),
            client: asked.client,
            method: asked.method.as_str(),
            path: shorten(credential::mask_path(asked.uri.path(), credentials)),
            query: query.map(|query| shorten(credential::mask_query(query, credentials))),
            status: record.status.map_or(0, |status| status.as_u16()),
            duration_ms: milliseconds(duration),
            upstream_ms: record.upstream_duration.map(milliseconds),
            allow_reason: match record.allow_reason {
                Some(AllowReason::StaleGrant) => Some("stale"),
                Some(AllowReason::OpenPath) => Some("open_path"),
                Some(AllowReason::ForwardedPreflight | AllowReason::AnsweredPreflight) => {
                    Some("preflight")
                }
                Some(AllowReason::FailOpen) => Some("fail_open"),
                Some(AllowReason::ValidKey) | None => None,
            },
        }
    }
}

fn shorten(text: Cow<'_, str>) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(prefix(text, MAX_TARGET)),
        Cow::Owned(text) => Cow::Owned(prefix(&text, MAX_TARGET).to_owned()),
    }
}

fn prefix(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

/// The rights that a request requires and those of its key, if the key lacks one.
fn missing_rights(record: &RequestRecord) -> Option<(String, String)> {
    let grant = record.grant.as_ref()?;
    let join = |rights: &[String]| prefix(&rights.join(","), MAX_TARGET).to_owned();
    (!record.required_rights.is_empty())
        .then(|| (join(&record.required_rights), join(&grant.rights)))
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// RFC 3339 in UTC with milliseconds.
fn timestamp() -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_millis(clock::now().max(SystemTime::UNIX_EPOCH))
}

/// `,"name":"value"`.
fn write_member(to: &mut Vec<u8>, name: &str, value: &str) -> std::io::Result<()> {
    // Empty fields are left out, as in all log lines: the query of `/?`.
    if value.is_empty() {
        return Ok(());
    }
    write!(to, ",\"{name}\":")?;
    serde_json::to_writer(to, value)?;
    Ok(())
}

/// Formatted text, serialized as a JSON string without an allocation.
struct JsonText<'a>(fmt::Arguments<'a>);

impl serde::Serialize for JsonText<'_> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

/// A text without terminal control characters, line breaks and spaces.
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
