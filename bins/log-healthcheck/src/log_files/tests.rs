//! Which paths are logs, in all kinds of sandboxes.

use std::fs::File;

use super::*;

fn below(files: &[&str]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for file in files {
        let path = directory.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    directory
}

fn locations(here: &Path) -> SandboxLocations {
    SandboxLocations {
        here: here.to_owned(),
        mesos_sandbox: None,
        mesos_directory: None,
    }
}

fn app(name: impl Into<PathBuf>) -> LogSelector {
    LogSelector {
        app_directory: Some(name.into()),
        files: Vec::new(),
        birth: WallTime::birth,
    }
}

fn run(number: Option<u64>) -> Option<RunDirectory> {
    let birth = WallTime(0);
    number.map(|number| RunDirectory { number, birth })
}

#[test]
fn highest_run_is_found_by_number() {
    let home = below(&[
        ".logs/app/9/stderr",
        ".logs/app/10/stderr",
        ".logs/app/x/stderr",
        ".logs/app/11",
    ]);
    let find = |since| {
        app("app")
            .find_logs(&locations(home.path()), run(since))
            .unwrap()
    };
    let logs = find(None);
    let path = home.path().join(".logs/app/10");
    assert_eq!(logs.paths, [path.join("stdout"), path.join("stderr")]);
    assert_eq!((logs.run.unwrap().number, logs.earlier_runs), (10, 2..2));
    let logs = find(Some(9));
    assert_eq!((logs.paths.len(), logs.earlier_runs), (4, 2..4));
    let logs = find(Some(99));
    assert_eq!(logs.paths.len(), 2, "another sandbox's state");
}

#[test]
fn birth_of_a_run_is_its_lowest_change_time_if_unrecorded() {
    let home = below(&[".logs/app/3/stderr"]);
    let unknown = LogSelector {
        birth: |_| None,
        ..app("app")
    };
    let find = |last| {
        let logs = unknown.find_logs(&locations(home.path()), last).unwrap();
        logs.run.unwrap().birth
    };
    let changed = WallTime::changed(&home.path().join(".logs/app/3").metadata().unwrap());
    assert_eq!(find(None), changed);
    let last = |number, millis| {
        let birth = WallTime(changed.0 + millis);
        Some(RunDirectory { number, birth })
    };
    assert_eq!(find(last(3, -5)), WallTime(changed.0 - 5));
    assert_eq!(find(last(3, 5)), changed);
    assert_eq!(find(last(2, -5)), changed, "that of another run");
    let known = app("app")
        .find_logs(&locations(home.path()), last(3, -5))
        .unwrap();
    assert!(known.run.unwrap().birth > WallTime(changed.0 - 5));
}

#[test]
fn sandbox_candidates_are_searched_in_order() {
    let home = below(&[
        "a/.logs/app/0/stdout",
        "b/sandbox/.logs/app/0/stdout",
        "c/.logs/app/0/stdout",
        "d/sandbox/.logs/app/0/stdout",
        "e/.logs/other/0/stdout",
        "f/x",
    ]);
    let find = |here: &str, mesos: bool| {
        let variable = |name: &str| mesos.then(|| home.path().join(name));
        let locations = SandboxLocations {
            here: home.path().join(here),
            mesos_sandbox: variable("c"),
            mesos_directory: variable("d"),
        };
        let path = app("app").sandbox(&locations);
        path.strip_prefix(home.path())
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(find("a", true), "a");
    assert_eq!(find("b", true), "b/sandbox");
    assert_eq!(
        find("e", true),
        "c",
        "where the process is goes before where any is"
    );
    assert_eq!(find("e", false), "e");
    assert_eq!(find("f", true), "c");
    assert_eq!(find("f", false), "f");
    let absolute = app(home.path().join("d/sandbox/.logs/app"));
    assert_eq!(
        absolute.sandbox(&locations(home.path())),
        home.path().join("d/sandbox")
    );
}

#[test]
fn directory_without_runs_is_a_run() {
    let home = below(&["run/stdout"]);
    let logs = app(home.path().join("run"))
        .find_logs(&locations(home.path()), None)
        .unwrap();
    assert_eq!(logs.paths[0], home.path().join("run/stdout"));
}

#[test]
fn wildcards_and_names_that_contain_them_are_expanded() {
    let home = below(&["a.log", "b.log", "c[1].log", "d.txt"]);
    let find = |name: &str| expand_file(&home.path().join(name)).len();
    assert_eq!(find("*.log"), 3);
    assert_eq!(find("c[1].log"), 1);
    assert_eq!(find("none-*.log"), 0);
    assert_eq!(
        find("none.log"),
        1,
        "a name is one whether it is there or not"
    );
}

#[test]
fn rotated_files_are_found_and_others_skipped() {
    let home = below(&[
        "x.log",
        "x.log.1",
        "x.log.2.gz",
        "x.log-20261121",
        "x.log.bak",
        "x.log1",
        "y.log.1",
    ]);
    let mut found = Vec::new();
    for_each_rotated(
        &[home.path().join("y"), home.path().join("x.log")],
        |log, path| {
            found.push((log, path.to_owned()));
        },
    );
    let mut paths: Vec<&PathBuf> = found.iter().map(|(_, path)| path).collect();
    paths.sort();
    let expected = ["x.log-20261121", "x.log.1"].map(|name| home.path().join(name));
    assert_eq!(paths, expected.iter().collect::<Vec<_>>());
    assert!(found.iter().all(|(log, _)| *log == 1));
}

#[test]
fn newest_run_is_found_among_any_number_of_names() {
    let memory = Path::new("/dev/shm");
    let home = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    let home = home.unwrap();
    let at = |name: &str| home.path().join(name);
    // tmpfs lists the file created first last.
    fs::create_dir_all(at("runs/12000")).unwrap();
    fs::create_dir_all(at("hosts/5")).unwrap();
    File::create(at("runs/last.log")).unwrap();
    File::create(at("runs/last.log.1")).unwrap();
    File::create(at("hosts/5/x.log")).unwrap();
    for number in 0..12_000 {
        fs::create_dir_all(at("runs").join(number.to_string())).unwrap();
    }
    for number in 0..=MAX_FILES {
        fs::create_dir_all(at("hosts").join(number.to_string())).unwrap();
    }
    let locations = locations(home.path());
    let find = |since| app(at("runs")).find_logs(&locations, run(since)).unwrap();
    assert_eq!(find(None).run.unwrap().number, 12_000);
    assert_eq!(find(None).paths.len(), 2);
    assert_eq!(find(Some(11_998)).paths.len(), 6);
    assert_eq!(find(Some(11_998)).omitted, None);
    assert_eq!(find(Some(1)).paths.len(), 2 * MAX_RUNS);
    assert!(find(Some(1)).omitted.unwrap().contains("more than 64 runs"));
    assert_eq!(expand_file(&at("runs/*.log")), [at("runs/last.log")]);
    assert_eq!(expand_file(&at("hosts/*/x.log")), [at("hosts/5/x.log")]);
    let mut rotated = Vec::new();
    for_each_rotated(&[at("runs/last.log")], |_, path| {
        rotated.push(path.to_owned())
    });
    assert_eq!(rotated, [at("runs/last.log.1")]);
}

#[test]
fn too_many_files_are_an_error() {
    let names: Vec<String> = (0..=MAX_FILES)
        .map(|number| format!("{number}.log"))
        .collect();
    let home = below(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let selector = LogSelector {
        app_directory: None,
        files: vec![home.path().join("*.log")],
        birth: WallTime::birth,
    };
    let failure = selector
        .find_logs(&locations(home.path()), None)
        .unwrap_err();
    assert_eq!(failure.exit().code(), 3);
}
