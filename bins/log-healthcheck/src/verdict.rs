//! From what was seen to what is said: healthy or not, in a word for Aurora's page, in a line for people with Nagios'
//! performance data, and as JSON.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use hostkit::nagios::{NagiosStatus, escape};
use serde_json::{Value, json};

use crate::moment::Moment;
use crate::state::State;
use crate::watch::{Question, Seen};

/// Why, in what fits into the 7 bytes that Aurora's page shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A line is new enough, or there has not been enough time for one.
    Ok,
    /// The newest line is older than `--warning`.
    Aging,
    /// The newest line is too old, or nothing at all was written for that long.
    Stale,
    /// Something was written, but no line that begins so.
    NoLines,
    /// Something was written, but in an encoding in which no line can begin so.
    NoMatch,
    /// There is no log.
    NoLog,
    /// A log cannot be read.
    Unread,
    /// There are more logs than are looked at.
    TooMany,
}

impl Reason {
    /// The word, as the health contract has it.
    #[must_use]
    pub fn aurora(self) -> hostkit::health::HealthReason {
        use hostkit::health::HealthReason as Aurora;
        match self {
            Self::Ok => Aurora::OK,
            Self::Aging => const { Aurora::word("aging") },
            Self::Stale => const { Aurora::word("stale") },
            Self::NoLines => const { Aurora::word("nolines") },
            Self::NoMatch => const { Aurora::word("nomatch") },
            Self::NoLog => const { Aurora::word("nolog") },
            Self::Unread => const { Aurora::word("unread") },
            Self::TooMany => const { Aurora::word("toomany") },
        }
    }

    /// The word.
    #[must_use]
    pub fn word(self) -> &'static str {
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

/// What is said.
#[derive(Debug)]
pub struct Verdict {
    /// Healthy or not.
    pub status: NagiosStatus,
    /// Why.
    pub reason: Reason,
    /// Why, for people.
    pub message: String,
    /// How old the newest line is, if there ever was one.
    pub age: Option<Duration>,
}

/// When the check began to look, and how long after that no log is no reason to worry.
#[derive(Debug, Clone, Copy)]
pub struct Beginning {
    /// The first check, as far as it is known.
    pub first_check: Moment,
    /// `--grace`.
    pub grace: Duration,
}

/// Decides. Times in `state` are not behind `now`.
#[must_use]
pub fn decide(
    question: &Question,
    state: &State,
    seen: &Seen,
    beginning: Beginning,
    searched: &str,
    now: Moment,
) -> Verdict {
    let limit = question.freshness;
    let age = state.newest.map(|newest| newest.age(now));
    let watched = beginning.first_check.age(now);
    let wanted = match question.pattern.text() {
        "" => "line".to_owned(),
        text => format!("line beginning with {text:?}"),
    };
    let written = seen.written.as_ref();
    let in_log = written.map_or_else(String::new, |(path, _)| format!(" in {}", path.display()));
    let silence = written
        .map(|(_, time)| time.age(now))
        .filter(|age| *age > limit);
    let verdict = |status, reason, message| Verdict {
        status,
        reason,
        message,
        age,
    };
    if let Some(age) = age.filter(|age| *age <= limit) {
        let message = format!("a {wanted} was written {} ago{in_log}", seconds(age));
        return match question.warning.is_some_and(|warning| age > warning) {
            true => verdict(NagiosStatus::Warning, Reason::Aging, message),
            false => verdict(NagiosStatus::Ok, Reason::Ok, message),
        };
    }
    let sick = if let Some((path, error)) = &seen.unread {
        let message = format!(
            "cannot read {}: {error}; run the check as the user of the job",
            path.display()
        );
        return verdict(NagiosStatus::Unknown, Reason::Unread, message);
    } else if seen.logs == 0 {
        let what = match &seen.not_a_file {
            Some(path) => format!("{} is not a regular file", path.display()),
            None => format!("no log at {searched}: not started, or its logger writes no files"),
        };
        verdict(NagiosStatus::Critical, Reason::NoLog, what)
    } else if let Some(silence) = silence {
        let message = format!("nothing was written for {}{in_log}", seconds(silence));
        verdict(NagiosStatus::Critical, Reason::Stale, message)
    } else if seen.utf16 && (age.is_some() || watched > limit) {
        let message = format!("UTF-16: no pattern is found{in_log}: let its writer use UTF-8");
        verdict(NagiosStatus::Critical, Reason::NoMatch, message)
    } else if let Some(age) = age {
        let message = format!("no {wanted} was written for {}{in_log}", seconds(age));
        verdict(NagiosStatus::Critical, Reason::Stale, message)
    } else if watched <= limit {
        let encoding = match seen.utf16 {
            true => ", which is UTF-16: no pattern is found in that",
            false => "",
        };
        let watched = seconds(watched);
        let message = format!("no {wanted} yet{in_log}{encoding}, watched for {watched}");
        return verdict(NagiosStatus::Ok, Reason::Ok, message);
    } else {
        let message = format!("no {wanted} in {}{in_log}", seconds(watched));
        verdict(NagiosStatus::Critical, Reason::NoLines, message)
    };
    if watched < beginning.grace {
        let message = format!(
            "{}, within the grace of {}",
            sick.message,
            seconds(beginning.grace)
        );
        return verdict(NagiosStatus::Ok, Reason::Ok, message);
    }
    if let Some(left_out) = &seen.left_out {
        let message = format!(
            "{}, but not all logs were looked at: {left_out}",
            sick.message
        );
        return verdict(NagiosStatus::Unknown, Reason::TooMany, message);
    }
    sick
}

impl Verdict {
    /// Adds what else there is to say.
    pub(crate) fn note(&mut self, seen: &Seen, saved: &io::Result<()>) {
        if seen.future {
            self.message
                .push_str("; a time in the future counts as now: clocks differ or were set");
        }
        if let Some(apart) = seen
            .apart
            .filter(|_| seen.future || self.status != NagiosStatus::Ok)
        {
            let _ = write!(
                self.message,
                "; the newest time in a line is {} from the time of its file: if it is not when the line was written, \
                 give --time-from file",
                seconds(apart)
            );
        }
        if let Err(error) = saved {
            let _ = write!(
                self.message,
                "; state not saved ({error}): only times in lines are exact"
            );
        }
    }

