//! What the program receives and returns: arguments, environment, standard streams, signals, exit code.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use hostkit_tests::{find_program, or_skip};

use super::{CommandOutcome, HASH, PexrunHost, pex, pex_program, program};

/// Arguments that are easily damaged on the way to the program.
fn awkward_arguments() -> Vec<OsString> {
    let mut args: Vec<OsString> = [
        "--help",
        "--",
        "-x",
        "",
        "a b",
        "--list",
        "--offline",
        "-h",
        "--version",
        "--",
        "*",
        "$HOME",
        "--cache-dir=/x",
        "line\nbreak",
        "ünï",
    ]
    .map(OsString::from)
    .into();
    args.push(OsString::from_vec(b"\xff\xfe--\x80".to_vec()));
    args
}

fn joined(args: &[OsString]) -> Vec<u8> {
    let ended = args.iter().map(|arg| [arg.as_bytes(), b"\0"].concat());
    ended.collect::<Vec<_>>().concat()
}

#[test]
fn arguments_are_passed_unchanged() {
    let host = PexrunHost::new();
    host.publish(&pex("script", HASH), program(r#"printf '%s\0' "$@""#));
    // An ELF program: coreutils' printf, whose first argument is the format.
    let printf = std::fs::read("/usr/bin/printf").unwrap();
    host.publish(&pex("elf", HASH), printf);
    for rotation in 0..awkward_arguments().len() {
        let mut args = awkward_arguments();
        args.rotate_left(rotation);
        let mut command = host.command(["script", HASH]);
        let output = command.args(&args).output().unwrap();
        assert_eq!(output.stdout, joined(&args), "{args:?}");
    }
    let args = awkward_arguments();
    let mut command = host.command(["elf", HASH, r"%s\0"]);
    assert_eq!(command.args(&args).output().unwrap().stdout, joined(&args));
    // No arguments stay none, and a single `--` is one.
    let script = |args: &[&str]| host.command(args).output().unwrap().stdout;
    assert_eq!(script(&["script", HASH]), b"\0");
    assert_eq!(script(&["script", HASH, "--"]), b"--\0");
    assert_eq!(script(&["--", "script", HASH, "--"]), b"--\0");
}

#[test]
fn exit_code_is_that_of_program() {
    let host = PexrunHost::new();
    host.publish(&pex("job", HASH), program("exit $1"));
    for code in [0, 1, 3, 125, 126, 127, 255] {
        host.pexrun(["job", HASH, &code.to_string()])
            .exits(code)
            .prints("");
    }
}

#[test]
fn signal_reaches_program() {
    let host = PexrunHost::new();
    host.publish(
        &pex("job", HASH),
        program("kill -$1 $$; sleep 1; echo alive"),
    );
    // Among them SIGPIPE, which Rust programs ignore: the program must not inherit that.
    for signal in [1, 2, 9, 13, 15] {
        host.pexrun(["job", HASH, &signal.to_string()])
            .exits(-signal)
            .prints("");
    }
}

#[test]
fn program_replaces_pexrun_in_same_process() {
    let host = PexrunHost::new();
    host.publish(&pex("job", HASH), program("echo $$"));
    // When it is fetched first and when it is cached.
    for _ in 0..2 {
        let mut command = host.command(["job", HASH]);
        let child = command.stdout(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        let outcome = CommandOutcome::from(child.wait_with_output().unwrap());
        assert_eq!(outcome.exits(0).stdout, format!("{pid}\n"));
    }
}

#[test]
fn streams_and_working_directory_are_passed_on() {
    let host = PexrunHost::new();
    host.publish(
        &pex("job", HASH),
        program("cat; pwd; umask; echo error >&2"),
    );
    let mut command = host.command(["job", HASH]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"from stdin\n").unwrap();
    drop(stdin);
    let outcome = CommandOutcome::from(child.wait_with_output().unwrap()).exits(0);
    let umask = String::from_utf8(
        Command::new("sh")
            .args(["-c", "umask"])
            .output()
            .unwrap()
            .stdout,
    );
    let home = std::fs::canonicalize(host.home()).unwrap();
    let expected = format!("from stdin\n{}\n{}", home.display(), umask.unwrap());
    assert_eq!(
        (outcome.stdout, outcome.stderr),
        (expected, "error\n".into())
    );
}

#[test]
fn program_keeps_terminal() {
    let Some(script) = or_skip("script", find_program("script")) else {
        return;
    };
    let host = PexrunHost::new();
    host.publish(
        &pex("job", HASH),
        program("test -t 0 && test -t 1 && test -t 2 && echo a terminal"),
    );
    let line = format!("{} job {HASH}", hostkit_tests::bin("pexrun").display());
    let mut command = host.program(script);
    command
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env("SHELL", "/bin/sh");
    let outcome = CommandOutcome::from(command.output().unwrap()).exits(0);
    assert!(outcome.stdout.contains("a terminal"), "{outcome:?}");
}

/// The environment of a build, sorted; `set` is added to that of pexrun.
fn environment(command: &mut Command, set: &[(&OsStr, &OsStr)]) -> Vec<Vec<u8>> {
    let output = command.envs(set.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut all: Vec<Vec<u8>> = output
        .stdout
        .split(|b| *b == 0)
        .map(<[u8]>::to_vec)
        .collect();
    all.sort();
    all
}

fn set() -> Vec<(&'static OsStr, &'static OsStr)> {
    vec![
        (OsStr::new("EMPTY"), OsStr::new("")),
        (OsStr::new("LINES_OF_TEXT"), OsStr::new("one\ntwo=2")),
        (OsStr::new("BYTES"), OsStr::from_bytes(b"\xff\x80")),
        (OsStr::new("HOSTKIT_PEXRUN_LOGLEVEL"), OsStr::new("warning")),
        (OsStr::new("PYTHONPATH"), OsStr::new("/x")),
    ]
}

/// The value of a variable in an environment.
fn value(environment: &[Vec<u8>], variable: &str) -> Option<String> {
    let start = format!("{variable}=");
    let found = environment
        .iter()
        .find_map(|entry| entry.strip_prefix(start.as_bytes()))?;
    Some(String::from_utf8_lossy(found).into_owned())
}

#[test]
fn environment_is_passed_unchanged() {
    let host = PexrunHost::new();
    let build = host.publish(&pex("job", HASH), program("env -0"));
    super::open_to_all(&build);
    let direct = environment(&mut host.program(&build), &set());
    for _ in 0..2 {
        assert_eq!(
            environment(&mut host.command(["job", HASH]), &set()),
            direct
        );
    }
}

#[test]
fn pex_gets_only_pex_root_variable() {
    let host = PexrunHost::new();
    let build = host.publish(&pex("job", HASH), pex_program("env -0"));
    super::open_to_all(&build);
    let mut expected = environment(&mut host.program(&build), &set());
    let root = host.pex_root();
    expected.push(format!("PEX_ROOT={}", root.display()).into_bytes());
    expected.sort();
    for _ in 0..2 {
        assert_eq!(
            environment(&mut host.command(["job", HASH]), &set()),
            expected
        );
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&root.metadata().unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o700);
}

#[test]
fn pex_root_that_is_set_stays_and_empty_one_is_unset() {
    let host = PexrunHost::new();
    host.publish(&pex("job", HASH), pex_program("env -0"));
    let with = |value: &'static str| (OsStr::new("PEX_ROOT"), OsStr::new(value));
    let ours = host.pex_root().display().to_string();
    for (given, expected) in [("/mine", "/mine"), ("", ours.as_str())] {
        let seen = environment(&mut host.command(["job", HASH]), &[with(given)]);
        assert_eq!(value(&seen, "PEX_ROOT").as_deref(), Some(expected));
    }
}

#[test]
fn lease_of_own_pex_root_is_taken_also_when_variable_is_set() {
    let host = PexrunHost::new();
    host.publish(
        &pex("job", HASH),
        pex_program("readlink /proc/$$/fd/*; true"),
    );
    let leases = |given: &Path| {
        let mut command = host.command(["job", HASH]);
        let outcome =
            CommandOutcome::from(command.env("PEX_ROOT", given).output().unwrap()).exits(0);
        outcome.stdout.matches("/.leases/").count()
    };
    assert_eq!(leases(&host.pex_root()), 1);
    assert_eq!(leases(Path::new("/mine")), 0);
}

#[test]
fn pex_root_is_not_set_when_disabled_in_configuration() {
    let host = PexrunHost::new();
    host.publish(&pex("job", HASH), pex_program("env -0"));
    host.configure(&format!(
        "repository: {}\npex-root: keep\n",
        host.repository()
    ));
    let seen = environment(&mut host.command(["job", HASH]), &[]);
    assert_eq!(value(&seen, "PEX_ROOT"), None);
}

#[test]
fn pex_root_writable_by_others_is_not_used() {
    let host = PexrunHost::new();
    host.publish(&pex("job", HASH), pex_program("echo root=$PEX_ROOT"));
    host.pexrun(["--fetch-only", "job", HASH]).exits(0);
    super::open_to_all(&host.pex_root());
    let outcome = host
        .pexrun(["job", HASH])
        .exits(0)
        .logs("other users can access");
    assert_eq!(outcome.stdout, "root=\n");
}

#[test]
fn signal_ignored_by_parent_stays_ignored_after_cold_run() {
    let host = PexrunHost::new();
    host.publish(&pex("job", HASH), program("grep SigIgn /proc/$$/status"));
    let line = "trap '' HUP; exec \"$@\"";
    for temper in ["cold", "warm"] {
        let run = host.command(["job", HASH]);
        let mut shell = std::process::Command::new("/bin/sh");
        shell
            .args(["-c", line, "sh"])
            .arg(run.get_program())
            .args(run.get_args())
            .env_clear();
        shell.envs(
            run.get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        let output = shell.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mask = text
            .split_whitespace()
            .last()
            .and_then(|mask| u64::from_str_radix(mask, 16).ok());
        assert!(
            mask.is_some_and(|mask| mask & 1 == 1),
            "{temper}: {text}{output:?}"
        );
    }
}
