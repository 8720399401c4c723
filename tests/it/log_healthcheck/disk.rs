//! The state file: full disks, concurrent checks, hostile contents. None of these changes a verdict.

use hostkit_tests::host::TmpfsMount;

use super::*;

/// The state files in a directory.
fn state_files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with(".log-healthcheck")
        })
        .collect()
}

/// Writes until the disk is full.
fn fill(directory: &Path) {
    let mut file = File::create(directory.join("filler")).unwrap();
    while file.write_all(&[b'x'; 4096]).is_ok() {}
}

#[test]
fn full_disk_does_not_change_the_verdict() {
    let Some(disk) = hostkit_tests::or_skip("a full disk", TmpfsMount::mount(256 << 10)) else {
        return;
    };
    let program = hostkit_tests::bin("log-healthcheck");
    for remembered in [false, true] {
        let home = disk.path().join(remembered.to_string());
        let log = home.join(".logs/app/0/stderr");
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        let check = || -> CommandOutcome {
            let mut command = Command::new(&program);
            command
                .env_clear()
                .args(ARTICLE_FLAGS)
                .current_dir(&home)
                .output()
                .unwrap()
                .into()
        };
        fs::write(&log, timed(30)).unwrap();
        if remembered {
            check().exits(0);
            // A state that must be saved.
            let log = File::options().write(true).open(&log).unwrap();
            log.set_len(0).unwrap();
        }
        fill(&home);
        let outcome = check().exits(0);
        assert_result_contains(&outcome, "was written");
        assert!(perfdata(&outcome, "age") >= 30.0);
        // A state that fits the free space is saved.
        assert_eq!(
            outcome.stdout.contains("; state not saved ("),
            !remembered,
            "{}",
            outcome.stdout
        );
        if remembered {
            let state = fs::read_to_string(&state_files(&home)[0]).unwrap();
            assert!(state.contains(" 0 0 -"), "{state}");
        } else {
            assert_result_contains(&outcome, "No space left on device");
        }
        // The writer cannot write any more, so the log becomes stale.
        age(&log, 300);
        let outcome = check();
        if remembered {
            assert!(perfdata(&outcome.exits(0), "age") >= 30.0);
            age(&state_files(&home)[0], 0);
        } else {
            assert_result_contains(&outcome.exits(2), "stale: nothing was written");
        }
        fs::remove_file(home.join("filler")).unwrap();
        // No temporary file is left.
        assert_eq!(state_files(&home).len(), 1);
        assert_eq!(fs::read_dir(&home).unwrap().count(), 2);
    }
}

#[test]
fn failed_write_on_a_full_disk_does_not_count_as_written() {
    let Some(disk) = hostkit_tests::or_skip("a full disk", TmpfsMount::mount(256 << 10)) else {
        return;
    };
    let log = disk.path().join("app.log");
    // A whole block, so that another byte does not fit.
    fs::write(&log, b"{\"a\":1}\n".repeat(512)).unwrap();
    let sandbox = LogSandbox::new();
    let check = || {
        let args = ["--line-pattern={", "--freshness=100", "--file"].map(OsStr::new);
        sandbox.run(args.into_iter().chain([log.as_os_str()]))
    };
    age(&log, 60);
    assert!(perfdata(&check().exits(0), "age") >= 60.0);
    fill(&disk.path());
    let before = log.metadata().unwrap().modified().unwrap();
    let mut file = OpenOptions::new().append(true).open(&log).unwrap();
    let error = file.write_all(b"{\"b\":1}\n").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert_ne!(log.metadata().unwrap().modified().unwrap(), before);
    assert!(perfdata(&check().exits(0), "age") >= 60.0);
}

#[test]
fn check_without_saved_state_uses_the_age_of_the_log() {
    let sandbox = LogSandbox::new();
    sandbox.logs("noise\n");
    fs::create_dir(sandbox.path("state")).unwrap();
    let args = [
        "--app-directory=app",
        "--line-pattern={",
        "--freshness=0.7",
        "--state-file=none/state",
    ];
    assert_result_contains(
        &sandbox.run(args).exits(0),
        "state not saved (No such file or directory",
    );
    // The first check is not saved; the birth of the log replaces it.
    hostkit_tests::wait_until("the log is critical", || {
        sandbox.logs("noise\n");
        sandbox.run(args).code == 2
    });
}

#[test]
fn hostile_state_file_is_ignored() {
    let sandbox = LogSandbox::new();
    sandbox.logs("{\"a\":1}\n");
    sandbox.check().exits(0);
    let state = state_files(&sandbox.path("")).pop().unwrap();
    let good = fs::read_to_string(&state).unwrap();
    let file = good.lines().find(|line| line.starts_with("file ")).unwrap();
    for hostile in [
        String::new(),
        "\0".repeat(100_000),
        "x".repeat(10 << 20),
        good.replace(file, "file 1 1 1 18446744073709551615 1 1:1"),
        good.replace(file, &format!("{file}\n").repeat(1000)),
        good.replace("newest ", "newest 9"),
        good[..good.len() - 2].to_owned(),
    ] {
        fs::write(&state, &hostile).unwrap();
        let outcome = sandbox.check().exits(0);
        assert!(perfdata(&outcome, "age") < 100.0, "{}", outcome.stdout);
        let saved = fs::read_to_string(&state).unwrap();
        assert!(saved.starts_with("log-healthcheck 2\n") && saved.len() < 1000);
    }
    // A symlink is not followed.
    let target = sandbox.path("target");
    fs::write(&target, "precious").unwrap();
    fs::remove_file(&state).unwrap();
    std::os::unix::fs::symlink(&target, &state).unwrap();
    sandbox.check().exits(0);
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
}

#[test]
fn check_waits_briefly_for_a_concurrent_check() {
    let sandbox = LogSandbox::new();
    sandbox.logs("{\"a\":1}\n");
    sandbox.check().exits(0);
    let state = state_files(&sandbox.path("")).pop().unwrap();
    let held = File::open(&state).unwrap();
    held.lock().unwrap();
    // An unchanged state need not be saved.
    assert!(!sandbox.check().exits(0).stdout.contains("not saved"));
    sandbox.logs("{\"b\":1}\n");
    assert_result_contains(
        &sandbox.check().exits(0),
        "state not saved (locked by another check)",
    );
    drop(held);
    assert!(!sandbox.check().exits(0).stdout.contains("not saved"));
}

#[test]
fn concurrent_checks_agree() {
    let sandbox = LogSandbox::new();
    sandbox.logs("{\"a\":1}\n");
    sandbox.age(50);
    let program = hostkit_tests::bin("log-healthcheck");
    let start = || {
        let mut command = sandbox.command(&program);
        command
            .args(ARTICLE_FLAGS)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    for _ in 0..3 {
        let checks: Vec<_> = (0..8).map(|_| start()).collect();
        for check in checks {
            let outcome: CommandOutcome = check.wait_with_output().unwrap().into();
            assert!(perfdata(&outcome.exits(0), "age") >= 50.0);
        }
        sandbox.logs("noise\n");
    }
    assert_eq!(state_files(&sandbox.path("")).len(), 1);
}
