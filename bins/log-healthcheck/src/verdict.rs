//! Evaluation of what a check has read: healthy or not, as a reason for Aurora's page, as a line with Nagios'
//! performance data, and as JSON.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use hostkit::nagios::{NagiosStatus, escape};
use serde_json::{Value, json};

use crate::check_state::CheckState;
use crate::log_reader::{CheckCriteria, LogSummary};
use crate::wall_time::WallTime;

/// The reason of a verdict, in the 7 bytes that Aurora's page shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckReason {
    /// A line in time, or not enough time for one yet.
    Ok,
    /// The newest line is older than `--warning`.
    Aging,
    /// The newest line is too old, or nothing was written for that long.
    Stale,
    /// The log is written to, but without a matching line.
    NoLines,
    /// The log is written to in an encoding that no pattern matches.
    NoMatch,
    /// No log exists.
    NoLog,
    /// A log cannot be read.
    Unread,
    /// More logs than are read.
    TooMany,
}

impl CheckReason {
    /// The reason in the health contract.
    pub(crate) fn to_health_reason(self) -> hostkit::health::HealthReason {
        use hostkit::health::HealthReason;
        match self {
            Self::Ok => HealthReason::OK,
            Self::Aging => const { HealthReason::word("aging") },
            Self::Stale => const { HealthReason::word("stale") },
            Self::NoLines => const { HealthReason::word("nolines") },
            Self::NoMatch => const { HealthReason::word("nomatch") },
            Self::NoLog => const { HealthReason::word("nolog") },
            Self::Unread => const { HealthReason::word("unread") },
            Self::TooMany => const { HealthReason::word("toomany") },
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Aging => "aging",
            Self::Stale => "stale",
            Self::NoLines => "nolines",
            Self::NoMatch => "nomatch",
            Self::NoLog => "nolog",
            Self::Unread => "unread",
            Self::TooMany => "toomany",
        }
    }
}

#[derive(Debug)]
pub(crate) struct CheckVerdict {
    pub(crate) status: NagiosStatus,
    pub(crate) reason: CheckReason,
    pub(crate) message: String,
    /// The age of the newest matching line, if there was one.
    pub(crate) age: Option<Duration>,
}

/// The start of checking, and the time after it in which a failure is healthy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GracePeriod {
    /// The first check, as far as it is known.
    pub(crate) first_check: WallTime,
    pub(crate) grace: Duration,
}

/// Evaluates a check. Times in `state` are at most `now`.
pub(crate) fn evaluate(
    criteria: &CheckCriteria,
    state: &CheckState,
    summary: &LogSummary,
    grace_period: GracePeriod,
    searched: &str,
    now: WallTime,
) -> CheckVerdict {
    let limit = criteria.freshness;
    let age = state.newest.map(|newest| newest.age(now));
    let observed = grace_period.first_check.age(now);
    let expected = match criteria.pattern.text() {
        "" => "line".to_owned(),
        text => format!("line beginning with {text:?}"),
    };
    let last_written = summary.last_written.as_ref();
    let in_log =
        last_written.map_or_else(String::new, |(path, _)| format!(" in {}", path.display()));
    let silence = last_written
        .map(|(_, time)| time.age(now))
        .filter(|age| *age > limit);
    let verdict = |status, reason, message| CheckVerdict {
        status,
        reason,
        message,
        age,
    };
    if let Some(age) = age.filter(|age| *age <= limit) {
        let message = format!(
            "a {expected} was written {} ago{in_log}",
            format_seconds(age)
        );
        return match criteria.warning.is_some_and(|warning| age > warning) {
            true => verdict(NagiosStatus::Warning, CheckReason::Aging, message),
            false => verdict(NagiosStatus::Ok, CheckReason::Ok, message),
        };
    }
    let unhealthy = if let Some((path, error)) = &summary.unreadable {
        let message = format!(
            "cannot read {}: {error}; run the check as the user of the job",
            path.display()
        );
        return verdict(NagiosStatus::Unknown, CheckReason::Unread, message);
    } else if summary.logs == 0 {
        let what = match &summary.not_a_file {
            Some(path) => format!("{} is not a regular file", path.display()),
            None => format!(
                "no log at {searched}: the process has not started, or its logger writes no files"
            ),
        };
        verdict(NagiosStatus::Critical, CheckReason::NoLog, what)
    } else if let Some(silence) = silence {
        let message = format!(
            "nothing was written for {}{in_log}",
            format_seconds(silence)
        );
        verdict(NagiosStatus::Critical, CheckReason::Stale, message)
    } else if summary.is_utf16 && (age.is_some() || observed > limit) {
        let message = format!("UTF-16, which no pattern matches{in_log}: write UTF-8 instead");
        verdict(NagiosStatus::Critical, CheckReason::NoMatch, message)
    } else if let Some(age) = age {
        let message = format!(
            "no {expected} was written for {}{in_log}",
            format_seconds(age)
        );
        verdict(NagiosStatus::Critical, CheckReason::Stale, message)
    } else if observed <= limit {
        let encoding = match summary.is_utf16 {
            true => ", which is UTF-16 and matches no pattern",
            false => "",
        };
        let observed = format_seconds(observed);
        let message = format!("no {expected} yet{in_log}{encoding}, checked for {observed}");
        return verdict(NagiosStatus::Ok, CheckReason::Ok, message);
    } else {
        let message = format!("no {expected} in {}{in_log}", format_seconds(observed));
        verdict(NagiosStatus::Critical, CheckReason::NoLines, message)
    };
    if observed < grace_period.grace {
        let message = format!(
            "{}, within the grace period of {}",
            unhealthy.message,
            format_seconds(grace_period.grace)
        );
        return verdict(NagiosStatus::Ok, CheckReason::Ok, message);
    }
    if let Some(omitted) = &summary.omitted {
        let message = format!(
            "{}, but not all logs were checked: {omitted}",
            unhealthy.message
        );
        return verdict(NagiosStatus::Unknown, CheckReason::TooMany, message);
    }
    unhealthy
}

