//! The memory of idle connections and of many keys.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hostkit::runtime::raise_open_files;
use hostkit_tests::authproxy::AuthproxyProcess;
use hostkit_tests::permissions::{self, PermissionsServer};
use hostkit_tests::upstream::RecordingUpstream;
use hostkit_tests::upstream::parser::{FramingPreference, LineEnding, ParserProfile};
use hostkit_tests::{is_long_run, wait_limit, wait_until, wait_within};
use tempfile::TempDir;

const KEY: &str = "idle-key";
/// Concurrent connections, unless the limit of open files is lower.
const MANY: usize = 10_000;
/// The most memory of an idle connection in bytes, without the kernel's buffers.
const IDLE: u64 = 4096;
/// The most memory of a connection in use. It is freed when the connection is idle, but stays with the process.
const USED: u64 = 24 << 10;
/// How long the process must sleep: longer than any periodic work would take.
const QUIET: Duration = Duration::from_secs(6);
/// The same where it is enough that every connection has released its buffers.
const PARKED: Duration = Duration::from_secs(3);

const PERSONALITY: ParserProfile = ParserProfile {
    ends: LineEnding::Crlf,
    framing: FramingPreference::Chunked,
};

/// A field of the process status (proc(5)).
fn read_status_field(proxy: &AuthproxyProcess, name: &str) -> u64 {
    let path = format!("/proc/{}/status", proxy.pid());
    let status = std::fs::read_to_string(path).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|rest| rest.split_whitespace().next());
    value.unwrap().parse().unwrap()
}

/// Resident memory in bytes.
fn resident_bytes(proxy: &AuthproxyProcess) -> u64 {
    read_status_field(proxy, "VmRSS:") * 1024
}

fn files(proxy: &AuthproxyProcess) -> usize {
    let path = format!("/proc/{}/fd", proxy.pid());
    std::fs::read_dir(path).unwrap().count()
}

/// How many connections are possible: this process holds one end of each, and other tests run in it.
fn connection_limit() -> usize {
    let limit = raise_open_files(MANY as u64 + 4096);
    MANY.min((limit as usize).saturating_sub(4096))
}

fn connect(proxy: &AuthproxyProcess) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    stream.set_read_timeout(Some(wait_limit())).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sends one request on a kept connection, and returns the status line.
fn request(stream: &mut TcpStream, key: &str) -> String {
    let text = format!("GET / HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n\r\n");
    stream.write_all(text.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let read = stream.read(&mut buffer).unwrap();
        assert!(
            read > 0,
            "closed after {:?}",
            String::from_utf8_lossy(&bytes)
        );
        bytes.extend(&buffer[..read]);
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let lines = head.lines().filter_map(|line| line.split_once(':'));
            let mut lengths = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            let length: usize = lengths.next().unwrap().1.trim().parse().unwrap();
            if body.len() >= length {
                return head.lines().next().unwrap().to_owned();
            }
        }
    }
}

/// Waits until the process has slept for so long.
#[track_caller]
fn wait_until_asleep(proxy: &AuthproxyProcess, quiet: Duration) {
    let slept = || read_status_field(proxy, "voluntary_ctxt_switches:");
    let mut last = (slept(), Instant::now());
    // Work started by earlier requests takes its own time.
    let is_at_rest = wait_within(3 * wait_limit(), || {
        let now = slept();
        if now != last.0 {
            last = (now, Instant::now());
        }
        last.1.elapsed() >= quiet
    });
    assert!(is_at_rest, "the process does not come to rest");
}

/// Held by tests that need most of the open files of this process.
static ALONE: Mutex<()> = Mutex::new(());

fn lock_exclusively() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

struct MemoryRig {
    proxy: AuthproxyProcess,
    _backend: RecordingUpstream,
    _directory: TempDir,
}

