//! One-shot mode: exit codes, the line for Nagios, and the time that counts for a line.

use super::*;

#[test]
fn fresh_line_is_ok_with_performance_data() {
    let sandbox = LogSandbox::new();
    sandbox.logs("{\"a\":1}\n");
    sandbox.age(40);
    let outcome = sandbox.check().exits(0);
    assert_result_contains(&outcome, "OK: a line beginning with \"{\" was written 4");
    let age = perfdata(&outcome, "age");
    assert!((40.0..100.0).contains(&age), "{age}");
    assert!(
        outcome.stdout.contains("s;;100;0 read="),
        "{}",
        outcome.stdout
    );
    assert_eq!(outcome.stderr, "");
}

#[test]
fn old_line_is_critical() {
    let sandbox = LogSandbox::new();
    sandbox.logs("{\"a\":1}\n");
    sandbox.age(101);
    let outcome = sandbox.check().exits(2);
    assert_result_contains(
        &outcome,
        "CRITICAL: stale: nothing was written for 101 s in ",
    );
    assert!(
        outcome.stdout.contains("age=U;;100;0"),
        "{}",
        outcome.stdout
    );
}

#[test]
fn only_lines_with_the_prefix_count() {
    let sandbox = LogSandbox::new();
    sandbox.logs("{\"a\":1}\n");
    sandbox.age(60);
    sandbox.check().exits(0);
    // Another line makes the file new again; the matching line keeps its age.
    sandbox.logs(" {no}\nx{\n\n");
    let outcome = sandbox.check().exits(0);
    assert!(perfdata(&outcome, "age") >= 60.0, "{}", outcome.stdout);
    let fast = ["--app-directory=app", "--line-pattern={", "--freshness=50"];
    assert_result_contains(
        &sandbox.run(fast).exits(2),
        "stale: no line beginning with \"{\" was written for 6",
    );
    sandbox.logs("{\"b\":1}\n");
    sandbox.run(fast).exits(0);
}

#[test]
fn log_without_a_matching_line_is_ok_until_freshness_has_passed() {
    let sandbox = LogSandbox::new();
    sandbox.logs("noise\n");
    let args = [
        "--app-directory",
        "app",
        "--line-pattern",
        "{",
        "--freshness",
        "0.7",
    ];
    assert_result_contains(
        &sandbox.run(args).exits(0),
        "OK: no line beginning with \"{\" yet",
    );
    let mut last = None;
    hostkit_tests::wait_until("the log is critical", || {
        sandbox.logs("noise\n");
        let outcome = sandbox.run(args);
        let given_up = outcome.code == 2;
        last = Some(outcome);
        given_up
    });
    assert_result_contains(
        &last.unwrap(),
        "CRITICAL: nolines: no line beginning with \"{\" in ",
    );
    sandbox.logs("{\n");
    sandbox.run(args).exits(0);
}

#[test]
fn time_in_a_line_takes_priority_over_the_file_time() {
    for (line, code, flag) in [
        (timed(500), 2, ""),
        (timed(50), 0, ""),
        (timed(500) + &timed(50) + &timed(500), 0, ""),
        // Without a zone: the file's time counts, unless --assume-utc is given.
        ("{\"time\":\"2020-01-01 00:00:00,000\"}\n".to_owned(), 0, ""),
        (
            "{\"time\":\"2020-01-01 00:00:00,000\"}\n".to_owned(),
            2,
            "--assume-utc",
        ),
        // A duration.
        ("{\"time\":0.5}\n".to_owned(), 0, ""),
    ] {
        let sandbox = LogSandbox::new();
        sandbox.logs(&line);
        let args = ARTICLE_FLAGS
            .iter()
            .chain([&flag])
            .filter(|arg| !arg.is_empty());
        sandbox.run(args).exits(code);
    }
}

#[test]
fn deviating_times_in_lines_are_reported_and_can_be_ignored() {
    // The time of an event of an hour ago; local time marked Z, east and west of Greenwich.
    for (seconds, code) in [(3600, 2), (-7200, 0), (18_000, 2)] {
        let sandbox = LogSandbox::new();
        sandbox.logs(timed(seconds));
        let outcome = sandbox.check().exits(code);
        assert_result_contains(
            &outcome,
            " s: use --time-from file if it is not the time of writing",
        );
        let outcome = sandbox
            .run(ARTICLE_FLAGS.iter().chain([&"--time-from=file"]))
            .exits(0);
        assert!(perfdata(&outcome, "age") < 100.0, "{}", outcome.stdout);
        assert!(
            !outcome.stdout.contains("--time-from"),
            "{}",
            outcome.stdout
        );
    }
    let sandbox = LogSandbox::new();
    sandbox.logs(timed(50));
    assert!(!sandbox.check().exits(0).stdout.contains("--time-from"));
}

