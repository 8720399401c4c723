//! Histories of connections, second by second.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A connection with deadlines of 10 s for the client and 20 s for the server, and 100 bytes a second.
struct SimulatedConnection {
    clock: DeadlineClock,
    now: Instant,
    activity: ConnectionActivity,
    client: (u64, u64),
    reading: ReadPhase,
}

impl SimulatedConnection {
    fn new() -> Self {
        let now = Instant::now();
        let timeouts = RequestTimeouts {
            server: 20 * SECOND,
            client: 10 * SECOND,
            idle: 60 * SECOND,
            stream: 100 * SECOND,
        };
        let limits = RequestLimits {
            head: 16 << 10,
            body: None,
            rate: 100,
            server_connections: 1,
        };
        Self {
            clock: DeadlineClock::new(timeouts, limits, now),
            now,
            activity: ConnectionActivity::default(),
            client: (0, 0),
            reading: ReadPhase::Idle,
        }
    }

    /// Ticks every two seconds, after `each` second, until something is said or `seconds` are over.
    fn run(&mut self, seconds: u32, mut each: impl FnMut(&mut Self)) -> (DeadlineVerdict, u32) {
        for second in 1..=seconds {
            self.now += SECOND;
            each(self);
            if second % 2 == 0 {
                let seen = self.activity.snapshot(self.reading, self.client);
                match self.clock.tick(self.now, seen) {
                    DeadlineVerdict::Continue => {}
                    said => return (said, second),
                }
            }
        }
        (DeadlineVerdict::Continue, seconds)
    }
}

#[test]
fn an_idle_connection_is_parked_after_two_seconds() {
    let mut connection = SimulatedConnection::new();
    assert_eq!(connection.run(10, |_| {}), (DeadlineVerdict::Park, 2));
}

#[test]
fn a_connection_with_requests_is_not() {
    let mut connection = SimulatedConnection::new();
    let (said, _) = connection.run(60, |now| {
        now.activity.begin_request();
        now.client.0 += 100;
        now.activity.set_active_party(ActiveParty::None);
    });
    assert_eq!(said, DeadlineVerdict::Continue);
}

#[test]
fn a_body_that_stops_ends_in_time_and_one_that_drips_too() {
    for bytes in [0, 20, 99] {
        let mut connection = SimulatedConnection::new();
        connection.activity.begin_request();
        connection.activity.set_active_party(ActiveParty::Client);
        connection.reading = ReadPhase::Body;
        let (said, when) = connection.run(60, |now| now.client.0 += bytes);
        assert_eq!(said, DeadlineVerdict::RequestBodyTimeout, "{bytes}");
        assert!((10..=14).contains(&when), "{when}");
    }
}

#[test]
fn a_body_at_the_least_rate_may_take_any_time() {
    let mut connection = SimulatedConnection::new();
    connection.activity.begin_request();
    connection.activity.set_active_party(ActiveParty::Client);
    assert_eq!(
        connection.run(600, |now| now.client.0 += 100).0,
        DeadlineVerdict::Continue
    );
}

#[test]
fn a_server_that_does_not_take_the_body_is_not_the_clients_fault() {
    let mut connection = SimulatedConnection::new();
    connection.activity.begin_request();
    connection.activity.set_active_party(ActiveParty::Upstream);
    let (said, _) = connection.run(600, |now| {
        now.client.0 += 1;
        now.activity.set_upstream_bytes(now.client.0);
    });
    assert_eq!(said, DeadlineVerdict::Continue);
}

#[test]
fn a_reader_that_stops_ends_in_time_and_one_that_drips_too() {
    for bytes in [0, 50] {
        let mut connection = SimulatedConnection::new();
        connection.activity.begin_request();
        connection.activity.set_active_party(ActiveParty::Upstream);
        connection.activity.set_write_blocked(true);
        let (said, when) = connection.run(60, |now| now.client.1 += bytes);
        assert_eq!(said, DeadlineVerdict::ClientReadTimeout, "{bytes}");
        assert!((10..=14).contains(&when), "{when}");
    }
}

#[test]
fn a_server_that_is_silent_ends_in_time() {
    let mut connection = SimulatedConnection::new();
    connection.activity.begin_request();
    connection.activity.set_active_party(ActiveParty::Upstream);
    let (said, when) = connection.run(60, |_| {});
    assert_eq!(said, DeadlineVerdict::UpstreamTimeout);
    assert!((20..=24).contains(&when), "{when}");
}

#[test]
fn streaming_response_has_an_idle_timeout_of_its_own() {
    for (streaming, has_body, limit) in [
        (StreamingMode::No, true, 20),
        (StreamingMode::AfterFirstByte, false, 20),
        (StreamingMode::AfterFirstByte, true, 100),
        (StreamingMode::Yes, false, 100),
    ] {
        let mut connection = SimulatedConnection::new();
        connection.activity.begin_request();
        connection.activity.set_streaming(streaming);
        connection.activity.set_active_party(ActiveParty::Upstream);
        if has_body {
            connection.activity.begin_response_body();
        }
        let (said, when) = connection.run(200, |_| {});
        assert_eq!(said, DeadlineVerdict::UpstreamTimeout, "{streaming:?}");
        assert!((limit..=limit + 4).contains(&when), "{streaming:?}: {when}");
        // The next response is not a streaming one.
        connection.activity.begin_request();
        connection.activity.set_active_party(ActiveParty::Upstream);
        let (_, when) = connection.run(200, |_| {});
        assert!((20..=24).contains(&when), "{streaming:?}: {when}");
    }
}

#[test]
fn what_the_proxy_does_has_deadlines_of_its_own() {
    let mut connection = SimulatedConnection::new();
    connection.activity.begin_request();
    assert_eq!(connection.run(600, |_| {}).0, DeadlineVerdict::Continue);
}

#[test]
fn the_first_failure_is_said_once_and_never_to_the_next_request() {
    let activity = ConnectionActivity::default();
    activity.begin_request();
    assert_eq!(activity.take_failure(), None);
    activity.fail(RequestError::BodyTooLarge);
    activity.fail(RequestError::RequestTimeout);
    assert_eq!(activity.take_failure(), Some(RequestError::BodyTooLarge));
    assert_eq!(activity.take_failure(), None);
    activity.fail(RequestError::RequestTimeout);
    activity.begin_request();
    assert_eq!(activity.take_failure(), None);
}
