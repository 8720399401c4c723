//! The range engine against an origin with faults: which bytes are requested, and the result of every fault.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hostkit_tests::origin::{OriginFault, OriginServer};

use super::{CacheHost, CommandOutcome, bytes, every_file, mix, sha256};

const PATH: &str = "/pex/job-1.2.bin";
const SIZE: usize = 3 << 20;
const PART: usize = 256 << 10;

/// Fetches [`PATH`] in twelve parts over four connections, to `out`.
fn fetch(host: &CacheHost, origin: &OriginServer, more: &[&str]) -> CommandOutcome {
    let url = origin.url(PATH);
    let args = [
        &url,
        "--copy-to=out",
        "--part-size=256K",
        "--connections=4",
        "--stall-timeout=200ms",
    ];
    host.s3cache(args.iter().chain(more))
}

/// First and last byte of each requested range, in order.
fn ranges(origin: &OriginServer) -> Vec<(usize, usize)> {
    let asked = origin
        .requests()
        .into_iter()
        .filter(|request| request.path == PATH);
    asked
        .filter_map(|request| {
            let range = request.range?;
            let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some((first.parse().ok()?, last.parse().ok()?))
        })
        .collect()
}

/// Asserts that the target and the blobs are empty.
#[track_caller]
fn assert_nothing_kept(host: &CacheHost) {
    assert_eq!(every_file(&host.sandbox()), [] as [std::path::PathBuf; 0]);
    let kept: Vec<_> = every_file(&host.cache())
        .into_iter()
        .filter(|file| file.components().any(|part| part.as_os_str() == "blobs"))
        .collect();
    assert!(kept.is_empty(), "{kept:?}");
}

#[test]
fn parts_use_several_connections_with_if_match_and_each_byte_once() {
    let (host, origin, body) = (CacheHost::new(), OriginServer::start(), bytes(SIZE, 1));
    let etag = origin.put(PATH, body.clone());
    // Long enough for the others to find the first connection taken.
    origin.fault(PATH, OriginFault::Latency(Duration::from_millis(30)));
    fetch(&host, &origin, &[]).exits(0);
    assert!(host.read("out") == body);
    assert!(
        (2..=5).contains(&origin.connections()),
        "{}",
        origin.connections()
    );
    assert_eq!(origin.bytes(PATH), SIZE as u64);
    let mut asked = ranges(&origin);
    assert_eq!(asked[0], (0, PART - 1));
    asked.sort_unstable();
    let parts: Vec<_> = (0..SIZE / PART)
        .map(|part| (part * PART, (part + 1) * PART - 1))
        .collect();
    assert_eq!(asked, parts);
    let requests = origin.requests();
    let conditions = requests
        .iter()
        .filter(|request| request.path == PATH)
        .map(|request| request.if_match.as_ref());
    let conditions: Vec<_> = conditions.collect();
    assert_eq!(conditions[0], None);
    assert!(
        conditions[1..].iter().all(|tag| *tag == Some(&etag)),
        "{conditions:?}"
    );
}

#[test]
fn part_size_and_connections_follow_flags() {
    let (host, origin, body) = (CacheHost::new(), OriginServer::start(), bytes(1 << 20, 1));
    origin.put(PATH, body.clone());
    let url = origin.url(PATH);
    host.s3cache([&url, "--copy-to=out", "--part-size=100K", "--connections=1"])
        .exits(0);
    assert!(host.read("out") == body);
    assert_eq!(ranges(&origin).len(), 11);
    assert_eq!(origin.connections(), 1);
}

#[test]
fn small_object_is_one_request() {
    for size in [0, 1, PART - 1, PART] {
        let (host, origin, body) = (CacheHost::new(), OriginServer::start(), bytes(size, 1));
        origin.put(PATH, body.clone());
        fetch(&host, &origin, &[]).exits(0);
        assert!(host.read("out") == body, "{size}");
        // An empty object has no range: it is requested once more, as a whole.
        let asked = if size == 0 { 2 } else { 1 };
        assert_eq!(
            origin.requests().iter().filter(|r| r.path == PATH).count(),
            asked,
            "{size}"
        );
    }
}

