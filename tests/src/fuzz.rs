//! The bodies of fuzz targets: what parses bytes that somebody else has written, and what must hold of every result.
//! `it/fuzz.rs` runs them over a corpus and over random bytes; the crate in `fuzz/` gives them to libFuzzer.

mod credential;
mod gate;
mod unpack;

use std::collections::BTreeSet;

use synapse::haproxy::{Info, Processes, bindings, live, server_state};

/// Takes any bytes, and panics when something does not hold.
pub type FuzzBody = fn(&[u8]);

/// Every body, by the name of its corpus.
pub const BODIES: &[(&str, FuzzBody)] = &[
    ("answer", authproxy::fuzz_response),
    ("archive", archive),
    ("credential", credential::run),
    ("gate", gate::run),
    ("haproxy_config", haproxy_config),
    ("haproxy_replies", haproxy_replies),
    ("log_line", log_line),
    ("log_state", log_state),
    ("memcached_reply", credential::memcached),
    ("partial_record", partial_record),
    ("sidecar", sidecar),
    ("source", source),
    ("units", units),
    ("unpack", unpack::run),
    ("zookeeper_member", hostkit::testing::fuzz_member_payload),
];

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Somebody's HAProxy configuration: the binds that are probed before it is loaded.
fn haproxy_config(bytes: &[u8]) {
    let text = text(bytes);
    for bind in bindings::binds(&text) {
        assert!((1..=text.lines().count()).contains(&bind.line), "{bind:?}");
        assert!(bind.same_place(&bind), "{bind:?}");
    }
}

/// What a process says that need not be the HAProxy it claims to be.
fn haproxy_replies(bytes: &[u8]) {
    let text = text(bytes);
    let _ = Info::parse(&text);
    let _ = Processes::parse(&text);
    let _ = live::connections(&text);
    let _ = live::sessions(&text);
    let backends = live::backends(&text).map(str::to_owned).collect();
    // Only what was said is kept: a state file never gets a line that HAProxy has not written.
    let kept = server_state::reconcile(&text, &[&text], &backends);
    let kept_of_nobody = server_state::reconcile(&text, &[&text], &BTreeSet::new());
    assert!(kept.ends_with('\n') && kept_of_nobody.ends_with('\n'));
    if let Ok(servers) = live::servers(&text) {
        assert!(kept.lines().count() <= servers.len() + 2, "{kept}");
    }
}

/// A line of somebody's log: the time it says it was written at.
fn log_line(bytes: &[u8]) {
    for assume_utc in [false, true] {
        let time = log_healthcheck::stamp::of(bytes, assume_utc);
        // From the year 0 to the year 9999, a day of zones around it.
        let years = -62_168_000_000_000..253_403_000_000_000;
        assert!(time.is_none_or(|time| years.contains(&time.0)), "{time:?}");
    }
}

/// What a health check finds in place of what the last one has left.
fn log_state(bytes: &[u8]) {
    use log_healthcheck::state::State;
    if let Some(state) = State::parse(bytes) {
        assert_eq!(State::parse(state.text().as_bytes()), Some(state));
    }
}

/// The record of a partial download, which a crash may have left in any state.
fn partial_record(bytes: &[u8]) {
    let record = s3cache::testing::parse_partial_record(bytes);
    for done in &record.done {
        let header = record.header.as_ref().expect("parts of something");
        assert!(done.part < header.parts(), "{record:?}");
        let (start, length) = header.part(done.part);
        assert!(start.checked_add(length).is_some(), "{record:?}");
    }
}

/// The file beside an artifact that holds its digest: what is read from it is one.
fn sidecar(bytes: &[u8]) {
    use s3cache::testing::{SidecarDigest, parse_digest, parse_sidecar};
    for content_type in [None, Some("text/html")] {
        if let SidecarDigest::Sha256(digest) = parse_sidecar(bytes, content_type, "a%20b.pex") {
            assert_eq!(parse_digest(&digest).as_ref(), Ok(&digest));
        }
    }
}

/// What somebody wants fetched, and the name it is cached by.
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
        assert!(digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}

/// An artifact that is a tar or gzip file by its name: whether it is whole does not depend on how it arrives.
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

/// Durations and sizes.
fn units(bytes: &[u8]) {
    let text = text(bytes);
    let _ = hostkit::units::parse_duration(&text);
    if let Ok(size) = hostkit::units::parse_size(&text) {
        let _ = hostkit::units::format_size(size);
    }
}