impl MemoryRig {
    fn start() -> Self {
        let backend = RecordingUpstream::start(PERSONALITY);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("acl.yaml");
        permissions::write_acl_file(&file, &[(KEY, &["all"])]);
        let file = format!("--acl-file={}", file.display());
        let args = [
            &file,
            "--idle-timeout=1h",
            "--client-timeout=1h",
            "--access-log=off",
        ];
        let proxy = AuthproxyProcess::start_for_upstream(backend.port(), &args);
        // One-time allocations are not measured.
        for _ in 0..200 {
            assert!(request(&mut connect(&proxy), KEY).contains(" 200 "));
        }
        Self {
            proxy,
            _backend: backend,
            _directory: directory,
        }
    }
}

/// Bytes of resident memory per connection.
#[track_caller]
fn assert_cost(proxy: &AuthproxyProcess, before: u64, count: usize, most: u64) -> u64 {
    let each = resident_bytes(proxy).saturating_sub(before) / count as u64;
    assert!(each <= most, "{each} bytes for each of {count} connections");
    each
}

/// Opens connections with one request each.
fn open_used_connections(proxy: &AuthproxyProcess, count: usize) -> Vec<TcpStream> {
    let open = |_| {
        let mut stream = connect(proxy);
        assert!(request(&mut stream, KEY).contains(" 200 "));
        stream
    };
    (0..count).map(open).collect()
}

#[test]
fn ten_thousand_unused_connections_take_little_memory_and_no_wakeups() {
    let _alone = lock_exclusively();
    let count = connection_limit();
    let rig = MemoryRig::start();
    let proxy = &rig.proxy;
    let before = resident_bytes(proxy);
    let mut idle: Vec<TcpStream> = (0..count).map(|_| connect(proxy)).collect();
    wait_until("all are accepted", || files(proxy) >= count);
    wait_until_asleep(proxy, QUIET);
    let each = assert_cost(proxy, before, count, IDLE);
    println!("{count} connections, {each} bytes each");
    // They still serve.
    for stream in idle.iter_mut().step_by(count / 100) {
        assert!(request(stream, KEY).contains(" 200 "));
    }
    drop(idle);
    wait_until("all are closed", || files(proxy) < 100);
}

#[test]
fn ten_thousand_idle_connections_cause_no_wakeups() {
    let _alone = lock_exclusively();
    let count = connection_limit();
    let rig = MemoryRig::start();
    let proxy = &rig.proxy;
    let before = resident_bytes(proxy);
    let mut idle = open_used_connections(proxy, count);
    assert!(files(proxy) >= count);
    wait_until_asleep(proxy, QUIET);
    let each = assert_cost(proxy, before, count, USED);
    println!("{count} connections, {each} bytes each");
    for stream in idle.iter_mut().step_by(count / 100) {
        assert!(request(stream, KEY).contains(" 200 "));
    }
}

#[test]
fn connection_buffers_are_freed_when_idle() {
    let (rounds, batch) = if is_long_run() { (10, 1000) } else { (3, 300) };
    let rig = MemoryRig::start();
    let proxy = &rig.proxy;
    // The first ones allocate memory that later ones reuse.
    let mut idle = Vec::new();
    for _ in 0..2 {
        idle.extend(open_used_connections(proxy, batch));
        wait_until_asleep(proxy, PARKED);
    }
    let before = resident_bytes(proxy);
    for _ in 0..rounds {
        idle.extend(open_used_connections(proxy, batch));
        wait_until_asleep(proxy, PARKED);
    }
    let each = assert_cost(proxy, before, rounds * batch, IDLE);
    println!("{} connections, {each} bytes each", rounds * batch);
}