#[test]
fn future_time_counts_as_now_once() {
    let sandbox = LogSandbox::new();
    sandbox.logs(timed(-1000));
    let outcome = sandbox.check().exits(0);
    assert_result_contains(&outcome, "a time in the future counts as now");
    assert!(perfdata(&outcome, "age") < 1.0);
    sandbox.logs("noise\n");
    let outcome = sandbox.check().exits(0);
    assert!(!outcome.stdout.contains("future"), "{}", outcome.stdout);
}

#[test]
fn missing_log_is_critical_after_the_grace_period() {
    let sandbox = LogSandbox::new();
    assert_result_contains(
        &sandbox.check().exits(2),
        "CRITICAL: nolog: no log at ./.logs/app",
    );
    let with_grace = |grace: &str| sandbox.run(ARTICLE_FLAGS.iter().chain([&"--grace", &grace]));
    assert_result_contains(
        &with_grace("1h").exits(0),
        "within the grace period of 3600 s",
    );
    hostkit_tests::wait_until("the grace ends", || with_grace("0.5").code == 2);
}

#[test]
fn unchanged_log_is_not_read() {
    if !hostkit_tests::is_installed("strace") {
        return hostkit_tests::skip("bytes read", "strace is not installed");
    }
    let sandbox = LogSandbox::new();
    sandbox.logs("{\"a\":1}\n".repeat(100_000));
    let read = || -> u64 {
        let trace = sandbox.path("trace");
        let mut strace = sandbox.command("strace");
        strace
            .arg("-o")
            .arg(&trace)
            .args(["-y", "-e", "trace=read,pread64,readv,preadv,mmap"]);
        strace
            .arg(hostkit_tests::bin("log-healthcheck"))
            .args(ARTICLE_FLAGS);
        let outcome: CommandOutcome = strace.output().unwrap().into();
        let trace = fs::read_to_string(trace).unwrap();
        let calls = trace.lines().filter(|call| call.contains("/0/stderr>"));
        let bytes = calls
            .map(|call| call.rsplit("= ").next().unwrap().parse::<u64>().unwrap())
            .sum();
        assert_eq!(
            perfdata(&outcome, "read"),
            bytes as f64,
            "the file was read"
        );
        bytes
    };
    // The end of the log decides; after that only the fingerprint is compared.
    assert!((65_536..66_000).contains(&read()));
    assert!(read() < 200);
    sandbox.age(101);
    assert_eq!(read(), 0);
    fs::remove_dir_all(sandbox.path(".logs")).unwrap();
    sandbox.logs("{\"a\":1}\n");
    sandbox.age(101);
    assert_eq!(read(), 0, "also of a log that is seen for the first time");
}

#[test]
fn line_before_much_noise_is_found() {
    let sandbox = LogSandbox::new();
    sandbox.logs("noise\n");
    sandbox.check().exits(0);
    sandbox.logs("{\"a\":1}\n");
    let noise = b"a line of something else {\n".repeat(40_000);
    for _ in 0..20 {
        sandbox.logs(&noise);
    }
    let outcome = sandbox.check().exits(0);
    assert_result_contains(&outcome, "a line beginning with \"{\" was written");
    assert!(perfdata(&outcome, "read") > 20e6);
}

#[test]
fn first_check_reads_back_64_mebibytes() {
    let sandbox = LogSandbox::new();
    sandbox.logs("{\"a\":1}\n");
    File::options()
        .write(true)
        .open(sandbox.log())
        .unwrap()
        .set_len(80 << 20)
        .unwrap();
    let outcome = sandbox.check().exits(0);
    assert_result_contains(&outcome, "no line beginning with \"{\" yet");
    assert!(perfdata(&outcome, "read") <= f64::from((64 << 20) + 1000));
}

#[test]
fn utf_16_log_is_reported() {
    let line = "x\r\n{\"a\":1}\r\n";
    let units: Vec<u16> = line.encode_utf16().collect();
    let little = units.iter().flat_map(|unit| unit.to_le_bytes());
    let big = units.iter().flat_map(|unit| unit.to_be_bytes());
    let marked = |mark: [u8; 2], bytes: &[u8]| [&mark, bytes].concat();
    let (little, big): (Vec<u8>, Vec<u8>) = (little.collect(), big.collect());
    for (bytes, is_utf16) in [
        (marked([0xff, 0xfe], &little), true),
        (marked([0xfe, 0xff], &big), true),
        (little, true),
        (big, true),
        // A hole left by a writer, and text in another encoding.
        (b"\0\0\0\0\0\0noise".to_vec(), false),
        (b"\xe9t\xe9 noise".to_vec(), false),
        (Vec::new(), false),
    ] {
        let sandbox = LogSandbox::new();
        sandbox.logs(&bytes);
        let outcome = sandbox.check().exits(0);
        let is_named = outcome
            .stdout
            .contains("stderr, which is UTF-16 and matches no pattern");
        assert_eq!(is_named, is_utf16, "{bytes:?}: {}", outcome.stdout);
        let fast = ["--app-directory=app", "--line-pattern={", "--freshness=0.3"];
        let mut last = None;
        hostkit_tests::wait_until("the log is critical", || {
            sandbox.logs("");
            sandbox.age(0);
            last = Some(sandbox.run(fast));
            last.as_ref().unwrap().code == 2
        });
        let reason = if is_utf16 {
            "nomatch: UTF-16, "
        } else {
            "nolines: "
        };
        assert_result_contains(&last.unwrap(), &format!("CRITICAL: {reason}"));
    }
}

