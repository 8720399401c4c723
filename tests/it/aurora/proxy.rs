//! proxy-healthcheck under Aurora: every row of the contract, with Aurora's own client.

use std::fs::File;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hostkit_tests::thermos::{HttpCheck, HttpSignaler};
use hostkit_tests::{ChildGuard, bin, free_port, wait_until};
use tempfile::TempDir;

use super::server::{ScriptedServer, answer, write_slowly};

/// The checker's timeout for the server.
const TIMEOUT: Duration = Duration::from_millis(500);

struct AuroraChecker {
    port: u16,
    sandbox: TempDir,
    process: ChildGuard,
}

impl AuroraChecker {
    fn start(server: u16, arguments: &[&str]) -> Self {
        let (port, sandbox) = (free_port(), TempDir::new().unwrap());
        let log = File::create(sandbox.path().join("log")).unwrap();
        let process = Command::new(bin("proxy-healthcheck"))
            .args(["--url=/private/stats/", &format!("--port={port}")])
            .args([
                format!("--test_port={server}"),
                format!("--timeout={}ms", TIMEOUT.as_millis()),
            ])
            .args(arguments)
            .current_dir(sandbox.path())
            .stderr(log)
            .spawn()
            .unwrap();
        let checker = Self {
            port,
            sandbox,
            process: ChildGuard(process),
        };
        wait_until("the checker listens", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        checker
    }

    fn signaler(&self) -> HttpSignaler {
        HttpSignaler::new(self.port).timeout(Duration::from_secs(5))
    }

    /// The result as Aurora's page shows it.
    fn verdict(&self) -> Result<(), String> {
        self.signaler().check(&HttpCheck::default())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.sandbox.path().join("log")).unwrap()
    }
}

/// The page's text for a body other than `ok`.
fn unexpected_body(word: &str) -> Result<(), String> {
    Err(format!(
        "Response differs from expected response (expected \"ok\", got \"{word}\")"
    ))
}

#[test]
fn healthy_server_passes_check_on_every_address_of_localhost() {
    let server = ScriptedServer::start_with_response(answer("200 OK", "{\"pid\": 1}"));
    let checker = AuroraChecker::start(server.port(), &[]);
    let mut hosts = vec!["localhost", "127.0.0.1"];
    // If the host has IPv6.
    hosts.extend(TcpListener::bind(("::1", 0)).is_ok().then_some("::1"));
    for host in &hosts {
        let signaler = checker.signaler().host(host);
        let answer = signaler.query("GET", "/health").unwrap();
        assert_eq!((answer.code, answer.body.as_slice()), (200, &b"ok"[..]));
        assert_eq!(signaler.check(&HttpCheck::default().code(200)), Ok(()));
    }
    let asked = server.requests();
    assert!(
        asked.len() >= 2 * hosts.len(),
        "each request has its own connection"
    );
    assert!(
        asked.iter().all(|line| line == "GET /private/stats/"),
        "{asked:?}"
    );
}

#[test]
fn unhealthy_server_fails_check_and_reason_fits_on_aurora_page() {
    let elsewhere = ScriptedServer::start_with_response(answer("200 OK", "ok"));
    let moved = format!(
        "HTTP/1.1 302 Found\r\nLocation: http://localhost:{}/\r\nContent-Length: 0\r\n\r\n",
        elsewhere.port()
    );
    let says = |text: &str| ScriptedServer::start_with_response(text.to_owned());
    let silent = || {
        ScriptedServer::start(|_, _| {
            std::thread::sleep(4 * TIMEOUT);
            Ok(())
        })
    };
    let slow = || {
        ScriptedServer::start(|_, stream| {
            write_slowly(
                stream,
                b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                TIMEOUT / 8,
            )
        })
    };
    let huge = || {
        ScriptedServer::start(|_, stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            // Until the checker has made enough checks.
            loop {
                stream.write_all(&[b'x'; 1 << 16])?;
            }
        })
    };
    for (word, server, more) in [
        ("http500", says(&answer("500 No", "ok")), ""),
        ("http404", says(&answer("404 Not Found", "ok")), ""),
        ("http302", says(&moved), ""),
        (
            "http204",
            says(&answer("204 No Content", "")),
            "--expect-status=200",
        ),
        (
            "badbody",
            says(&answer("200 OK", "not so well")),
            "--expect-body=fine",
        ),
        ("badbody", huge(), "--expect-body=fine"),
        ("invalid", says("SSH-2.0-OpenSSH_9.2\r\n"), ""),
        ("closed", says(""), ""),
        ("timeout", silent(), ""),
        ("timeout", slow(), ""),
    ] {
        let more: Vec<&str> = more.split_whitespace().collect();
        let plain = AuroraChecker::start(server.port(), &more);
        assert_eq!(
            plain.verdict(),
            unexpected_body(""),
            "{word}: a 503 has no body there"
        );
        assert_eq!(
            plain.signaler().query("GET", "/health").unwrap().code,
            503,
            "{word}"
        );
        let shown = AuroraChecker::start(
            server.port(),
            &[&more[..], &["--unhealthy-status=200"]].concat(),
        );
        assert_eq!(shown.verdict(), unexpected_body(word));
        assert!(shown.log().contains(word), "{}", shown.log());
    }
    assert_eq!(elsewhere.requests(), [""; 0], "a redirect is not followed");
    let dead = AuroraChecker::start(free_port(), &["--unhealthy-status=200"]);
    assert_eq!(dead.verdict(), unexpected_body("refused"));
}