#[test]
fn servers_without_ranges_or_etags_are_fetched_from() {
    for fault in [
        OriginFault::NoRanges,
        OriginFault::NoEtag,
        OriginFault::WeakEtag,
        OriginFault::Chunked,
    ] {
        let (host, origin, body) = (CacheHost::new(), OriginServer::start(), bytes(SIZE, 1));
        origin.put(PATH, body.clone());
        origin.fault(PATH, fault.clone());
        fetch(&host, &origin, &[]).exits(0);
        assert!(host.read("out") == body, "{fault:?}");
        let once = SIZE as u64..=(SIZE + PART) as u64;
        assert!(
            once.contains(&origin.bytes(PATH)),
            "{fault:?}: {}",
            origin.bytes(PATH)
        );
        origin.reset_counters();
        fetch(&host, &origin, &[]).exits(0);
        assert_eq!(origin.connections(), 0, "{fault:?}");
    }
}

#[test]
fn broken_or_silent_connection_resumes_at_same_byte() {
    for fault in [OriginFault::Truncate(100_000), OriginFault::Stall(100_000)] {
        let (host, origin, body) = (CacheHost::new(), OriginServer::start(), bytes(SIZE, 1));
        origin.put(PATH, body.clone());
        origin.fault_times(PATH, fault.clone(), 5);
        fetch(&host, &origin, &[]).exits(0);
        assert!(host.read("out") == body, "{fault:?}");
        assert_eq!(origin.bytes(PATH), SIZE as u64, "{fault:?}: each byte once");
        let mut asked = ranges(&origin);
        asked.sort_unstable();
        asked.dedup_by_key(|range| range.0);
        assert_eq!(
            asked.len(),
            SIZE / PART + 5,
            "{fault:?}: no part twice in full"
        );
    }
}

#[test]
fn connection_resets_are_retried() {
    let (host, origin, body) = (CacheHost::new(), OriginServer::start(), bytes(SIZE, 1));
    origin.put(PATH, body.clone());
    origin.fault_times(PATH, OriginFault::Reset(100_000), 5);
    fetch(&host, &origin, &[]).exits(0);
    assert!(host.read("out") == body);
}

#[test]
fn connection_that_always_breaks_at_once_fails() {
    for fault in [
        OriginFault::Truncate(0),
        OriginFault::Reset(0),
        OriginFault::Stall(0),
    ] {
        let (host, origin) = (CacheHost::new(), OriginServer::start());
        origin.put(PATH, bytes(SIZE, 1));
        origin.fault(PATH, fault);
        fetch(&host, &origin, &[]).exits(69).logs(&origin.url(PATH));
        assert_nothing_kept(&host);
    }
}

#[test]
fn broken_stream_restarts_and_is_never_joined() {
    for base in [
        OriginFault::NoRanges,
        OriginFault::Chunked,
        OriginFault::NoEtag,
    ] {
        let (host, origin, body) = (CacheHost::new(), OriginServer::start(), bytes(SIZE, 1));
        origin.put(PATH, body.clone());
        origin.faults(PATH, [base.clone(), OriginFault::Truncate(1 << 20)]);
        fetch(&host, &origin, &[]).exits(69);
        assert_nothing_kept(&host);
        origin.fault(PATH, base.clone());
        fetch(&host, &origin, &[]).exits(0);
        assert!(host.read("out") == body, "{base:?}");
    }
}

#[test]
fn object_replaced_during_download_is_never_mixed() {
    let first = bytes(SIZE, 1);
    for requests in [1, 2, 5, 11] {
        let (host, origin) = (CacheHost::new(), OriginServer::start());
        origin.put(PATH, first.clone());
        origin.fault(PATH, OriginFault::SwapAfter(requests));
        fetch(&host, &origin, &[])
            .exits(0)
            .logs("restarting the download");
        let second = origin.object(PATH).unwrap();
        assert!(host.read("out") == second, "after {requests} requests");
        assert!(second != first);
    }
}

