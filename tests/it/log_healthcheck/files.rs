//! Files that are not regular logs, and what rotation and writers do to logs.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use hostkit_tests::host::run_as;

use super::*;

/// A user without permissions on the files of the job.
const OTHER_USER: u32 = 54_321;

fn files(sandbox: &LogSandbox, globs: &[&OsStr]) -> CommandOutcome {
    let fixed = ["--line-pattern={", "--freshness=100", "--file"].map(OsStr::new);
    sandbox.run(fixed.iter().chain(globs))
}

#[test]
fn files_are_found_by_name_and_wildcards() {
    let sandbox = LogSandbox::new();
    sandbox.write("var/a.log", "noise\n");
    sandbox.write("var/b.log", "{\"a\":1}\n");
    let found = |globs: &[&str]| {
        let globs: Vec<&OsStr> = globs.iter().map(OsStr::new).collect();
        files(&sandbox, &globs)
    };
    assert_result_contains(&found(&["var/*.log"]).exits(0), "was written");
    assert_result_contains(&found(&["var/a.log"]).exits(0), "yet");
    assert_result_contains(&found(&["var/a.log", "var/b.log"]).exits(0), "was written");
    assert_result_contains(
        &found(&["var/none-*.log"]).exits(2),
        "nolog: no log at var/none-*.log",
    );
}

#[test]
fn hostile_file_name_cannot_forge_the_result() {
    let sandbox = LogSandbox::new();
    let hostile = OsStr::from_bytes(b"x\nOK | age=0s\x1b[2J\xff.log");
    sandbox.write(hostile, "{\"a\":1}\n");
    for glob in [hostile, OsStr::new("*.log")] {
        let outcome = files(&sandbox, &[glob]).exits(0);
        assert_result_contains(&outcome, "OK: a line beginning");
        assert_eq!(outcome.stdout.matches('|').count(), 1, "{}", outcome.stdout);
        assert!(!outcome.stdout.contains('\x1b'));
    }
}

#[test]
fn fifo_is_not_opened() {
    let sandbox = LogSandbox::new();
    fs::create_dir_all(sandbox.path(".logs/app/0")).unwrap();
    for stream in ["stdout", "stderr"] {
        let path = sandbox.path(".logs/app/0").join(stream);
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    }
    assert_result_contains(
        &sandbox.check().exits(2),
        "nolog: ./.logs/app/0/stdout is not a regular file",
    );
    if !hostkit_tests::is_installed("strace") {
        return hostkit_tests::skip("what is opened", "strace is not installed");
    }
    // A reader that opens and closes the FIFO would end the writer by SIGPIPE.
    let trace = sandbox.path("trace");
    let mut strace = sandbox.command("strace");
    strace
        .arg("-o")
        .arg(&trace)
        .args(["-e", "trace=open,openat"]);
    strace
        .arg(hostkit_tests::bin("log-healthcheck"))
        .args(ARTICLE_FLAGS);
    assert!(strace.output().unwrap().status.code() == Some(2));
    let trace = fs::read_to_string(trace).unwrap();
    assert!(
        trace.contains(".logs/app") && !trace.contains("/std"),
        "{trace}"
    );
}

#[test]
fn symlinks_are_followed_and_dangling_ones_are_no_logs() {
    let sandbox = LogSandbox::new();
    sandbox.write("elsewhere", "{\"a\":1}\n");
    fs::create_dir_all(sandbox.path(".logs/app/0")).unwrap();
    symlink("nowhere", sandbox.path(".logs/app/0/stdout")).unwrap();
    symlink(sandbox.path("elsewhere"), sandbox.log()).unwrap();
    sandbox.check().exits(0);
    fs::remove_file(sandbox.log()).unwrap();
    symlink("stderr", sandbox.log()).unwrap();
    assert_result_contains(
        &files(&sandbox, &[OsStr::new(".logs/app/0/stderr")]).exits(3),
        "unread: cannot read",
    );
}

#[test]
fn unreadable_log_is_unknown_unless_it_is_old() {
    let sandbox = LogSandbox::new();
    sandbox.logs("{\"a\":1}\n");
    fs::set_permissions(sandbox.log(), fs::Permissions::from_mode(0o600)).unwrap();
    let program = hostkit_tests::bin("log-healthcheck");
    let Some(mut command) = hostkit_tests::or_skip(
        "a log that cannot be read",
        run_as(OTHER_USER, readable(&sandbox, &program)),
    ) else {
        return;
    };
    sandbox.clean(&mut command);
    command.args(ARTICLE_FLAGS);
    let outcome: CommandOutcome = command.output().unwrap().into();
    assert_result_contains(
        &outcome.exits(3),
        "UNKNOWN: unread: cannot read ./.logs/app/0/stderr",
    );
    sandbox.age(200);
    let outcome: CommandOutcome = command.output().unwrap().into();
    assert_result_contains(&outcome.exits(2), "stale: nothing was written");
    fs::set_permissions(sandbox.path(".logs"), fs::Permissions::from_mode(0o700)).unwrap();
    let outcome: CommandOutcome = command.output().unwrap().into();
    assert_ne!(outcome.code, 0, "{}", outcome.stdout);
}

