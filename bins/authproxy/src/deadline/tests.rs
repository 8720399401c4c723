//! Histories of connections, second by second.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A connection with deadlines of 10 s for the client and 20 s for the server, and 100 bytes a second.
struct History {
    clock: Clock,
    now: Instant,
    flow: Flow,
    client: (u64, u64),
    reading: Reading,
}

impl History {
    fn new() -> Self {
        let now = Instant::now();
        let timeouts = Timeouts {
            server: 20 * SECOND,
            client: 10 * SECOND,
            idle: 60 * SECOND,
            stream: 100 * SECOND,
        };
        let limits = Limits {
            head: 16 << 10,
            body: None,
            rate: 100,
            server_connections: 1,
        };
        Self {
            clock: Clock::new(timeouts, limits, now),
            now,
            flow: Flow::default(),
            client: (0, 0),
            reading: Reading::Idle,
        }
    }

    /// Ticks every two seconds, after `each` second, until something is said or `seconds` are over.
    fn run(&mut self, seconds: u32, mut each: impl FnMut(&mut Self)) -> (Verdict, u32) {
        for second in 1..=seconds {
            self.now += SECOND;
            each(self);
            if second % 2 == 0 {
                let seen = self.flow.seen(self.reading, self.client);
                match self.clock.tick(self.now, seen) {
                    Verdict::Wait => {}
                    said => return (said, second),
                }
            }
        }
        (Verdict::Wait, seconds)
    }
}

#[test]
fn an_idle_connection_is_parked_after_two_seconds() {
    let mut history = History::new();
    assert_eq!(history.run(10, |_| {}), (Verdict::Park, 2));
}

#[test]
fn a_connection_with_requests_is_not() {
    let mut history = History::new();
    let (said, _) = history.run(60, |now| {
        now.flow.begin();
        now.client.0 += 100;
        now.flow.turn(Turn::Nobody);
    });
    assert_eq!(said, Verdict::Wait);
}

#[test]
fn a_body_that_stops_ends_in_time_and_one_that_drips_too() {
    for bytes in [0, 20, 99] {
        let mut history = History::new();
        history.flow.begin();
        history.flow.turn(Turn::Client);
        history.reading = Reading::Body;
        let (said, when) = history.run(60, |now| now.client.0 += bytes);
        assert_eq!(said, Verdict::Body, "{bytes}");
        assert!((10..=14).contains(&when), "{when}");
    }
}

#[test]
fn a_body_at_the_least_rate_may_take_any_time() {
    let mut history = History::new();
    history.flow.begin();
    history.flow.turn(Turn::Client);
    assert_eq!(history.run(600, |now| now.client.0 += 100).0, Verdict::Wait);
}

#[test]
fn a_server_that_does_not_take_the_body_is_not_the_clients_fault() {
    let mut history = History::new();
    history.flow.begin();
    history.flow.turn(Turn::Server);
    let (said, _) = history.run(600, |now| {
        now.client.0 += 1;
        now.flow.moved(now.client.0);
    });
    assert_eq!(said, Verdict::Wait);
}

#[test]
fn a_reader_that_stops_ends_in_time_and_one_that_drips_too() {
    for bytes in [0, 50] {
        let mut history = History::new();
        history.flow.begin();
        history.flow.turn(Turn::Server);
        history.flow.blocked(true);
        let (said, when) = history.run(60, |now| now.client.1 += bytes);
        assert_eq!(said, Verdict::Reader, "{bytes}");
        assert!((10..=14).contains(&when), "{when}");
    }
}

#[test]
fn a_server_that_is_silent_ends_in_time() {
    let mut history = History::new();
    history.flow.begin();
    history.flow.turn(Turn::Server);
    let (said, when) = history.run(60, |_| {});
    assert_eq!(said, Verdict::Server);
    assert!((20..=24).contains(&when), "{when}");
}

#[test]
fn streaming_response_has_an_idle_timeout_of_its_own() {
    for (streaming, has_body, limit) in [
        (Streaming::No, true, 20),
        (Streaming::AfterFirstByte, false, 20),
        (Streaming::AfterFirstByte, true, 100),
        (Streaming::Yes, false, 100),
    ] {
        let mut history = History::new();
        history.flow.begin();
        history.flow.streaming(streaming);
        history.flow.turn(Turn::Server);
        if has_body {
            history.flow.body();
        }
        let (said, when) = history.run(200, |_| {});
        assert_eq!(said, Verdict::Server, "{streaming:?}");
        assert!((limit..=limit + 4).contains(&when), "{streaming:?}: {when}");
        // The next response is not a streaming one.
        history.flow.begin();
        history.flow.turn(Turn::Server);
        let (_, when) = history.run(200, |_| {});
        assert!((20..=24).contains(&when), "{streaming:?}: {when}");
    }
}

#[test]
fn what_the_proxy_does_has_deadlines_of_its_own() {
    let mut history = History::new();
    history.flow.begin();
    assert_eq!(history.run(600, |_| {}).0, Verdict::Wait);
}

#[test]
fn the_first_failure_is_said_once_and_never_to_the_next_request() {
    let flow = Flow::default();
    flow.begin();
    assert_eq!(flow.take_failure(), None);
    flow.fail(Refusal::LargeBody);
    flow.fail(Refusal::SlowRequest);
    assert_eq!(flow.take_failure(), Some(Refusal::LargeBody));
    assert_eq!(flow.take_failure(), None);
    flow.fail(Refusal::SlowRequest);
    flow.begin();
    assert_eq!(flow.take_failure(), None);
}
