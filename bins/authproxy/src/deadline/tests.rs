//! Simulated connections, second by second.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A connection with timeouts of 10 s for the client and 20 s for upstream, and a minimum rate of 100 bytes a second.
struct SimulatedConnection {
    clock: DeadlineClock,
    now: Instant,
    activity: ConnectionActivity,
    client_bytes: (u64, u64),
    read_phase: ReadPhase,
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
            client_bytes: (0, 0),
            read_phase: ReadPhase::Idle,
        }
    }

    fn with_request(active_party: ActiveParty) -> Self {
        let connection = Self::new();
        connection.activity.begin_request();
        connection.activity.set_active_party(active_party);
        connection
    }

    /// Calls `each` every second and ticks every two, until a verdict other than Continue or for `seconds`.
    fn run(&mut self, seconds: u32, mut each: impl FnMut(&mut Self)) -> (DeadlineVerdict, u32) {
        for second in 1..=seconds {
            self.now += SECOND;
            each(self);
            if second % 2 == 0 {
                let snapshot = self.activity.snapshot(self.read_phase, self.client_bytes);
                match self.clock.tick(self.now, snapshot) {
                    DeadlineVerdict::Continue => {}
                    verdict => return (verdict, second),
                }
            }
        }
        (DeadlineVerdict::Continue, seconds)
    }
}

#[test]
fn idle_connection_is_parked_after_two_seconds() {
    let mut connection = SimulatedConnection::new();
    assert_eq!(connection.run(10, |_| {}), (DeadlineVerdict::Park, 2));
}

#[test]
fn connection_with_requests_is_not_parked() {
    let mut connection = SimulatedConnection::new();
    let (verdict, _) = connection.run(60, |now| {
        now.activity.begin_request();
        now.client_bytes.0 += 100;
        now.activity.set_active_party(ActiveParty::None);
    });
    assert_eq!(verdict, DeadlineVerdict::Continue);
}

#[test]
fn request_body_below_minimum_rate_times_out() {
    for bytes in [0, 20, 99] {
        let mut connection = SimulatedConnection::with_request(ActiveParty::Client);
        connection.read_phase = ReadPhase::Body;
        let (verdict, second) = connection.run(60, |now| now.client_bytes.0 += bytes);
        assert_eq!(verdict, DeadlineVerdict::RequestBodyTimeout, "{bytes}");
        assert!((10..=14).contains(&second), "{second}");
    }
}

#[test]
fn request_body_at_minimum_rate_does_not_time_out() {
    let mut connection = SimulatedConnection::with_request(ActiveParty::Client);
    assert_eq!(
        connection.run(600, |now| now.client_bytes.0 += 100).0,
        DeadlineVerdict::Continue
    );
}

#[test]
fn upstream_that_takes_the_body_slowly_is_not_a_client_timeout() {
    let mut connection = SimulatedConnection::with_request(ActiveParty::Upstream);
    let (verdict, _) = connection.run(600, |now| {
        now.client_bytes.0 += 1;
        now.activity.set_upstream_bytes(now.client_bytes.0);
    });
    assert_eq!(verdict, DeadlineVerdict::Continue);
}

#[test]
fn client_that_reads_below_minimum_rate_times_out() {
    for bytes in [0, 50] {
        let mut connection = SimulatedConnection::with_request(ActiveParty::Upstream);
        connection.activity.set_write_blocked(true);
        let (verdict, second) = connection.run(60, |now| now.client_bytes.1 += bytes);
        assert_eq!(verdict, DeadlineVerdict::ClientReadTimeout, "{bytes}");
        assert!((10..=14).contains(&second), "{second}");
    }
}

#[test]
fn silent_upstream_times_out() {
    let mut connection = SimulatedConnection::with_request(ActiveParty::Upstream);
    let (verdict, second) = connection.run(60, |_| {});
    assert_eq!(verdict, DeadlineVerdict::UpstreamTimeout);
    assert!((20..=24).contains(&second), "{second}");
}

#[test]
fn streaming_response_has_an_idle_timeout_of_its_own() {
    for (streaming, has_body, limit) in [
        (StreamingMode::No, true, 20),
        (StreamingMode::AfterFirstByte, false, 20),
        (StreamingMode::AfterFirstByte, true, 100),
        (StreamingMode::Yes, false, 100),
    ] {
        let mut connection = SimulatedConnection::with_request(ActiveParty::Upstream);
        connection.activity.set_streaming(streaming);
        if has_body {
            connection.activity.begin_response_body();
        }
        let (verdict, second) = connection.run(200, |_| {});
        assert_eq!(verdict, DeadlineVerdict::UpstreamTimeout, "{streaming:?}");
        assert!(
            (limit..=limit + 4).contains(&second),
            "{streaming:?}: {second}"
        );
        // The next response is not a streaming one.
        connection.activity.begin_request();
        connection.activity.set_active_party(ActiveParty::Upstream);
        let (_, second) = connection.run(200, |_| {});
        assert!((20..=24).contains(&second), "{streaming:?}: {second}");
    }
}

#[test]
fn active_proxy_is_not_a_timeout() {
    let mut connection = SimulatedConnection::with_request(ActiveParty::Proxy);
    assert_eq!(connection.run(600, |_| {}).0, DeadlineVerdict::Continue);
}

#[test]
fn first_failure_is_returned_once_and_never_to_the_next_request() {
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
