//! Where logs are found, and how Aurora runs the check: by shells, in the executor's directory and environment.

use super::*;

/// The configuration of the article, `check_log_health.get_config(app_directory=processname, line_pattern='{',
/// freshness=100)`, as the command lines it stands for. `{{mesos.instance}}` is 3 and the process is `app`.
const CALLED: [&str; 5] = [
    "check_log_health --app_directory=app --line_pattern='{' --freshness=100",
    "check_log_health --app-directory app --line-pattern '{' --freshness 100",
    "log-healthcheck --app-directory app --line-pattern '{' --freshness 100",
    "log-healthcheck --app_directory app --line_pattern '{' --freshness 100 --console --loglevel=debug --logstash_format",
    "CB_AURORA_INSTANCE=3 log-healthcheck --app-directory app --line-pattern '{' --freshness 100 --spread 1m",
];

/// The directory of an executor, with the sandbox below it.
fn executor() -> LogSandbox {
    let sandbox = LogSandbox::new();
    sandbox.write("sandbox/.logs/app/0/stdout", "");
    sandbox.write("sandbox/.logs/app/0/stderr", "{\"a\":1}\n");
    sandbox
}

#[test]
fn command_lines_of_aurora_are_accepted() {
    let executor = executor();
    // It is installed under both names.
    let names = executor.path("bin");
    fs::create_dir(&names).unwrap();
    for name in ["log-healthcheck", "check_log_health"] {
        std::os::unix::fs::symlink(hostkit_tests::bin("log-healthcheck"), names.join(name))
            .unwrap();
    }
    for shell in ["/bin/sh", "/bin/bash"] {
        for (line, expected) in CALLED.iter().flat_map(|line| [(line, 0), (line, 2)]) {
            let log = executor.path("sandbox/.logs/app/0/stderr");
            age(&log, if expected == 0 { 1 } else { 500 });
            let state_files = fs::read_dir(executor.path("sandbox")).unwrap();
            for state in state_files
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.is_file())
            {
                fs::remove_file(state).unwrap();
            }
            age(&executor.path("sandbox/.logs/app/0/stdout"), 500);
            let mut command = executor.command(shell);
            command.args(["-c", line]);
            let path =
                std::env::join_paths([names.as_path(), Path::new("/usr/bin"), Path::new("/bin")]);
            command.env("PATH", path.unwrap());
            let outcome: CommandOutcome = command.output().unwrap().into();
            assert_eq!(
                outcome.code, expected,
                "{shell} {line}: {}{}",
                outcome.stdout, outcome.stderr
            );
        }
    }
}

#[test]
fn state_file_is_in_the_sandbox() {
    let executor = executor();
    executor.check().exits(0);
    let names = |directory: &str| -> Vec<String> {
        let entries = fs::read_dir(executor.path(directory)).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    assert!(
        names("sandbox")
            .iter()
            .any(|name| name.starts_with(".log-healthcheck-"))
    );
    assert_eq!(names("."), ["sandbox"]);
    let other = executor.path("state");
    executor
        .run(
            ARTICLE_FLAGS
                .map(OsStr::new)
                .iter()
                .chain([&OsStr::new("--state-file"), &other.as_os_str()]),
        )
        .exits(0);
    assert!(other.is_file());
}

#[test]
fn sandbox_is_found_through_mesos_variables() {
    let (executor, elsewhere) = (executor(), LogSandbox::new());
    for (name, value) in [
        ("MESOS_SANDBOX", executor.path("sandbox")),
        ("MESOS_DIRECTORY", executor.path("")),
    ] {
        let mut command = elsewhere.command(hostkit_tests::bin("log-healthcheck"));
        let outcome: CommandOutcome = command
            .args(ARTICLE_FLAGS)
            .env(name, value)
            .output()
            .unwrap()
            .into();
        outcome.exits(0);
    }
    elsewhere.check().exits(2);
    let path = executor.path("sandbox/.logs/app");
    let args = [
        OsStr::new("--app-directory"),
        path.as_os_str(),
        OsStr::new("--freshness=100"),
    ];
    elsewhere.run(args).exits(0);
}

#[test]
fn flags_are_read_from_the_environment() {
    let sandbox = LogSandbox::new();
    sandbox.logs("{\"a\":1}\n");
    let mut command = sandbox.command(hostkit_tests::bin("log-healthcheck"));
    command.env("HOSTKIT_LOG_HEALTHCHECK_APP_DIRECTORY", "app");
    command.env("HOSTKIT_LOG_HEALTHCHECK_LINE_PATTERN", "{");
    command.env("HOSTKIT_LOG_HEALTHCHECK_FRESHNESS", "30");
    let outcome: CommandOutcome = command.output().unwrap().into();
    assert_result_contains(&outcome.exits(0), ";;30;0");
}

#[test]
fn instances_get_different_shares_of_spread() {
    let sandbox = LogSandbox::new();
    sandbox.logs("{\"a\":1}\n");
    let limit = |instance: Option<&str>| {
        let mut command = sandbox.command(hostkit_tests::bin("log-healthcheck"));
        command.args(ARTICLE_FLAGS).arg("--spread=60");
        if let Some(instance) = instance {
            command.env("CB_AURORA_INSTANCE", instance);
        }
        let outcome: CommandOutcome = command.output().unwrap().into();
        let outcome = outcome.exits(0);
        let limit = outcome
            .stdout
            .split(";;")
            .nth(1)
            .unwrap()
            .split(';')
            .next()
            .unwrap();
        (limit.parse::<f64>().unwrap(), outcome.stderr)
    };
    let limits = ["0", "1", "2"].map(|instance| limit(Some(instance)).0);
    assert_eq!(limits[0], 100.0);
    assert!(
        limits.iter().all(|limit| (100.0..160.0).contains(limit)),
        "{limits:?}"
    );
    assert!((limits[1] - limits[2]).abs() > 5.0, "{limits:?}");
    assert_eq!(limit(Some("1")).0, limits[1], "the same every time");
    for instance in [None, Some("x")] {
        let (limit, log) = limit(instance);
        assert!(
            limit == 100.0 && log.contains("{{mesos.instance}}"),
            "{log}"
        );
    }
}

#[test]
fn newest_of_twelve_thousand_runs_decides() {
    let sandbox = LogSandbox::new();
    sandbox.write(".logs/app/12000/stderr", "{\"a\":1}\n");
    for run in 0..12_000 {
        fs::create_dir_all(sandbox.path(format!(".logs/app/{run}"))).unwrap();
    }
    assert_result_contains(&sandbox.check().exits(0), "was written");
    // After more runs than are searched the result is unknown, once.
    for run in 12_001..12_100 {
        fs::create_dir_all(sandbox.path(format!(".logs/app/{run}"))).unwrap();
    }
    age(&sandbox.path(".logs/app/12000/stderr"), 500);
    let mut state = fs::read_dir(sandbox.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let state = state.find(|path| path.is_file()).unwrap();
    let text = fs::read_to_string(&state).unwrap();
    let newest = text
        .lines()
        .find(|line| line.starts_with("newest "))
        .unwrap();
    fs::write(&state, text.replace(newest, "newest 0")).unwrap();
    sandbox.write(".logs/app/12099/stderr", "noise\n");
    assert_result_contains(&sandbox.check().exits(3), "UNKNOWN: toomany: ");
    assert_result_contains(&sandbox.check().exits(2), "CRITICAL: stale: ");
}