impl CheckVerdict {
    /// Appends notes on future times, deviating times and an unsaved state.
    pub(crate) fn add_notes(&mut self, summary: &LogSummary, saved: &io::Result<()>) {
        if summary.has_future_time {
            self.message
                .push_str("; a time in the future counts as now: check the clocks");
        }
        if let Some(time_offset) = summary
            .time_offset
            .filter(|_| summary.has_future_time || self.status != NagiosStatus::Ok)
        {
            let _ = write!(
                self.message,
                "; the newest time in a line differs from its file's modification time by {}: use --time-from file \
                 if it is not the time of writing",
                format_seconds(time_offset)
            );
        }
        if let Err(error) = saved {
            let _ = write!(
                self.message,
                "; state not saved ({error}): only times in lines are exact"
            );
        }
    }

    /// The line for Nagios: state, text, and after `|` the performance data.
    pub(crate) fn to_nagios_line(&self, criteria: &CheckCriteria, summary: &LogSummary) -> String {
        let reason = match self.status {
            NagiosStatus::Ok => String::new(),
            _ => format!("{}: ", self.reason.as_str()),
        };
        let age = match self.age {
            Some(age) => format!("{:.3}s", age.as_secs_f64()),
            None => "U".to_owned(),
        };
        let warning = criteria
            .warning
            .map(|warning| warning.as_secs_f64().to_string());
        format!(
            "{}: {reason}{} | age={age};{};{};0 read={}B",
            self.status.as_str(),
            escape(&self.message),
            warning.unwrap_or_default(),
            criteria.freshness.as_secs_f64(),
            summary.read,
        )
    }

    pub(crate) fn to_json(
        &self,
        criteria: &CheckCriteria,
        summary: &LogSummary,
        saved: bool,
    ) -> Value {
        json!({
            "status": self.status.as_str(),
            "reason": self.reason.as_str(),
            "message": self.message,
            "age_seconds": self.age.map(|age| age.as_secs_f64()),
            "warning_seconds": criteria.warning.map(|warning| warning.as_secs_f64()),
            "freshness_seconds": criteria.freshness.as_secs_f64(),
            "logs": summary.logs,
            "read_bytes": summary.read,
            "state_saved": saved,
        })
    }
}

/// Formats seconds for people: `3.2 s`, `134 s`.
fn format_seconds(span: Duration) -> String {
    match span.as_secs_f64() {
        seconds if seconds < 10.0 => format!("{seconds:.1} s"),
        seconds => format!("{seconds:.0} s"),
    }
}
