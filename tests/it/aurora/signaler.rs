//! The HTTP rows of the contract: which responses pass, which fail, and the text on Aurora's page.

use std::io::Write as _;
use std::net::TcpListener;
use std::time::Duration;

use hostkit_tests::free_port;
use hostkit_tests::thermos::{HttpCheck, HttpSignaler};

use super::server::{ScriptedServer, answer, write_slowly};

/// Long compared with a pause, short compared with a test.
const TIMEOUT: Duration = Duration::from_millis(400);

fn check_response(server: &ScriptedServer, http: &HttpCheck) -> Result<(), String> {
    HttpSignaler::new(server.port())
        .timeout(TIMEOUT)
        .check(http)
}

/// The page's text for a response to the default check.
fn body_mismatch(got: &str) -> String {
    format!("Response differs from expected response (expected \"ok\", got \"{got}\")")
}

fn lost(port: u16, why: &str) -> String {
    format!("Failed to signal http://localhost:{port}/health: {why}")
}

#[test]
fn default_check_accepts_200_with_ok_body() {
    for output in [
        answer("200 OK", "ok"),
        answer("200 OK", "OK"),
        answer("200 OK", " \t\r\n\x0b\x0cOk\n"),
        answer("201 Created", "ok"),
        answer("299 Whatever", "ok"),
        "HTTP/1.0 200 OK\r\n\r\nok".to_owned(),
        "HTTP/1.1 200\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nok".to_owned(),
        // It ends before its length, which is not compared.
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok".to_owned(),
        // It continues after its length.
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokay, not".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1;x\r\nk\r\n0\r\n\r\n"
            .to_owned(),
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nok".to_owned(),
        // A response without a head is HTTP/0.9.
        "ok\n".to_owned(),
    ] {
        let server = ScriptedServer::start_with_response(output.clone());
        assert_eq!(
            check_response(&server, &HttpCheck::default()),
            Ok(()),
            "{output:?}"
        );
    }
}

#[test]
fn default_check_rejects_other_responses_and_page_shows_reason() {
    for (output, shown) in [
        (answer("200 OK", ""), body_mismatch("")),
        (answer("204 No Content", ""), body_mismatch("")),
        (answer("200 OK", "okay"), body_mismatch("okay")),
        (answer("200 OK", "Refused"), body_mismatch("refused")),
        // Nine characters fit; of ten, seven and three dots are shown.
        (answer("200 OK", "123456789"), body_mismatch("123456789")),
        (answer("200 OK", "1234567890"), body_mismatch("1234567...")),
        (
            answer("200 OK", &"x".repeat(3 << 20)),
            body_mismatch("xxxxxxx..."),
        ),
        // The body of a status other than 2xx is discarded, even if it is ok.
        (answer("500 No", "ok"), body_mismatch("")),
        (
            answer("503 Service Unavailable", "timeout"),
            body_mismatch(""),
        ),
        (answer("404 Not Found", "ok"), body_mismatch("")),
        (answer("304 Not Modified", ""), body_mismatch("")),
        (answer("302 Found", "ok"), body_mismatch("")),
        ("not http\n".to_owned(), body_mismatch("not http")),
    ] {
        let server = ScriptedServer::start_with_response(output.clone());
        let found = check_response(&server, &HttpCheck::default());
        assert_eq!(found, Err(shown), "{output:?}");
    }
}

#[test]
fn malformed_responses_fail_as_in_httplib() {
    for (output, exception) in [
        (String::new(), "BadStatusLine"),
        ("HTTP/1.1 okay\r\n\r\n".to_owned(), "BadStatusLine"),
        ("HTTP/1.1 99 Low\r\n\r\nok".to_owned(), "BadStatusLine"),
        ("HTTP/2 200 OK\r\n\r\nok".to_owned(), "UnknownProtocol"),
        (
            format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\nok", "a".repeat(70_000)),
            "LineTooLong",
        ),
        (
            format!("HTTP/1.1 200 OK\r\n{}\r\nok", "A: b\r\n".repeat(101)),
            "HTTPException",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nok".to_owned(),
            "IncompleteRead",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n".to_owned(),
            "IncompleteRead",
        ),
    ] {
        let server = ScriptedServer::start_with_response(output.clone());
        let shown = lost(server.port(), &format!("Error within {exception}"));
        assert_eq!(
            check_response(&server, &HttpCheck::default()),
            Err(shown),
            "{output:?}"
        );
    }
}

