//! The result of a load: counts, the first failures, latencies, and the gaps without a success.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::exchange::FailureKind;

/// How many failures keep time and detail.
const KEPT: usize = 20;
/// How many of the longest gaps are kept.
const GAPS: usize = 5;
/// How many latencies are kept: an hour of 1,000 requests a second. Later ones are only counted.
const LATENCIES: usize = 3_600_000;

#[derive(Debug, Clone, Default)]
pub struct LoadReport {
    /// Since the load started.
    pub lasted: Duration,
    pub attempts: u64,
    /// Attempts answered by the right service with 2xx.
    pub ok: u64,
    /// Failed attempts by kind.
    pub failures: BTreeMap<FailureKind, u64>,
    pub first: Vec<LoadFailure>,
    /// Requests that were due while their client waited for the one before, and so were not sent. Many of them mean
    /// that the counts understate an outage.
    pub missed: u64,
    /// Connections opened or attempted.
    pub connections: u64,
    /// The time of successful attempts, from opening the connection to the last byte.
    pub latency: LatencySummary,
    /// The longest times in which no client had a success, longest first.
    pub gaps: Vec<SuccessGap>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadFailure {
    /// When it ended, since the load started.
    pub at: Duration,
    pub kind: FailureKind,
    pub detail: String,
}

/// Percentiles; zero without a success.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LatencySummary {
    pub p50: Duration,
    pub p99: Duration,
    pub p999: Duration,
    pub max: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuccessGap {
    /// When it began, since the load started.
    pub at: Duration,
    pub length: Duration,
}

impl LoadReport {
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    #[must_use]
    pub fn count(&self, kind: FailureKind) -> u64 {
        self.failures.get(&kind).copied().unwrap_or_default()
    }

    /// Whether at least one attempt was made and none failed.
    #[must_use]
    pub fn clean(&self) -> bool {
        self.attempts > 0 && self.failures.is_empty()
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LatencySummary {
            p50,
            p99,
            p999,
            max,
        } = self.latency;
        writeln!(
            f,
            "{} of {} attempts failed in {:.1?} ({} connections, {} attempts missed)",
            self.failed(),
            self.attempts,
            self.lasted,
            self.connections,
            self.missed
        )?;
        writeln!(
            f,
            "  latency p50 {p50:.1?}, p99 {p99:.1?}, p99.9 {p999:.1?}, max {max:.1?}"
        )?;
        for (kind, count) in &self.failures {
            writeln!(f, "  {count} x {kind}")?;
        }
        for LoadFailure { at, kind, detail } in &self.first {
            writeln!(f, "  at {at:.3?} {kind}: {detail}")?;
        }
        for SuccessGap { at, length } in &self.gaps {
            writeln!(f, "  nothing succeeded for {length:.1?} from {at:.3?} on")?;
        }
        Ok(())
    }
}

/// The counts of a running load. Times are since its start.
#[derive(Debug, Default)]
pub(super) struct LoadTally {
    report: LoadReport,
    micros: Vec<u32>,
    last_ok: Duration,
}

impl LoadTally {
    pub(super) fn attempts(&self) -> u64 {
        self.report.attempts
    }

    pub(super) fn missed(&mut self, count: u64) {
        self.report.missed += count;
    }

    pub(super) fn opened(&mut self) {
        self.report.connections += 1;
    }

    pub(super) fn add(
        &mut self,
        began: Duration,
        ended: Duration,
        came: Result<(), (FailureKind, String)>,
    ) {
        let report = &mut self.report;
        report.attempts += 1;
        match came {
            Ok(()) => {
                report.ok += 1;
                if self.micros.len() < LATENCIES {
                    let took = (ended - began).as_micros();
                    self.micros.push(took.try_into().unwrap_or(u32::MAX));
                }
                note_gap(&mut report.gaps, self.last_ok, ended);
                self.last_ok = ended;
            }
            Err((kind, detail)) => {
                *report.failures.entry(kind).or_default() += 1;
                if report.first.len() < KEPT {
                    let at = ended;
                    report.first.push(LoadFailure { at, kind, detail });
                }
            }
        }
    }

    pub(super) fn report(&self, now: Duration) -> LoadReport {
        let mut report = self.report.clone();
        report.lasted = now;
        note_gap(&mut report.gaps, self.last_ok, now);
        let mut micros = self.micros.clone();
        micros.sort_unstable();
        let share = |share: f64| {
            let last = micros.len().saturating_sub(1);
            let place = (last as f64 * share).ceil() as usize;
            Duration::from_micros(micros.get(place).copied().unwrap_or_default().into())
        };
        report.latency = LatencySummary {
            p50: share(0.5),
            p99: share(0.99),
            p999: share(0.999),
            max: share(1.0),
        };
        report
    }
}

/// Keeps a gap if it is one of the longest.
fn note_gap(gaps: &mut Vec<SuccessGap>, at: Duration, until: Duration) {
    let length = until.saturating_sub(at);
    if gaps.len() == GAPS && gaps.last().is_some_and(|least| length <= least.length) {
        return;
    }
    let place = gaps.partition_point(|gap| gap.length >= length);
    gaps.insert(place, SuccessGap { at, length });
    gaps.truncate(GAPS);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn report_has_counts_gaps_and_percentiles_of_attempts() {
        let mut tally = LoadTally::default();
        for at in 1..=100 {
            tally.add(at * 10 * MS, at * 10 * MS + at * MS, Ok(()));
        }
        tally.add(
            1200 * MS,
            1200 * MS,
            Err((FailureKind::Refused, "no".to_owned())),
        );
        let report = tally.report(2 * Duration::from_secs(1));
        assert_eq!((report.attempts, report.ok, report.failed()), (101, 100, 1));
        assert_eq!(report.count(FailureKind::Refused), 1);
        assert_eq!(report.first[0].at, 1200 * MS);
        assert_eq!(report.latency.max, 100 * MS);
        assert_eq!(report.latency.p50, 51 * MS);
        let longest = report.gaps[0];
        assert_eq!((longest.at, longest.length), (1100 * MS, 900 * MS));
        assert_eq!(report.gaps.len(), GAPS);
        assert!(!report.clean());
    }

    #[test]
    fn report_without_attempts_is_not_clean() {
        let report = LoadTally::default().report(Duration::from_secs(1));
        assert!(!report.clean());
        assert_eq!(report.gaps[0].length, Duration::from_secs(1));
        assert_eq!(report.latency, LatencySummary::default());
    }
}