#[test]
fn parts_with_different_etags_fall_back_to_one_stream() {
    let (host, origin, body) = (CacheHost::new(), OriginServer::start(), bytes(SIZE, 1));
    origin.put(PATH, body.clone());
    origin.fault(PATH, OriginFault::OtherTags);
    let digest = format!("--sha256={}", sha256(&body));
    let outcome = fetch(&host, &origin, &[&digest]).exits(0);
    outcome.logs("as one stream");
    assert!(host.read("out") == body);
    let asked = origin.requests();
    let last = asked.iter().rfind(|request| request.path == PATH).unwrap();
    assert_eq!((&last.range, &last.if_match), (&None, &None));
}

#[test]
fn ranges_without_etag_or_with_whole_object_are_discarded() {
    for faults in [
        vec![OriginFault::UntaggedLaterRanges],
        vec![OriginFault::UntaggedLaterRanges, OriginFault::SwapAfter(3)],
        vec![OriginFault::NoLaterRanges],
    ] {
        let (host, origin) = (CacheHost::new(), OriginServer::start());
        origin.put(PATH, bytes(SIZE, 1));
        origin.faults(PATH, faults.clone());
        let outcome = fetch(&host, &origin, &[]).exits(0);
        outcome.logs("as one stream");
        assert!(
            host.read("out") == origin.object(PATH).unwrap(),
            "{faults:?}"
        );
    }
}

#[test]
fn wrong_content_length_is_detected() {
    let body = bytes(SIZE, 1);
    let digest = format!("--sha256={}", sha256(&body));
    for (faults, exit) in [
        (vec![OriginFault::WrongLength(100)], 69),
        (
            vec![OriginFault::WrongLength(100), OriginFault::NoRanges],
            69,
        ),
        (vec![OriginFault::WrongLength(-100)], 65),
        (
            vec![OriginFault::WrongLength(-100), OriginFault::NoRanges],
            65,
        ),
    ] {
        let (host, origin) = (CacheHost::new(), OriginServer::start());
        origin.put(PATH, body.clone());
        origin.faults(PATH, faults);
        fetch(&host, &origin, &[&digest])
            .exits(exit)
            .logs(&origin.url(PATH));
        assert_nothing_kept(&host);
    }
}

#[test]
fn flipped_byte_is_detected_and_nothing_is_kept() {
    let body = bytes(SIZE, 1);
    let digest = sha256(&body);
    for by in ["--sha256", "its sidecar"] {
        let (host, origin) = (CacheHost::new(), OriginServer::start());
        origin.put(PATH, body.clone());
        origin.fault(PATH, OriginFault::FlipByte(2_000_000));
        let flag = format!("--sha256={digest}");
        let outcome = if by == "--sha256" {
            fetch(&host, &origin, &[&flag])
        } else {
            origin.put(&format!("{PATH}.sha256"), digest.clone());
            fetch(&host, &origin, &[])
        };
        outcome.exits(65).logs(&format!("(by {by})")).logs(&digest);
        assert_nothing_kept(&host);
        // Wrong bytes are not resumed from.
        origin.clear_faults();
        fetch(&host, &origin, &[]).exits(0);
        assert!(host.read("out") == body);
    }
}

#[test]
fn max_rate_is_not_exceeded() {
    let (host, origin, body) = (CacheHost::new(), OriginServer::start(), bytes(600 << 10, 1));
    origin.put(PATH, body.clone());
    let began = Instant::now();
    fetch(&host, &origin, &["--max-rate=400K"]).exits(0);
    assert!(
        began.elapsed() >= Duration::from_millis(1500),
        "{:?}",
        began.elapsed()
    );
    assert!(host.read("out") == body);
}

