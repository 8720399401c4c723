//! The last probe results, which show why a task was restarted.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::HealthReason;

/// Results that are kept: ten minutes of Aurora's default interval, and 20 KB.
const MAX_RESULTS: usize = 64;

/// What `/health` returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HealthStatus {
    /// Whether it returns `ok`: also while snoozed, and while unhealthy within `--grace`.
    pub(super) ok: bool,
    pub(super) reason: HealthReason,
}

#[derive(Debug, Clone)]
pub(super) struct ProbeRecord {
    pub(super) time: SystemTime,
    pub(super) latency: Duration,
    pub(super) status: HealthStatus,
    pub(super) detail: String,
}

impl ProbeRecord {
    pub(super) fn json(&self) -> Value {
        json!({
            "time": rfc3339(self.time),
            "ok": self.status.ok,
            "reason": self.status.reason.to_string(),
            "latency_ms": milliseconds(self.latency),
            "detail": self.detail,
        })
    }
}

#[derive(Debug, Default)]
pub(super) struct ProbeHistory(VecDeque<ProbeRecord>);

impl ProbeHistory {
    pub(super) fn push(&mut self, record: ProbeRecord) {
        if self.0.len() == MAX_RESULTS {
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
    fn history_keeps_the_last_results() {
        let mut history = ProbeHistory::default();
        for index in 0..MAX_RESULTS as u64 + 9 {
            history.push(ProbeRecord {
                time: SystemTime::UNIX_EPOCH + Duration::from_secs(index),
                latency: Duration::from_micros(1250),
                status: HealthStatus {
                    ok: false,
                    reason: HealthReason::TIMEOUT,
                },
                detail: "slow".to_owned(),
            });
        }
        let results = history.json();
        assert_eq!(results.as_array().unwrap().len(), MAX_RESULTS);
        assert_eq!(
            results[0],
            json!({"time": "1970-01-01T00:01:12.000Z", "ok": false, "reason": "timeout", "latency_ms": 1.25,
                "detail": "slow"})
        );
    }
}
