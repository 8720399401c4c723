//! Fuzz bodies: the parsers of foreign bytes, and the invariants of their results. `it/fuzz.rs` runs them over a corpus
//! and over random bytes; the crate in `fuzz/` wraps them for libFuzzer.

mod credential;
mod request_validation;
mod unpack;

use std::collections::BTreeSet;

use synapse::haproxy::{Info, Processes, bindings, live, server_state};

/// Takes any bytes and panics when an invariant is violated.
pub type FuzzBody = fn(&[u8]);

/// All bodies by the name of their corpus.
pub const BODIES: &[(&str, FuzzBody)] = &[
    ("archive", archive),
    ("credential", credential::run),
    ("haproxy_config", haproxy_config),
    ("haproxy_replies", haproxy_replies),
    ("log_line", log_line),
    ("log_state", log_state),
    ("memcached_reply", credential::memcached),
    ("partial_record", partial_record),
    ("request_validation", request_validation::run),
    ("sidecar", sidecar),
    ("source", source),
    ("units", units),
    ("unpack", unpack::run),
    ("upstream_response", authproxy::testing::fuzz_response),
    ("zookeeper_member", hostkit::testing::fuzz_member_payload),
];

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The binds of a user's HAProxy configuration, which are probed before a start.
fn haproxy_config(bytes: &[u8]) {
    let text = text(bytes);
    for bind in bindings::binds(&text) {
        assert!((1..=text.lines().count()).contains(&bind.line), "{bind:?}");
        assert!(bind.same_place(&bind), "{bind:?}");
    }
}

/// Replies of a process that may not be HAProxy.
fn haproxy_replies(bytes: &[u8]) {
    let text = text(bytes);
    let _ = Info::parse(&text);
    let _ = Processes::parse(&text);
    let _ = live::connections(&text);
    let _ = live::sessions(&text);
    let backends = live::backends(&text).map(str::to_owned).collect();
    // The state file gets only lines that HAProxy wrote.
    let kept = server_state::reconcile(&text, &[&text], &backends);
    let kept_of_nobody = server_state::reconcile(&text, &[&text], &BTreeSet::new());
    assert!(kept.ends_with('\n') && kept_of_nobody.ends_with('\n'));
    if let Ok(servers) = live::servers(&text) {
        assert!(kept.lines().count() <= servers.len() + 2, "{kept}");
    }
}

/// The timestamp of a log line.
fn log_line(bytes: &[u8]) {
    for assume_utc in [false, true] {
        let time = log_healthcheck::testing::parse_line_time(bytes, assume_utc);
        // Years 0 to 9999, with a day of margin for time zones.
        let years = -62_168_000_000_000..253_403_000_000_000;
        assert!(time.is_none_or(|time| years.contains(&time)), "{time:?}");
    }
}

/// The state file of a log check, possibly corrupt.
fn log_state(bytes: &[u8]) {
    use log_healthcheck::testing::reformat_state;
    if let Some(text) = reformat_state(bytes) {
        assert_eq!(reformat_state(text.as_bytes()), Some(text));
    }
}

/// The record of a partial download, in any state that a crash may leave.
fn partial_record(bytes: &[u8]) {
    let record = s3cache::testing::parse_partial_record(bytes);
    for done in &record.done {
        let header = record.header.as_ref().expect("parts of something");
        assert!(done.part < header.parts(), "{record:?}");
        let (start, length) = header.part(done.part);
        assert!(start.checked_add(length).is_some(), "{record:?}");
    }
}

/// The digest file beside an artifact: whatever is accepted is a digest.
fn sidecar(bytes: &[u8]) {
    use s3cache::testing::{SidecarDigest, parse_digest, parse_sidecar};
    for content_type in [None, Some("text/html")] {
        if let SidecarDigest::Sha256(digest) = parse_sidecar(bytes, content_type, "a%20b.pex") {
            assert_eq!(parse_digest(&digest).as_ref(), Ok(&digest));
        }
    }
}

/// A source argument, and the name under which it is cached.
fn source(bytes: &[u8]) {
    let text = text(bytes);
    if let Ok(source) = s3cache::ArtifactSource::parse(&text)
        && let Ok(name) = source.name()
    {
        assert!(
            !name.is_empty() && !name.contains('/') && name != "..",
            "{name:?}"
        );
    }
    if let Ok(digest) = s3cache::testing::parse_digest(&text) {
        assert!(digest.len() == 64 && hostkit::hex::is_hex(digest));
    }
}

/// A tar or gzip artifact: the verdict does not depend on the size of the chunks.
fn archive(bytes: &[u8]) {
    use s3cache::testing::{ArchiveKind, check_archive};
    for kind in [ArchiveKind::Tar, ArchiveKind::Tgz, ArchiveKind::Gz] {
        let pieces = std::io::BufReader::with_capacity(7, bytes);
        assert_eq!(
            check_archive(kind, bytes).is_ok(),
            check_archive(kind, pieces).is_ok()
        );
    }
}

fn units(bytes: &[u8]) {
    let text = text(bytes);
    let _ = hostkit::units::parse_duration(&text);
    if let Ok(size) = hostkit::units::parse_size(&text) {
        let _ = hostkit::units::format_size(size);
    }
}
