//! Flags, environment and configuration files: their precedence, and the errors of an invalid one.

use hostkit_tests::origin::OriginServer;

use super::{ARCH, CommandOutcome, HASH, PexrunHost, pex, program};

#[test]
fn missing_configuration_is_error_that_names_file_and_content() {
    let host = PexrunHost::bare();
    for args in [["job", HASH], ["--list", "job"]] {
        host.pexrun(args)
            .exits(125)
            .logs("missing repository")
            .logs("repository: s3://bucket/prefix")
            .logs("/etc/hostkit/pexrun.yaml")
            .logs("~/.config/hostkit/pexrun.yaml");
    }
}

#[test]
fn flag_beats_environment_and_environment_beats_file() {
    let host = PexrunHost::bare();
    let place = |name: &str| {
        let directory = host.path(name);
        std::fs::create_dir(&directory).unwrap();
        let build = program(&format!("echo {name}"));
        std::fs::write(directory.join(pex("job", "static-v1")), build).unwrap();
        format!("file://{}", directory.display())
    };
    let (file, env, flag) = (place("file"), place("env"), place("flag"));
    host.repositories(&[&file]);
    let run = |args: &[&str], variable: Option<&str>| {
        let mut command = host.command(args);
        if let Some(value) = variable {
            command.env("HOSTKIT_PEXRUN_REPOSITORY", value);
        }
        let outcome = CommandOutcome::from(command.args(["job", "static-v1"]).output().unwrap());
        outcome.exits(0).stdout
    };
    assert_eq!(run(&[], None), "file\n");
    assert_eq!(
        run(&[], Some("")),
        "file\n",
        "an empty variable counts as unset"
    );
    assert_eq!(run(&[], Some(&env)), "env\n");
    assert_eq!(run(&["--repository", &flag], Some(&env)), "flag\n");
    // And a file named by --config replaces the others.
    let named = host.path("named.yaml");
    let text = format!(
        "repository: {flag}\narch: {ARCH}\ncache-dir: {}\n",
        host.cache().display()
    );
    std::fs::write(&named, text).unwrap();
    assert_eq!(run(&["--config", named.to_str().unwrap()], None), "flag\n");
}

#[test]
fn cache_directory_follows_same_precedence() {
    let host = PexrunHost::new();
    host.publish(&pex("job", HASH), program("echo ran"));
    let which = |args: &[&str], variable: Option<&str>| {
        let mut command = host.command(args);
        if let Some(value) = variable {
            command.env("HOSTKIT_PEXRUN_CACHE_DIR", host.path(value));
        }
        let outcome =
            CommandOutcome::from(command.args(["--which", "job", HASH]).output().unwrap());
        outcome.exits(0).stdout
    };
    let below = |path: &str| host.path(path).display().to_string();
    assert!(which(&[], None).starts_with(&below("cache/")));
    assert!(which(&[], Some("env")).starts_with(&below("env/")));
    let flag = below("flag");
    assert!(which(&["--cache-dir", &flag], Some("env")).starts_with(&below("flag/")));
    // A relative path becomes absolute, because the program may change its directory.
    assert!(which(&["--cache-dir", "here"], None).starts_with(&below("home/here/")));
}

#[test]
fn invalid_configuration_names_file_line_and_key() {
    let host = PexrunHost::bare();
    let file = host.home().join(".config/hostkit/pexrun.yaml");
    let file = file.display();
    host.configure("repositry: file:///srv\n");
    host.pexrun(["job", HASH])
        .exits(125)
        .logs(&format!("{file}:3:1: unknown key `repositry`"))
        .logs("did you mean `repository`?");
    host.configure("pex-root: sometimes\n");
    host.pexrun(["job", HASH])
        .exits(125)
        .logs(&format!("{file}:3:"))
        .logs("sometimes");
    host.configure("repository: file:///srv\npex-name: '{job}.pex'\n");
    host.pexrun(["job", HASH])
        .exits(125)
        .logs("invalid name of builds `{job}.pex`");
    host.pexrun(["--config", "/nowhere/pexrun.yaml", "job", HASH])
        .exits(125)
        .logs("/nowhere/pexrun.yaml");
}

