//! Preflight against the real `haproxy -c`, and what `-c` does not see.

use std::net::TcpListener;
use std::time::Duration;

use hostkit_tests::free_port;
use hostkit_tests::haproxy::HaproxyMode;

use synapse::haproxy::check::{CheckError, check};
use synapse::haproxy::{Cause, Outcome, Step};

use super::server::{Client, Named};
use super::{block_on, changed, head, proxies, started};

const LONG: Duration = Duration::from_secs(30);

#[test]
fn alerts_come_with_their_lines() {
    let Some((haproxy, _, _)) = started(HaproxyMode::Daemon, "") else {
        return;
    };
    let file = haproxy.directory().join("candidate");
    let text = format!(
        "{}{}",
        haproxy.head(),
        proxies(free_port(), "    bogus thing\n")
    );
    std::fs::write(&file, &text).unwrap();
    let error = block_on(check(&haproxy.binary(), &file, LONG)).unwrap_err();
    let CheckError::Refused { alerts, .. } = &error else {
        panic!("{error}");
    };
    let fatal: Vec<_> = alerts.iter().filter(|alert| alert.fatal).collect();
    assert_eq!(fatal.len(), 1, "{alerts:?}");
    assert_eq!(fatal[0].line, Some(text.lines().count()));
    assert!(fatal[0].text.contains("'bogus'"), "{}", fatal[0].text);

    let nowhere = block_on(check("/nowhere/haproxy".as_ref(), &file, LONG)).unwrap_err();
    assert!(nowhere.to_string().contains("install haproxy"), "{nowhere}");
    let late = block_on(check(&haproxy.binary(), &file, Duration::ZERO)).unwrap_err();
    assert!(matches!(late, CheckError::TimedOut { .. }), "{late}");
}

#[test]
fn a_bad_file_is_refused_and_the_old_one_serves() {
    for mode in [HaproxyMode::Daemon, HaproxyMode::Master] {
        let a = Named::start("A");
        let line = format!("    server s 127.0.0.1:{}\n", a.port());
        let Some((haproxy, port, settings)) = started(mode, &line) else {
            return;
        };
        let (before, worker) = (std::fs::read(haproxy.config()).unwrap(), haproxy.worker());
        let bad = format!("{}{}", head(&haproxy, "two"), proxies(port, "    bogus\n"));
        let error = changed(&settings, &bad, "two").unwrap_err();
        assert_eq!(
            (error.step, &error.outcome),
            (Step::Check, &Outcome::Untouched)
        );
        assert!(
            error.cause.to_string().contains("unknown keyword 'bogus'"),
            "{}",
            error.cause
        );
        assert_eq!(std::fs::read(haproxy.config()).unwrap(), before);
        assert_eq!((haproxy.worker(), haproxy.reloads()), (worker, 0));
        assert_eq!(Client::connect(port).get("/"), "200 A");
    }
}

#[test]
fn a_bind_that_is_held_is_found_where_haproxy_sees_nothing() {
    for mode in [HaproxyMode::Daemon, HaproxyMode::Master] {
        let a = Named::start("A");
        let line = format!("    server s 127.0.0.1:{}\n", a.port());
        let Some((haproxy, port, settings)) = started(mode, &line) else {
            return;
        };
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let held = holder.local_addr().unwrap();
        let worker = haproxy.worker();
        let text = format!(
            "{}{}listen other\n    bind {held}\n",
            head(&haproxy, "two"),
            proxies(port, &line)
        );
        let candidate = haproxy.directory().join("candidate");
        std::fs::write(&candidate, &text).unwrap();
        block_on(check(&haproxy.binary(), &candidate, LONG)).unwrap();

        let error = changed(&settings, &text, "two").unwrap_err();
        assert_eq!(
            (error.step, &error.outcome),
            (Step::Binds, &Outcome::Untouched)
        );
        let said = error.cause.to_string();
        assert!(
            said.contains(&held.to_string()) && said.contains("listen other"),
            "{said}"
        );
        assert!(
            said.contains(&format!("process {} (", std::process::id())),
            "{said}"
        );
        assert!(matches!(*error.cause, Cause::Binds { .. }));
        assert_eq!((haproxy.worker(), haproxy.reloads()), (worker, 0));
        assert_eq!(Client::connect(port).get("/"), "200 A");
    }
}

#[test]
fn a_place_beside_one_that_haproxy_holds_is_no_conflict() {
    let Some((haproxy, port, settings)) = started(HaproxyMode::Daemon, "") else {
        return;
    };
    let wide = format!("{}listen wide\n    bind *:{port}\n", head(&haproxy, "two"));
    changed(&settings, &wide, "two").unwrap();
    let narrow = format!(
        "{}listen wide\n    bind *:{port}\nlisten narrow\n    bind 127.0.0.1:{port}\n",
        head(&haproxy, "three")
    );
    changed(&settings, &narrow, "three").unwrap();
    assert_eq!(haproxy.reloads(), 2);
}

#[test]
fn more_connections_than_files_are_refused() {
    let Some((haproxy, port, settings)) = started(HaproxyMode::Daemon, "") else {
        return;
    };
    let text = format!("{}{}", head(&haproxy, "two"), proxies(port, ""));
    let text = text.replace("maxconn 1000\n", "maxconn 900000000\n");
    let error = changed(&settings, &text, "two").unwrap_err();
    assert_eq!(
        (error.step, &error.outcome),
        (Step::Check, &Outcome::Untouched)
    );
    assert!(matches!(*error.cause, Cause::Limit(_)), "{}", error.cause);
    assert!(
        error.cause.to_string().contains("LimitNOFILE"),
        "{}",
        error.cause
    );
}

#[test]
fn the_operators_check_has_a_say() {
    let Some((haproxy, port, mut settings)) = started(HaproxyMode::Daemon, "") else {
        return;
    };
    let text = format!("{}{}", head(&haproxy, "two"), proxies(port, ""));
    settings.check_command = Some("echo not today >&2; false".to_owned());
    settings.do_checks = true;
    let error = changed(&settings, &text, "two").unwrap_err();
    assert_eq!(
        (error.step, &error.outcome),
        (Step::CheckCommand, &Outcome::Untouched)
    );
    assert!(
        error.cause.to_string().contains("not today"),
        "{}",
        error.cause
    );
    settings.do_checks = false;
    changed(&settings, &text, "two").unwrap();
}
