//! The state file: full disks, other checks, hostile contents. None of that changes a verdict.

use hostkit_tests::host::TmpfsMount;

use super::*;

/// The state files in a directory.
fn states(directory: &Path) -> Vec<PathBuf> {
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

/// Writes until there is no room left.
fn fill(directory: &Path) {
    let mut file = File::create(directory.join("filler")).unwrap();
    while file.write_all(&[b'x'; 4096]).is_ok() {}
}

#[test]
fn a_full_disk_changes_no_verdict() {
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
                .args(SEEDS)
                .current_dir(&home)
                .output()
                .unwrap()
                .into()
        };
        fs::write(&log, timed(30)).unwrap();
        if remembered {
            check().exits(0);
            // So that there is something to save.
            let log = File::options().write(true).open(&log).unwrap();
            log.set_len(0).unwrap();
        }
        fill(&home);
        let outcome = check().exits(0);
        told(&outcome, "was written");
        assert!(perfdata(&outcome, "age") >= 30.0);
        // What has room on the disk keeps it.
        assert_eq!(
            outcome.stdout.contains("; state not saved ("),
            !remembered,
            "{}",
            outcome.stdout
        );
        if remembered {
            let state = fs::read_to_string(&states(&home)[0]).unwrap();
            assert!(state.contains(" 0 0 -"), "{state}");
        } else {
            told(&outcome, "No space left on device");
        }
        // Nothing can be written any more: so nothing is.
        age(&log, 300);
        let outcome = check();
        if remembered {
            assert!(perfdata(&outcome.exits(0), "age") >= 30.0);
            age(&states(&home)[0], 0);
        } else {
            told(&outcome.exits(2), "stale: nothing was written");
        }
        fs::remove_file(home.join("filler")).unwrap();
        // No temporary file stays.
        assert_eq!(states(&home).len(), 1);
        assert_eq!(fs::read_dir(&home).unwrap().count(), 2);
    }
}

#[test]
fn a_write_that_fails_on_a_full_disk_is_not_a_write() {
    let Some(disk) = hostkit_tests::or_skip("a full disk", TmpfsMount::mount(256 << 10)) else {
        return;
    };
    let log = disk.path().join("app.log");
    // A whole block, so that there is no room for another byte.
    fs::write(&log, b"{\"a\":1}\n".repeat(512)).unwrap();
    let sandbox = Sandbox::new();
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
fn without_a_state_a_log_is_as_old_as_its_file() {
    let sandbox = Sandbox::new();
    sandbox.logs("noise\n");
    fs::create_dir(sandbox.path("state")).unwrap();
    let args = [
        "--app-directory=app",
        "--line-pattern={",
        "--freshness=0.7",
        "--state-file=none/state",
    ];
    told(
        &sandbox.run(args).exits(0),
        "state not saved (No such file or directory",
    );
    // The first check is not remembered, but when the log was made is known.
    hostkit_tests::wait_until("it gives up hope", || {
        sandbox.logs("noise\n");
        sandbox.run(args).code == 2
    });
}

#[test]
fn hostile_states_are_none() {
    let sandbox = Sandbox::new();
    sandbox.logs("{\"a\":1}\n");
    sandbox.check().exits(0);
    let state = states(&sandbox.path("")).pop().unwrap();
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
    // A symlink is not written through.
    let target = sandbox.path("target");
    fs::write(&target, "precious").unwrap();
    fs::remove_file(&state).unwrap();
    std::os::unix::fs::symlink(&target, &state).unwrap();
    sandbox.check().exits(0);
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
}

#[test]
fn another_check_is_waited_for_but_not_for_long() {
    let sandbox = Sandbox::new();
    sandbox.logs("{\"a\":1}\n");
    sandbox.check().exits(0);
    let state = states(&sandbox.path("")).pop().unwrap();
    let held = File::open(&state).unwrap();
    held.lock().unwrap();
    // What has not changed need not be saved.
    assert!(!sandbox.check().exits(0).stdout.contains("not saved"));
    sandbox.logs("{\"b\":1}\n");
    told(
        &sandbox.check().exits(0),
        "state not saved (another check holds it)",
    );
    drop(held);
    assert!(!sandbox.check().exits(0).stdout.contains("not saved"));
}

#[test]
fn checks_at_once_agree() {
    let sandbox = Sandbox::new();
    sandbox.logs("{\"a\":1}\n");
    sandbox.age(50);
    let program = hostkit_tests::bin("log-healthcheck");
    let start = || {
        let mut command = sandbox.command(&program);
        command.args(SEEDS).stdout(Stdio::piped()).spawn().unwrap()
    };
    for _ in 0..3 {
        let checks: Vec<_> = (0..8).map(|_| start()).collect();
        for check in checks {
            let outcome: CommandOutcome = check.wait_with_output().unwrap().into();
            assert!(perfdata(&outcome.exits(0), "age") >= 50.0);
        }
        sandbox.logs("noise\n");
    }
    assert_eq!(states(&sandbox.path("")).len(), 1);
}