#[test]
fn invalid_repository_is_rejected() {
    let host = PexrunHost::bare();
    for (repository, says) in [
        ("/srv/pex", "a path is not a source"),
        ("ftp://host/pex", "unknown scheme"),
        ("http://me:hunter2@host/pex", ".netrc"),
    ] {
        host.repositories(&[repository]);
        let outcome = host.pexrun(["job", HASH]).exits(125).logs(says);
        assert!(!outcome.stderr.contains("hunter2"), "{}", outcome.stderr);
    }
}

#[test]
fn names_and_arch_come_from_configuration() {
    let origin = OriginServer::start();
    let host = PexrunHost::bare();
    let url = origin.url("");
    host.configure(&format!(
        "repository: {url}\npex-name: 'b_{{job}}_{{version}}.{{arch}}'\njar-name: '{{job}}_{{version}}.jar'\n"
    ));
    origin.put(&format!("/b_job_{HASH}.{ARCH}"), program("echo ran"));
    origin.put(&format!("/b_job_{HASH}.elsewhere"), program("echo there"));
    host.pexrun(["job", HASH]).exits(0).prints("ran\n");
    host.pexrun(["--arch=elsewhere", "job", HASH])
        .exits(0)
        .prints("there\n");
}

#[test]
fn arch_defaults_to_that_of_host() {
    let host = PexrunHost::bare();
    let outcome = host
        .pexrun(["--dry-run", "--repository=file:///srv", "job", HASH])
        .exits(0);
    let machine = std::env::consts::ARCH;
    let first = outcome.stdout.lines().next().unwrap();
    assert!(first.ends_with(&format!("_{machine}.pex")), "{first}");
}

#[test]
fn invalid_job_name_is_rejected_before_any_request() {
    let host = PexrunHost::new();
    for (job, version) in [
        ("../job", HASH),
        ("job", "a/b"),
        ("job", ".."),
        ("", HASH),
        ("job", ""),
        ("job", "v?x"),
        ("job", "%2e"),
        ("a b", HASH),
        ("job", "a\nb"),
    ] {
        host.pexrun([job, version])
            .exits(125)
            .logs("invalid job or version");
    }
}

#[test]
fn invalid_argument_combinations_are_usage_errors() {
    let host = PexrunHost::bare();
    for (args, says) in [
        (vec![], "missing job and version"),
        (vec!["job"], "missing version of job"),
        (vec!["--list"], "--list needs a job"),
        (vec!["--cached", "job", HASH], "--cached needs --list"),
        (
            vec!["--list", "job", "x", "y"],
            "--list takes a job and no version",
        ),
        (
            vec!["--list", "--which", "job"],
            "--list and --which exclude",
        ),
        (
            vec!["--list", "--dry-run", "job"],
            "--list and --dry-run exclude",
        ),
        (
            vec!["--check", "job"],
            "--check validates the configuration",
        ),
        (
            vec!["--check", "--list"],
            "--check validates the configuration",
        ),
        (
            vec!["--check", "--json"],
            "--check validates the configuration",
        ),
        (vec!["--limit=3", "job", HASH], "--limit needs --list"),
        (
            vec!["--json", "job", HASH],
            "--json needs --list or --which",
        ),
        (vec!["--json", "--warm", "job", HASH], "--json needs"),
        (vec!["--lst", "job"], "--list"),
        (vec!["--offline", "--revalidate", "job", HASH], "exclude"),
    ] {
        host.pexrun(args).exits(125).logs(says);
    }
    let version = host.pexrun(["--version"]).exits(0).stdout;
    assert!(version.starts_with("pexrun 0."), "{version}");
    for flag in ["--help", "-h"] {
        let help = host.pexrun([flag]).exits(0).stdout;
        for word in ["JOB", "HASH_OR_VERSION", "--offline", "125"] {
            assert!(help.contains(word), "{word} in {help}");
        }
    }
}