/// A copy of a program in a directory that every user may search.
fn readable(sandbox: &LogSandbox, program: &Path) -> PathBuf {
    let copy = sandbox.path("program");
    fs::copy(program, &copy).unwrap();
    copy
}

#[test]
fn lines_survive_rotation_truncation_and_a_new_run() {
    let sandbox = LogSandbox::new();
    let log = sandbox.log();
    let check = |age: std::ops::Range<f64>| {
        let outcome = sandbox.check().exits(0);
        assert!(
            age.contains(&perfdata(&outcome, "age")),
            "{}",
            outcome.stdout
        );
    };
    sandbox.logs(timed(80));
    check(80.0..90.0);
    // Written before the rotation, found after it.
    sandbox.logs(timed(60));
    fs::rename(&log, log.with_extension("1")).unwrap();
    sandbox.logs("noise\n");
    check(60.0..70.0);
    // Twice between two checks.
    sandbox.logs(timed(50));
    fs::rename(log.with_extension("1"), log.with_extension("2")).unwrap();
    fs::rename(&log, log.with_extension("1")).unwrap();
    sandbox.logs("noise\n");
    check(50.0..60.0);
    // Copied and truncated.
    sandbox.logs(timed(40));
    fs::copy(&log, log.with_extension("3")).unwrap();
    File::options()
        .write(true)
        .open(&log)
        .unwrap()
        .set_len(0)
        .unwrap();
    sandbox.logs("noise\n");
    check(40.0..50.0);
    // By a writer that does not append: it leaves NULs.
    let writer = File::options().write(true).open(&log).unwrap();
    writer.set_len(0).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&writer, timed(30).as_bytes(), 8000).unwrap();
    check(30.0..40.0);
    // A new run, and the last lines of the old one.
    sandbox.logs(timed(20));
    sandbox.write(".logs/app/1/stderr", "noise\n");
    check(20.0..30.0);
    sandbox.write(".logs/app/10/stderr", timed(10));
    check(10.0..20.0);
    // Only the new run is written to.
    sandbox.logs(timed(0));
    check(10.0..20.0);
}

#[test]
fn lines_of_an_earlier_run_do_not_count_after_a_new_run_began() {
    let sandbox = LogSandbox::new();
    sandbox.logs(timed(80));
    sandbox.check().exits(0);
    sandbox.write(".logs/app/1/stderr", "noise\n");
    let birth = sandbox.path(".logs/app/1").metadata().unwrap().created();
    let Some(birth) = hostkit_tests::or_skip("birth times", birth.map_err(|e| e.to_string()))
    else {
        return;
    };
    // A child that run 0 left behind.
    hostkit_tests::wait_until("it writes later", || {
        sandbox.logs("{\"a\":1}\n");
        let written = sandbox.log().metadata().unwrap().modified().unwrap();
        written > birth + Duration::from_millis(1)
    });
    let outcome = sandbox.check().exits(0);
    assert!(perfdata(&outcome, "age") >= 80.0, "{}", outcome.stdout);
    sandbox.write(".logs/app/1/stderr", "{\"b\":1}\n");
    assert!(perfdata(&sandbox.check().exits(0), "age") < 80.0);
}

#[test]
fn rewritten_log_with_equal_bytes_is_fresh_and_only_partly_read() {
    let sandbox = LogSandbox::new();
    let lines = "{\"a\":1}\n".repeat(100_000);
    sandbox.logs(&lines);
    sandbox.age(60);
    assert!(perfdata(&sandbox.check().exits(0), "age") >= 60.0);
    fs::write(sandbox.log(), &lines).unwrap();
    let outcome = sandbox.check().exits(0);
    assert!(perfdata(&outcome, "age") < 50.0, "{}", outcome.stdout);
    assert!(perfdata(&outcome, "read") < 70e3, "{}", outcome.stdout);
    // A line with a time keeps its age, however often it is written.
    let sandbox = LogSandbox::new();
    let line = timed(70);
    sandbox.logs(&line);
    sandbox.age(60);
    sandbox.check().exits(0);
    fs::write(sandbox.log(), &line).unwrap();
    assert!(perfdata(&sandbox.check().exits(0), "age") >= 70.0);
}

#[test]
fn growing_line_of_any_length_counts() {
    let sandbox = LogSandbox::new();
    sandbox.logs("{\"a\":\"");
    sandbox.age(90);
    assert!(perfdata(&sandbox.check().exits(0), "age") >= 90.0);
    sandbox.logs("x".repeat(3 << 20));
    let outcome = sandbox.check().exits(0);
    assert!(perfdata(&outcome, "age") < 50.0, "{}", outcome.stdout);
    assert!(perfdata(&outcome, "read") < f64::from(4 << 20));
}