#[test]
fn expected_endpoint_response_and_code_are_configurable() {
    let http = HttpCheck::default;
    let code = |expected, got| {
        Err(format!(
            "Response code differs from expected response (expected {expected}, got {got})"
        ))
    };
    for (output, http, verdict) in [
        (answer("200 OK", "fine"), http().response("FINE"), Ok(())),
        (answer("200 OK", "anything"), http().response(""), Ok(())),
        (answer("200 OK", "ok"), http().code(200), Ok(())),
        (
            answer("202 Accepted", "ok"),
            http().code(200),
            code(200, 202),
        ),
        // Without an expected body, the code of a failure can be expected; without both, everything passes.
        (answer("500 No", "x"), http().response("").code(500), Ok(())),
        (
            answer("500 No", "x"),
            http().response("").code(200),
            code(200, 500),
        ),
        (answer("500 No", "x"), http().response(""), Ok(())),
        (
            answer("200 OK", "ok"),
            http().response("Everything"),
            Err(
                "Response differs from expected response (expected \"Everyth...\", got \"ok\")"
                    .to_owned(),
            ),
        ),
    ] {
        let server = ScriptedServer::start_with_response(output.clone());
        assert_eq!(
            check_response(&server, &http),
            verdict,
            "{output:?} for {http:?}"
        );
    }
    let server = ScriptedServer::start_with_response(answer("200 OK", "ok"));
    check_response(&server, &http().endpoint("/private/stats/?a=b")).unwrap();
    assert_eq!(server.requests(), ["GET /private/stats/?a=b"]);
}

#[test]
fn request_has_bytes_of_urllib_on_new_connection() {
    let server = ScriptedServer::start_with_response(answer("200 OK", "ok"));
    let signaler = HttpSignaler::new(server.port());
    signaler.check(&HttpCheck::default()).unwrap();
    signaler.post("/quitquitquit").unwrap();
    let (host, rest) = (
        format!("Host: localhost:{}", server.port()),
        "Connection: close\nUser-Agent: Python-urllib/2.7",
    );
    assert_eq!(
        server.heads(),
        [
            format!("GET /health HTTP/1.1\nAccept-Encoding: identity\n{host}\n{rest}"),
            format!(
                "POST /quitquitquit HTTP/1.1\nAccept-Encoding: identity\nContent-Length: 0\n\
                 Content-Type: application/x-www-form-urlencoded\n{host}\n{rest}"
            ),
        ]
    );
}