#[test]
fn million_unknown_keys_stay_within_cache_bound() {
    let keys = if is_long_run() { 1_000_000 } else { 12_000 };
    let backend = RecordingUpstream::start(PERSONALITY);
    let acl = PermissionsServer::start();
    acl.add_keys([KEY]);
    let engine = format!("--acl-server={}", acl.url());
    let args = [
        &engine,
        "--cache-entries=1000",
        "--ttl-denied=1h",
        "--access-log=off",
    ];
    let proxy = AuthproxyProcess::start_for_upstream(backend.port(), &args);
    let mut stream = connect(&proxy);
    let mut ask = |from: usize, to: usize| {
        for number in from..to {
            let status = request(&mut stream, &format!("unknown-{number}"));
            assert!(status.contains(" 403 "), "{status}");
        }
    };
    ask(0, keys / 3);
    let before = resident_bytes(&proxy);
    ask(keys / 3, keys);
    let grown = resident_bytes(&proxy).saturating_sub(before);
    println!("{keys} keys: grown by {grown} bytes");
    assert!(grown <= 512 << 10, "grown by {grown} bytes");
    assert_eq!(acl.request_count(), keys);
    // Nor did they evict known keys.
    assert!(request(&mut stream, KEY).contains(" 200 "));
    let asked = acl.request_count();
    for number in 0..3000 {
        let status = request(&mut stream, &format!("unknown-again-{number}"));
        assert!(status.contains(" 403 "), "{status}");
    }
    assert!(request(&mut stream, KEY).contains(" 200 "));
    assert_eq!(acl.request_count(), asked + 3000);
    assert_eq!(acl.request_count_for(KEY), 1);
}

/// The size of an incomplete head.
const UNFINISHED: usize = 15_000;
/// The most memory of all incomplete heads together, as `README.md` documents.
const UNFINISHED_HEADS: u64 = 4 << 20;
/// The memory of a connection that waits for the rest of a head, beyond those bytes.
const WAITING: u64 = 6 << 10;
/// The most memory that may remain after a burst.
const LEFT: u64 = 6 << 20;

/// Anonymous memory in bytes.
fn anonymous_bytes(proxy: &AuthproxyProcess) -> u64 {
    read_status_field(proxy, "RssAnon:") * 1024
}

/// Waits until the memory of a burst is freed.
#[track_caller]
fn wait_until_freed(proxy: &AuthproxyProcess, before: u64) {
    wait_until("the memory is freed", || {
        anonymous_bytes(proxy) <= before + LEFT
    });
}

#[test]
fn unfinished_request_heads_are_bounded_and_their_memory_is_freed() {
    let _alone = lock_exclusively();
    let count = connection_limit().min(4000);
    let rig = MemoryRig::start();
    let proxy = &rig.proxy;
    let before = anonymous_bytes(proxy);
    let mut head = b"GET / HTTP/1.1\r\nHost: x\r\n".to_vec();
    while head.len() < UNFINISHED {
        head.extend(format!("X-Filler: {}\r\n", "x".repeat(200)).as_bytes());
    }
    // Half of them were served before, which makes no difference.
    let begin = |at: usize| {
        let mut stream = connect(proxy);
        if at.is_multiple_of(2) {
            assert!(request(&mut stream, KEY).contains(" 200 "));
        }
        stream.write_all(&head).unwrap();
        stream
    };
    let mut begun: Vec<TcpStream> = (0..count).map(begin).collect();
    // Connections above the limit are answered, the oldest first.
    let kept = UNFINISHED_HEADS as usize / UNFINISHED;
    let refused = || proxy.metric_sum("authproxy_error_responses_total") as usize;
    wait_until("the oldest get 408", || refused() >= count - kept);
    let mut answer = [0; 12];
    begun[0].read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 408");
    let newest = begun.last_mut().unwrap();
    newest.write_all(b"X-API-Key: idle-key\r\n\r\n").unwrap();
    newest.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 200");
    let most = read_status_field(proxy, "VmHWM:") * 1024;
    let grown =
        most - resident_bytes(proxy).min(most) + anonymous_bytes(proxy).saturating_sub(before);
    let bound = UNFINISHED_HEADS * 2 + count as u64 * WAITING;
    assert!(grown <= bound, "{grown} bytes for {count} connections");
    drop(begun);
    wait_until_freed(proxy, before);
}

#[test]
fn memory_of_request_burst_is_freed() {
    let _alone = lock_exclusively();
    let count = connection_limit().min(4000);
    let rig = MemoryRig::start();
    let before = anonymous_bytes(&rig.proxy);
    let mut streams: Vec<TcpStream> = (0..count).map(|_| connect(&rig.proxy)).collect();
    for stream in &mut streams {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
    }
    for stream in &mut streams {
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 401");
    }
    drop(streams);
    wait_until_freed(&rig.proxy, before);
}