/// One to three faults, chosen by a number; how often they apply, and whether they forge bytes unnoticed by HTTP.
fn choose_faults(seed: u64) -> (Vec<OriginFault>, bool) {
    let mut faults = Vec::new();
    for at in 0..=mix(seed) % 3 {
        let roll = mix(seed * 7 + at);
        let offset = mix(roll) % SIZE as u64;
        let early = mix(roll) % (300 << 10);
        faults.push(match roll % 13 {
            0 => OriginFault::Truncate(early),
            1 => OriginFault::Stall(early),
            2 => OriginFault::Reset(early),
            3 => OriginFault::Status {
                code: [403, 404, 429, 500, 503][(roll / 13 % 5) as usize],
                retry_after: None,
            },
            4 => OriginFault::WrongLength((offset % 2000) as i64 - 1000),
            5 => OriginFault::FlipByte(offset),
            6 => OriginFault::SwapAfter(roll / 13 % 14),
            7 => OriginFault::Slow {
                bytes_per_second: 4 << 20,
            },
            8 => OriginFault::Latency(Duration::from_millis(roll / 13 % 50)),
            9 => OriginFault::NoRanges,
            10 => OriginFault::NoEtag,
            11 => OriginFault::WeakEtag,
            _ => OriginFault::Chunked,
        });
    }
    let forged = faults.iter().any(|fault| {
        matches!(
            fault,
            OriginFault::FlipByte(_) | OriginFault::WrongLength(_)
        )
    });
    (faults, forged)
}

/// One fetch under some faults and one without: the first ends with exact bytes or a named error and nothing, the
/// second, which may resume the first, with exact bytes.
fn assert_survives(seed: u64) {
    let (host, origin, first) = (CacheHost::new(), OriginServer::start(), bytes(SIZE, seed));
    origin.put(PATH, first.clone());
    let (faults, forged) = choose_faults(seed);
    let shown = format!("seed {seed}: {faults:?}");
    match faults.as_slice() {
        // Half of the single ones expire.
        [one] if mix(seed).is_multiple_of(2) => origin.fault_times(PATH, one.clone(), 1 + seed % 6),
        _ => origin.faults(PATH, faults.clone()),
    }
    let digest = format!("--sha256={}", sha256(&first));
    let more: &[&str] = if forged { &[&digest] } else { &[] };
    let outcome = fetch(&host, &origin, more);
    if outcome.code == 0 {
        let got = host.read("out");
        let second: Vec<u8> = first.iter().map(|byte| !byte).collect();
        assert!(
            got == first || !forged && got == second,
            "{shown}: {} bytes, but others",
            got.len()
        );
        return;
    }
    assert!(
        [65, 66, 69, 75, 77].contains(&outcome.code),
        "{shown}: {} {}",
        outcome.code,
        outcome.stderr
    );
    let named = format!("s3cache: {}", origin.url(PATH));
    let output = outcome.stderr.lines().any(|line| line.starts_with(&named));
    assert!(output, "{shown}: {}", outcome.stderr);
    assert_nothing_kept(&host);
    origin.clear_faults();
    let outcome = fetch(&host, &origin, &[]);
    assert_eq!(outcome.code, 0, "{shown}, then none: {}", outcome.stderr);
    assert!(
        host.read("out") == origin.object(PATH).unwrap(),
        "{shown}, then none: other bytes"
    );
}

#[test]
fn random_fault_mixtures_end_in_right_bytes_or_none() {
    let next = AtomicU64::new(0);
    let failed = std::thread::scope(|scope| {
        // Most of the time is spent waiting for timeouts and backoff.
        let workers: Vec<_> = (0..12)
            .map(|_| {
                scope.spawn(|| {
                    while let seed @ 0..200 = next.fetch_add(1, Ordering::Relaxed) {
                        assert_survives(seed);
                    }
                })
            })
            .collect();
        workers
            .into_iter()
            .filter_map(|worker| worker.join().err())
            .count()
    });
    assert_eq!(failed, 0, "see above");
}