#[test]
fn verdict_follows_server_and_each_change_is_logged() {
    let port = free_port();
    let checker = AuroraChecker::start(port, &["--unhealthy-status=200"]);
    for _ in 0..3 {
        assert_eq!(checker.verdict(), unexpected_body("refused"));
        let server = ScriptedServer::on(port, |_, stream| {
            stream.write_all(answer("200 OK", "").as_bytes())
        });
        assert_eq!(checker.verdict(), Ok(()));
        assert_eq!(checker.verdict(), Ok(()));
        drop(server);
    }
    assert_eq!(checker.verdict(), unexpected_body("refused"));
    let log = checker.log();
    let turns = |word: &str| log.lines().filter(|line| line.contains(word)).count();
    assert_eq!(
        (turns("reason=ok"), turns("reason=refused")),
        (3, 4),
        "{log}"
    );
}

#[test]
fn snoozed_sandbox_is_healthy() {
    let checker = AuroraChecker::start(free_port(), &[]);
    assert_eq!(checker.verdict(), unexpected_body(""));
    let file = checker.sandbox.path().join(".healthchecksnooze");
    std::fs::write(&file, "").unwrap();
    assert_eq!(checker.verdict(), Ok(()));
    std::fs::remove_file(&file).unwrap();
    assert_eq!(checker.verdict(), unexpected_body(""));
}

#[test]
fn quit_is_answered_in_time_and_checker_exits_after_server() {
    for path in ["/quitquitquit", "/abortabortabort"] {
        let server = ScriptedServer::start(|_, _| {
            std::thread::sleep(4 * TIMEOUT);
            Ok(())
        });
        let mut checker = AuroraChecker::start(server.port(), &["--unhealthy-status=200"]);
        // The signaler of the lifecycle waits one second.
        assert_eq!(HttpSignaler::new(checker.port).post(path), Ok(()));
        assert_eq!(checker.verdict(), unexpected_body("quit"));
        wait_until("the server gets the request", || {
            server.requests().contains(&format!("POST {path}"))
        });
        assert!(
            checker.process.0.try_wait().unwrap().is_none(),
            "the server still runs"
        );
        drop(server);
        wait_until("the checker has exited", || {
            checker.process.0.try_wait().unwrap().is_some()
        });
        assert!(checker.process.0.wait().unwrap().success());
    }
}

#[test]
fn quit_makes_sibling_checkers_drain() {
    let (server, sibling) = (
        ScriptedServer::start_with_response(answer("404 No", "")),
        ScriptedServer::start_with_response(answer("200 OK", "")),
    );
    let notify = format!("--quit-notify=http://127.0.0.1:{}/drain", sibling.port());
    let checker = AuroraChecker::start(server.port(), &[&notify]);
    assert_eq!(
        HttpSignaler::new(checker.port).post("/quitquitquit"),
        Ok(())
    );
    wait_until("the sibling gets the request", || {
        sibling.requests() == ["POST /drain"]
    });
    assert!(
        Path::new("/proc")
            .join(checker.process.0.id().to_string())
            .exists()
    );
}
