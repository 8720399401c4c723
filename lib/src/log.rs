//! Log output on stderr, as plain text or as logstash v1 JSON. Owns format, level and destination.

use std::fmt;
use std::time::SystemTime;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use crate::printable::{escape, escape_json};

/// The environment variables of thermos jobs (`.thermos_profile`); each one set is a field of every line.
const JOB_VARIABLES: [&str; 4] = [
    "CB_AURORA_INSTANCE",
    "CB_AURORA_HOSTNAME",
    "CB_AURORA_TASK_ID",
    "CB_AURORA_STAGE",
];

/// The least severe messages that are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// Events.
    Info,
    /// Recoverable problems.
    #[value(alias = "warn")]
    Warning,
    /// Failures.
    Error,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Info => Self::INFO,
            LogLevel::Warning => Self::WARN,
            LogLevel::Error => Self::ERROR,
        }
    }
}

/// Sends the log events of this process to stderr. Later calls have no effect.
pub fn init(tool: &'static str, level: LogLevel, json: bool, tags: Vec<String>) {
    let format = EventFormatter {
        tool,
        level,
        json,
        tags,
        job: job_fields(),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::from(level))
        .with_writer(std::io::stderr)
        .event_format(format)
        .finish();
    // A test may run several tools in one process: the settings of the first one stay.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// The job of this process: name and value of each job variable that is set.
#[must_use]
pub fn job_fields() -> Vec<(&'static str, String)> {
    JOB_VARIABLES
        .iter()
        .filter_map(|name| Some((*name, crate::env::var(name)?)))
        .collect()
}

/// The constant fields of a logstash v1 line, without `@timestamp`, `message` and fields of its own. For a log with too
/// many lines to send each through `tracing`.
#[must_use]
pub fn logstash_fields(
    level: &str,
    logger: &str,
    tags: &[String],
    job: &[(&'static str, String)],
) -> Map<String, Value> {
    let mut line = Map::new();
    line.insert("@version".into(), "1".into());
    line.insert("level".into(), level.into());
    line.insert("logger_name".into(), logger.into());
    line.insert("host".into(), hostname().into());
    line.insert("pid".into(), std::process::id().into());
    line.insert("tags".into(), tags.into());
    line.retain(|_, value| !is_empty(value));
    for (name, value) in job {
        line.insert((*name).into(), value.clone().into());
    }
    line
}

/// Whether a field is empty, and so left out.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        _ => false,
    }
}

struct EventFormatter {
    tool: &'static str,
    level: LogLevel,
    json: bool,
    tags: Vec<String>,
    job: Vec<(&'static str, String)>,
}

impl<S, N> FormatEvent<S, N> for EventFormatter
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        // The AWS SDK warns of every absent credential source, which is normal for a chain of them.
        let chatty =
            metadata.target().starts_with("aws_") && *metadata.level() != tracing::Level::ERROR;
        if chatty && self.level != LogLevel::Debug {
            return Ok(());
        }
        let mut fields = EventFields::default();
        event.record(&mut fields);
        // The targets of libraries (hyper::client, aws_config::..) help with debugging; ours is the tool's name.
        let target = metadata.target();
        let own = |crate_name: &str| target.split("::").next() == Some(crate_name);
        let logger = if own("hostkit") || own(&self.tool.replace('-', "_")) {
            self.tool
        } else {
            target
        };
        let level = match *metadata.level() {
            tracing::Level::WARN => "WARNING",
            other => other.as_str(),
        };
        let line = if self.json {
            let line = self.logstash(level, logger, fields).to_string();
            escape_json(&line).into_owned()
        } else {
            self.plain(level, logger, &fields)
        };
        writeln!(writer, "{line}")
    }
}

