//! What synapse counts and times, for `/metrics`. Each metric is declared once, here: its name, labels and help are what
//! the listener serves and what the operator's page prints.
//!
//! Owns names and values; who counts what is in the code that does it. Cheap enough for the path of every change.

mod family;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

pub use family::{Counter, Gauge, Histogram, Labels, Seconds};

use family::{Kind, Series};

/// Declares the metrics: their fields, and the table that describes them.
macro_rules! metrics {
    ($($field:ident: $kind:ident, $name:literal, [$($label:literal),*], $help:literal;)*) => {
        /// All metrics. Clone a handle out of it, or count through it; both are the same metric.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            /// When each source last confirmed what it said; its age is a metric only when it is asked for.
            synced: Mutex<BTreeMap<String, Duration>>,
            $(#[doc = $help] pub $field: $kind,)*
        }

        /// Every metric, in the order of the operator's page.
        const DEFINITIONS: &[Definition] = &[
            $(Definition { name: $name, kind: <$kind as Series>::KIND, labels: &[$($label),*], help: $help },)*
        ];

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::default();
                $(
                    let $field = <$kind as Series>::new(&[$($label),*]);
                    // The library adds the suffix of a counter and the full stop of a sentence.
                    let name = $name.strip_suffix("_total").unwrap_or($name);
                    $field.register(&mut registry, name, $help);
                )*
                Self { registry, synced: Mutex::default(), $($field),* }
            }
        }
    };
}

/// Counters with labels.
pub type Counters = Labels<Counter>;
/// Gauges with labels.
pub type Gauges = Labels<Gauge>;
/// Gauges of seconds, with labels.
pub type Ages = Labels<Seconds>;

metrics! {
    change_to_live: Histogram, "synapse_change_to_live_seconds", [],
        "From a change in the source to HAProxy having taken it over its socket";
    listen_to_live: Histogram, "synapse_listen_to_live_seconds", [],
        "From the first probe that a new member answers to HAProxy sending it requests";
    source_age: Ages, "synapse_source_age_seconds", ["source"],
        "Time since the source last confirmed what it said";
    zookeeper_connected: Gauges, "synapse_zookeeper_connected", ["ensemble"],
        "Whether the session is connected: 1 or 0";
    zookeeper_sessions: Counters, "synapse_zookeeper_sessions_total", ["ensemble"],
        "Sessions begun";
    zookeeper_expirations: Counters, "synapse_zookeeper_expirations_total", ["ensemble"],
        "Sessions that expired; members are kept";
    zookeeper_reads: Counters, "synapse_zookeeper_reads_total", ["ensemble"],
        "Znodes read";
    zookeeper_lists: Counters, "synapse_zookeeper_lists_total", ["ensemble"],
        "Listings of children";
    rejects: Counters, "synapse_rejects_total", ["reason"],
        "Registrations that are not used, counted when they appear";
    members: Gauges, "synapse_members", ["service", "phase"],
        "Members of a service by phase: ready, probing, draining or held";
    held_removals: Gauge, "synapse_held_removals", [],
        "Members kept because most members of many services vanished at once";
    quarantined: Gauge, "synapse_quarantined_services", [],
        "Services left out because HAProxy refuses what they say";
    reloads: Counters, "synapse_reloads_total", ["cause", "result"],
        "Reloads of HAProxy";
    reload_duration: Histogram, "synapse_reload_duration_seconds", [],
        "From the preflight of a reload to its verification";
    config_checks: Counters, "synapse_config_checks_total", ["result"],
        "Candidate files checked by HAProxy before a reload: ok or refused";
    leftover_workers: Gauge, "synapse_leftover_workers", [],
        "Old HAProxy processes that still have connections";
    runtime_batches: Counter, "synapse_runtime_batches_total", [],
        "Batches of commands sent to HAProxy's socket";
    runtime_commands: Counter, "synapse_runtime_commands_total", [],
        "Commands sent to HAProxy's socket";
    socket_errors: Counters, "synapse_socket_errors_total", ["kind"],
        "Failures of HAProxy's socket";
    drift_repaired: Counter, "synapse_drift_repaired_total", [],
        "Servers that HAProxy had otherwise than it was told, put right by the audit";
    probes: Counters, "synapse_probes_total", ["result"],
        "Probes of members that are waited for, answered or silent";
    config_reloads: Counters, "synapse_config_reloads_total", ["result"],
        "Times that synapse read its own configuration again";
    file_writes: Counters, "synapse_file_writes_total", ["file", "result"],
        "Files written: haproxy, server-state, state, proxies, output or status";
    journal_dropped: Counter, "synapse_journal_dropped_total", [],
        "Journal entries that were lost because the disk did not keep up";
    statsd_dropped: Counter, "synapse_statsd_dropped_total", [],
        "StatsD events that were not sent";
}

/// A metric as its reader knows it.
struct Definition {
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
}

impl Metrics {
    /// Notes that a source confirmed what it said, at a time since boot.
    pub fn synced(&self, source: &str, at: Duration) {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        synced.insert(source.to_owned(), at);
    }