#[test]
fn regular_expression_is_matched_at_the_beginning_of_a_line() {
    let sandbox = LogSandbox::new();
    sandbox.logs("2026 WARN x\n");
    let run = |pattern: &str| {
        let args = [
            "--app-directory=app",
            "--freshness=100",
            "--regex",
            "--line-pattern",
            pattern,
        ];
        sandbox.run(args)
    };
    assert_result_contains(&run(r"\d{4} (INFO|WARN)").exits(0), "was written");
    assert_result_contains(&run("INFO|WARN").exits(0), "yet");
    assert_result_contains(
        &run("(").exits(3),
        "UNKNOWN: error: invalid --line-pattern \"(\": ",
    );
}

#[test]
fn json_contains_the_same_result() {
    let sandbox = LogSandbox::new();
    sandbox.logs(timed(30));
    let outcome = sandbox
        .run(ARTICLE_FLAGS.iter().chain([&"--json"]))
        .exits(0);
    let value: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(
        (&value["status"], &value["reason"]),
        (&"OK".into(), &"ok".into())
    );
    assert!(
        (30.0..60.0).contains(&value["age_seconds"].as_f64().unwrap()),
        "{value}"
    );
    let outcome = sandbox
        .run(["--app-directory=a/b", "--freshness=1", "--json"])
        .exits(3);
    let value: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(
        (&value["status"], &value["reason"]),
        (&"UNKNOWN".into(), &"error".into())
    );
}

#[test]
fn invalid_command_line_is_unknown() {
    let sandbox = LogSandbox::new();
    let long = format!(
        "--app-directory=a --freshness=1 --line-pattern={}",
        "x".repeat(2000)
    );
    for (args, said) in [
        (
            "--freshness 1",
            "UNKNOWN - the following required arguments were not provided: --app-directory <NAME>",
        ),
        (
            "--app-directory app",
            "UNKNOWN - the following required arguments were not provided: --freshness <DURATION>",
        ),
        (
            "--app-directory=app --freshness=soon",
            "UNKNOWN - invalid value 'soon' for '--freshness <DURATION>': unknown unit",
        ),
        (
            "--app-directory=app -c 1 --fresh",
            "UNKNOWN - unexpected argument '--fresh' found",
        ),
        (
            "--app-directory=../x --freshness=1",
            "UNKNOWN: error: invalid --app-directory: neither a name nor",
        ),
        (
            "--file a -w 200 -c 100",
            "UNKNOWN: error: --warning is longer than --freshness",
        ),
        (&long, "longer than"),
    ] {
        let outcome = sandbox.run(args.split_whitespace()).exits(3);
        assert_result_contains(&outcome, said);
        assert!(outcome.stdout.starts_with("UNKNOWN"), "{}", outcome.stdout);
    }
    assert!(
        sandbox
            .run(["--help"])
            .exits(0)
            .stdout
            .starts_with("Checks")
    );
}

#[test]
fn age_decides_between_ok_warning_and_critical() {
    let sandbox = LogSandbox::new();
    for (seconds, code, said) in [
        (10, 0, "OK: a line beginning"),
        (70, 1, "WARNING: aging: a line beginning"),
        (200, 2, "CRITICAL: stale: "),
    ] {
        let name = format!("{seconds}.log");
        sandbox.write(&name, timed(seconds));
        // As Nagios calls it: outside a job, with a state file in a writable directory.
        let args = ["--line-pattern={", "-w", "60", "-c", "100", "--file", &name];
        let outcome = sandbox.run(args).exits(code);
        assert_result_contains(&outcome, said);
        assert!(
            outcome.stdout.contains(";60;100;0 read="),
            "{}",
            outcome.stdout
        );
        let outcome = sandbox.run(args.iter().chain([&"--json"])).exits(code);
        let value: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!(value["warning_seconds"], 60.0, "{value}");
    }
}

#[test]
fn snoozed_task_is_not_checked() {
    let sandbox = LogSandbox::new();
    fs::create_dir_all(sandbox.path(".logs")).unwrap();
    sandbox.check().exits(2);
    fs::write(sandbox.path(".healthchecksnooze"), "").unwrap();
    assert_result_contains(&sandbox.check().exits(0), ".healthchecksnooze");
}