impl EventFormatter {
    fn plain(&self, level: &str, logger: &str, fields: &EventFields) -> String {
        let mut line = format!(
            "{} {level} {logger}: {}",
            timestamp(),
            escape(&fields.message)
        );
        for (name, value) in &fields.rest {
            match value {
                Value::String(text) => line.push_str(&format!(" {name}={}", escape(text))),
                other => line.push_str(&format!(" {name}={other}")),
            }
        }
        for (name, value) in &self.job {
            line.push_str(&format!(" {name}={}", escape(value)));
        }
        line
    }

    fn logstash(&self, level: &str, logger: &str, fields: EventFields) -> Value {
        let mut line = logstash_fields(level, logger, &self.tags, &self.job);
        line.insert("@timestamp".into(), timestamp().into());
        line.insert("message".into(), fields.message.into());
        for (name, value) in fields.rest {
            // A field never replaces one that logstash defines.
            line.entry(name).or_insert(value);
        }
        Value::Object(line)
    }
}

/// RFC 3339 in UTC with milliseconds.
fn timestamp() -> String {
    humantime::format_rfc3339_millis(crate::clock::now().max(SystemTime::UNIX_EPOCH)).to_string()
}

fn hostname() -> String {
    nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

#[derive(Default)]
struct EventFields {
    message: String,
    rest: Vec<(String, Value)>,
}

impl EventFields {
    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (_, value) if is_empty(&value) => {}
            (name, value) => self.rest.push((name.to_owned(), value)),
        }
    }
}

impl Visit for EventFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}").into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, SeekFrom};

    use super::*;

    fn format(json: bool) -> EventFormatter {
        EventFormatter {
            tool: "s3cache",
            level: LogLevel::Info,
            json,
            tags: vec!["eight_ball".into()],
            job: vec![("CB_AURORA_INSTANCE", "3".into())],
        }
    }

    fn fields() -> EventFields {
        EventFields {
            message: "fetched".into(),
            rest: vec![("bytes".into(), 7.into()), ("level".into(), "x".into())],
        }
    }

    #[test]
    fn logstash_lines_have_the_v1_fields_and_the_job() {
        let line = format(true).logstash("INFO", "s3cache", fields());
        for name in ["@timestamp", "host", "pid"] {
            assert!(!line[name].is_null(), "{name}");
        }
        assert_eq!(line["@version"], "1");
        assert_eq!(line["message"], "fetched");
        assert_eq!(line["bytes"], 7);
        assert_eq!(
            line["level"], "INFO",
            "a field does not replace a reserved one"
        );
        assert_eq!(line["tags"], serde_json::json!(["eight_ball"]));
        assert_eq!(line["CB_AURORA_INSTANCE"], "3");
        let stamp = line["@timestamp"].as_str().unwrap();
        assert!(
            stamp.len() == 24 && stamp.ends_with('Z') && stamp.as_bytes()[19] == b'.',
            "{stamp}"
        );
    }

    #[test]
    fn empty_fields_are_left_out_of_lines() {
        for json in [true, false] {
            let mut file = tempfile::tempfile().unwrap();
            let writer = file.try_clone().unwrap();
            let format = EventFormatter {
                tags: Vec::new(),
                ..format(json)
            };
            let subscriber = tracing_subscriber::fmt()
                .with_writer(move || writer.try_clone().unwrap())
                .event_format(format)
                .finish();
            tracing::subscriber::with_default(subscriber, || {
                tracing::error!(because = "", path = %"", bytes = 0, "failed");
            });
            let mut line = String::new();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_to_string(&mut line).unwrap();
            for name in ["because", "path", "tags"] {
                assert!(!line.contains(name), "{line}");
            }
            assert!(line.contains("bytes"), "0 is a value: {line}");
        }
    }

    #[test]
    fn plain_lines_cannot_be_forged() {
        let hostile = EventFields {
            message: "got \x1b[2J\nERROR s3cache: gone \u{202e}".into(),
            rest: vec![("path".into(), "\u{2066}xep".into())],
        };
        let line = format(false).plain("INFO", "s3cache", &hostile);
        assert!(line.chars().all(crate::printable::is_printable), "{line}");
        assert!(line.ends_with("CB_AURORA_INSTANCE=3"));
    }
}