    /// Forgets a source that is followed no longer.
    pub fn forget_source(&self, source: &str) {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        synced.remove(source);
        self.source_age.remove(&[source]);
    }

    /// Sets how many members a service has in each phase.
    pub fn set_members(&self, service: &str, members: Phases) {
        for (phase, count) in members.named() {
            let gauge = self.members.with(&[service, phase]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Forgets a service that is configured no longer.
    pub fn forget_service(&self, service: &str) {
        for (phase, _) in Phases::default().named() {
            self.members.remove(&[service, phase]);
        }
    }

    /// Everything, as OpenMetrics text (<https://prometheus.io/docs/specs/om/open_metrics_spec/>), at a time since boot.
    #[must_use]
    pub fn render(&self, now: Duration) -> String {
        let synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        for (source, at) in &*synced {
            let age = now.saturating_sub(*at).as_secs_f64();
            self.source_age.with(&[source]).set(age);
        }
        drop(synced);
        let mut rendered = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut rendered, &self.registry);
        rendered
    }
}

/// How many members of a service are in each phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phases {
    /// They get requests.
    pub ready: usize,
    /// They do not answer a probe yet.
    pub probing: usize,
    /// They get no new requests.
    pub draining: usize,
    /// They are kept although the source no longer has them.
    pub held: usize,
}

impl Phases {
    const fn named(self) -> [(&'static str, usize); 4] {
        [
            ("ready", self.ready),
            ("probing", self.probing),
            ("draining", self.draining),
            ("held", self.held),
        ]
    }
}

/// The table of all metrics for the operator's page, in Markdown.
#[must_use]
pub fn markdown() -> String {
    let mut table = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for definition in DEFINITIONS {
        let labels: Vec<String> = definition
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        let (name, kind, help) = (definition.name, definition.kind.word(), definition.help);
        let _ = writeln!(
            table,
            "| `{name}` | {kind} | {} | {help} |",
            labels.join(", ")
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_rendered() {
        let metrics = Metrics::default();
        metrics.change_to_live.observe(0.0031);
        metrics.reloads.with(&["new-service", "ok"]).inc();
        metrics.reloads.with(&["new-service", "ok"]).inc();
        metrics.set_members(
            "web",
            Phases {
                ready: 3,
                held: 1,
                ..Phases::default()
            },
        );
        metrics.synced("zk1:2181", Duration::from_secs(100));
        let text = metrics.render(Duration::from_millis(107_500));
        for line in [
            "# TYPE synapse_change_to_live_seconds histogram",
            "synapse_change_to_live_seconds_bucket{le=\"0.0025\"} 0",
            "synapse_change_to_live_seconds_bucket{le=\"0.005\"} 1",
            "synapse_change_to_live_seconds_count 1",
            "# HELP synapse_reloads Reloads of HAProxy.",
            "synapse_reloads_total{cause=\"new-service\",result=\"ok\"} 2",
            "synapse_members{service=\"web\",phase=\"held\"} 1",
            "synapse_members{service=\"web\",phase=\"probing\"} 0",
            "synapse_source_age_seconds{source=\"zk1:2181\"} 7.5",
            "synapse_leftover_workers 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn what_is_forgotten_is_gone() {
        let metrics = Metrics::default();
        metrics.set_members("web", Phases::default());
        metrics.synced("zk1:2181", Duration::ZERO);
        let _ = metrics.render(Duration::ZERO);
        metrics.forget_service("web");
        metrics.forget_source("zk1:2181");
        let text = metrics.render(Duration::ZERO);
        assert!(!text.contains("web") && !text.contains("zk1"), "{text}");
    }

    #[test]
    fn a_label_cannot_break_out_of_its_line() {
        let metrics = Metrics::default();
        metrics.synced("a\"} 1\nsynapse_evil 1 \\", Duration::ZERO);
        let text = metrics.render(Duration::ZERO);
        assert!(
            text.lines().all(|line| !line.starts_with("synapse_evil")),
            "{text}"
        );
        assert!(
            text.contains(r#"{source="a\"} 1\nsynapse_evil 1 \\"}"#),
            "{text}"
        );
    }

    #[test]
    fn names_follow_the_conventions_and_are_told_on_the_page() {
        let page = markdown();
        for definition in DEFINITIONS {
            let name = definition.name;
            assert!(name.starts_with("synapse_"), "{name}");
            assert_eq!(
                name.ends_with("_total"),
                definition.kind.word() == "counter",
                "{name}"
            );
            assert!(
                definition.kind.word() != "histogram" || name.ends_with("_seconds"),
                "{name}"
            );
            assert!(
                !definition.help.ends_with('.'),
                "{name}: the library adds it"
            );
            assert!(
                page.contains(&format!("| `{name}` | {} |", definition.kind.word())),
                "{name}"
            );
        }
        assert_eq!(page.lines().count(), DEFINITIONS.len() + 2);
    }
}