    /// The line that Nagios reads: state, text, and behind `|` the age and what was read.
    #[must_use]
    pub fn line(&self, question: &Question, seen: &Seen) -> String {
        let reason = match self.status {
            NagiosStatus::Ok => String::new(),
            _ => format!("{}: ", self.reason.word()),
        };
        let age = match self.age {
            Some(age) => format!("{:.3}s", age.as_secs_f64()),
            None => "U".to_owned(),
        };
        let warning = question
            .warning
            .map(|warning| warning.as_secs_f64().to_string());
        format!(
            "{}: {reason}{} | age={age};{};{};0 read={}B",
            self.status.as_str(),
            escape(&self.message),
            warning.unwrap_or_default(),
            question.freshness.as_secs_f64(),
            seen.read,
        )
    }

    /// The same for programs.
    #[must_use]
    pub fn json(&self, question: &Question, seen: &Seen, saved: bool) -> Value {
        json!({
            "status": self.status.as_str(),
            "reason": self.reason.word(),
            "message": self.message,
            "age_seconds": self.age.map(|age| age.as_secs_f64()),
            "warning_seconds": question.warning.map(|warning| warning.as_secs_f64()),
            "freshness_seconds": question.freshness.as_secs_f64(),
            "logs": seen.logs,
            "read_bytes": seen.read,
            "state_saved": saved,
        })
    }
}

/// Seconds for people: `3.2 s`, `134 s`.
fn seconds(span: Duration) -> String {
    match span.as_secs_f64() {
        seconds if seconds < 10.0 => format!("{seconds:.1} s"),
        seconds => format!("{seconds:.0} s"),
    }
}