#[test]
fn redirects_are_followed() {
    let elsewhere = ScriptedServer::start_with_response(answer("200 OK", "ok"));
    let there = elsewhere.port();
    let server = ScriptedServer::start(move |line, stream| {
        let path = line.split(' ').nth(1).unwrap_or_default();
        let to = match path {
            "/absolute" => format!("http://localhost:{there}/x"),
            "/root" => "/ok".to_owned(),
            "/a/relative" => "ok".to_owned(),
            "/secure" => "https://localhost/".to_owned(),
            "/again" => "/again".to_owned(),
            "/ok" | "/a/ok" => return stream.write_all(answer("200 OK", "ok").as_bytes()),
            code => {
                let code = code.trim_start_matches('/');
                let answer =
                    format!("HTTP/1.1 {code} Moved\r\nLocation: /ok\r\nContent-Length: 0\r\n\r\n");
                return stream.write_all(answer.as_bytes());
            }
        };
        let answer = format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes())
    });
    let get = |path: &str| check_response(&server, &HttpCheck::default().endpoint(path));
    for path in [
        "/absolute",
        "/root",
        "/a/relative",
        "/301",
        "/302",
        "/303",
        "/307",
    ] {
        assert_eq!(get(path), Ok(()), "{path}");
    }
    assert_eq!(elsewhere.requests(), ["GET /x"]);
    for path in ["/300", "/304", "/308", "/secure"] {
        assert_eq!(get(path), Err(body_mismatch("")), "{path}");
    }
    let before = server.requests().len();
    assert_eq!(get("/again"), Err(body_mismatch("")));
    assert_eq!(
        server.requests().len() - before,
        5,
        "at most four redirects to one URL"
    );

    let signaler = HttpSignaler::new(server.port());
    let posted = |path: &str| {
        let before = server.requests().len();
        signaler.query("POST", path).unwrap();
        server.requests().split_off(before)
    };
    assert_eq!(posted("/302"), ["POST /302", "GET /ok"]);
    assert_eq!(posted("/307"), ["POST /307"], "a POST is not repeated");
}

#[test]
fn timeout_applies_to_each_operation_and_not_to_sum() {
    let slow = ScriptedServer::start(|_, stream| {
        write_slowly(stream, answer("200 OK", "ok").as_bytes(), TIMEOUT / 16)
    });
    let before = std::time::Instant::now();
    assert_eq!(check_response(&slow, &HttpCheck::default()), Ok(()));
    assert!(before.elapsed() > 2 * TIMEOUT, "the response was slow");

    let part = |bytes: &'static str| {
        ScriptedServer::start(move |_, stream| {
            stream.write_all(bytes.as_bytes())?;
            std::thread::sleep(4 * TIMEOUT);
            Ok(())
        })
    };
    for stuck in [
        "",
        "HTTP/1.1 200",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no",
    ] {
        let server = part(stuck);
        let shown = lost(server.port(), "Error within timeout");
        assert_eq!(
            check_response(&server, &HttpCheck::default()),
            Err(shown),
            "{stuck:?}"
        );
    }
    // A body of a status other than 2xx is not read.
    let sick = part("HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n");
    assert_eq!(
        check_response(&sick, &HttpCheck::default()),
        Err(body_mismatch(""))
    );
    assert_eq!(
        HttpSignaler::new(sick.port())
            .timeout(TIMEOUT)
            .post("/quitquitquit"),
        Ok(())
    );
}

#[test]
fn refused_connection_fails_check() {
    let port = free_port();
    let signaler = HttpSignaler::new(port).timeout(TIMEOUT);
    let refused = "<urlopen error [Errno 111] Connection refused>";
    assert_eq!(
        signaler.check(&HttpCheck::default()),
        Err(lost(port, refused))
    );
    assert!(signaler.post("/quitquitquit").is_err());

    // The kernel accepts, but no process reads.
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let signaler = HttpSignaler::new(port).timeout(TIMEOUT);
    let shown = lost(port, "Error within timeout");
    assert_eq!(signaler.check(&HttpCheck::default()), Err(shown));
    assert!(signaler.post("/quitquitquit").is_err());

    let reset = ScriptedServer::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")?;
        socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO))
    });
    let shown = lost(
        reset.port(),
        "Unexpected error: [Errno 104] Connection reset by peer",
    );
    assert_eq!(check_response(&reset, &HttpCheck::default()), Err(shown));
}

#[test]
fn any_response_counts_as_handled_for_lifecycle() {
    for status in [
        "200 OK",
        "204 No Content",
        "302 Found",
        "404 Not Found",
        "405 No",
        "500 No",
    ] {
        let server = ScriptedServer::start_with_response(answer(status, "anything"));
        assert_eq!(
            HttpSignaler::new(server.port()).post("/quitquitquit"),
            Ok(()),
            "{status}"
        );
        assert_eq!(server.requests(), ["POST /quitquitquit"]);
    }
}
