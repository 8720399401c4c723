//! The last verdicts, for the person who asks why a task was restarted.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::HealthReason;

/// How many are kept: ten minutes of Aurora's default interval, and 20 KB.
const LENGTH: usize = 64;

/// What `/health` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HealthStatus {
    /// Whether it says `ok`: also while it is snoozed, and while it is sick within its grace.
    pub(super) ok: bool,
    /// What was found.
    pub(super) reason: HealthReason,
}

/// One verdict.
#[derive(Debug, Clone)]
pub(super) struct ProbeRecord {
    pub(super) time: SystemTime,
    pub(super) latency: Duration,
    pub(super) said: HealthStatus,
    pub(super) detail: String,
}

impl ProbeRecord {
    pub(super) fn json(&self) -> Value {
        json!({
            "time": rfc3339(self.time),
            "ok": self.said.ok,
            "reason": self.said.reason.to_string(),
            "latency_ms": milliseconds(self.latency),
            "detail": self.detail,
        })
    }
}

#[derive(Debug, Default)]
pub(super) struct ProbeHistory(VecDeque<ProbeRecord>);

impl ProbeHistory {
    pub(super) fn add(&mut self, record: ProbeRecord) {
        if self.0.len() == LENGTH {
            self.0.pop_front();
        }
        self.0.push_back(record);
    }

    pub(super) fn last(&self) -> Option<&ProbeRecord> {
        self.0.back()
    }

    /// Newest first.
    pub(super) fn json(&self) -> Value {
        self.0.iter().rev().map(ProbeRecord::json).collect()
    }
}

/// With microseconds behind the point.
pub(super) fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

pub(super) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time.max(SystemTime::UNIX_EPOCH)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_are_kept() {
        let mut history = ProbeHistory::default();
        for index in 0..LENGTH as u64 + 9 {
            history.add(ProbeRecord {
                time: SystemTime::UNIX_EPOCH + Duration::from_secs(index),
                latency: Duration::from_micros(1250),
                said: HealthStatus {
                    ok: false,
                    reason: HealthReason::TIMEOUT,
                },
                detail: "slow".to_owned(),
            });
        }
        let told = history.json();
        assert_eq!(told.as_array().unwrap().len(), LENGTH);
        assert_eq!(
            told[0],
            json!({"time": "1970-01-01T00:01:12.000Z", "ok": false, "reason": "timeout", "latency_ms": 1.25,
                "detail": "slow"})
        );
    }
}
