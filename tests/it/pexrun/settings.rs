//! The sources of the S3 settings, and `--check`.

use hostkit_tests::s3::S3Server;

use super::{ARCH, CommandOutcome, HASH, PexrunHost, pex, program};

/// Runs it with the credentials of the server, but without its endpoint in the environment.
fn run(host: &PexrunHost, s3: &S3Server, env: &[(&str, &str)], args: &[&str]) -> CommandOutcome {
    let mut command = host.command(args);
    command.envs(s3.env()).env_remove("AWS_ENDPOINT_URL");
    command.envs(env.iter().copied()).output().unwrap().into()
}

#[test]
fn endpoint_comes_from_the_first_layer_that_names_it() {
    let (host, s3) = (PexrunHost::bare(), S3Server::start());
    s3.create_bucket("builds");
    let build = program("echo ran");
    let to = format!("s3://builds/pex/{}", pex("job", HASH));
    host.upload(&s3, "b.pex", &build, &to);
    let file = |name: &str, endpoint: &str| {
        let path = host.path(name);
        std::fs::write(
            &path,
            format!("endpoint-url: {endpoint}\nregion: r-{name}\n"),
        )
        .unwrap();
        path.display().to_string()
    };
    let right = s3.endpoint();
    let dead = format!("http://127.0.0.1:{}", hostkit_tests::free_port());
    let (good, bad) = (file("good", &right), file("bad", &dead));
    let own = |endpoint: &str| {
        host.configure(&format!("repository: s3://builds/pex\n{endpoint}\n"));
    };
    let own_right = format!("endpoint-url: {right}");
    let own_file = host.home().join(".config/hostkit/pexrun.yaml");
    let own_file = own_file.display().to_string();
    // pexrun.yaml, variables, flags, and the winning layer.
    for (at, (yaml, env, flags, layer)) in [
        (
            &own_right,
            vec![("HOSTKIT_S3CACHE_CONFIG", bad.as_str())],
            vec![],
            own_file.as_str(),
        ),
        (
            &String::new(),
            vec![("HOSTKIT_S3CACHE_CONFIG", good.as_str())],
            vec![],
            good.as_str(),
        ),
        (
            &String::new(),
            vec![("HOSTKIT_S3CACHE_CONFIG", bad.as_str())],
            vec!["--s3cache-config", &good],
            good.as_str(),
        ),
        (
            &format!("endpoint-url: {dead}"),
            vec![("HOSTKIT_PEXRUN_ENDPOINT_URL", right.as_str())],
            vec![],
            "HOSTKIT_PEXRUN_ENDPOINT_URL",
        ),
        (
            &String::new(),
            vec![("AWS_ENDPOINT_URL", right.as_str())],
            vec![],
            "settings of the AWS tools",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        own(yaml);
        let cache = host.path(&format!("cache-{at}"));
        let cache = format!("--cache-dir={}", cache.display());
        let args = [&[cache.as_str()], flags.as_slice()].concat();
        let shown = run(&host, &s3, &env, &[&args, ["--check"].as_slice()].concat()).exits(0);
        let row = format!("endpoint-url     {right} ({layer}");
        assert!(shown.stdout.contains(&row), "{row} in {}", shown.stdout);
        run(
            &host,
            &s3,
            &env,
            &[&args, ["job", HASH].as_slice()].concat(),
        )
        .exits(0)
        .prints("ran\n");
    }
    own(&format!("endpoint-url: {dead}"));
    run(&host, &s3, &[], &["job", HASH])
        .exits(125)
        .logs(&format!("cannot reach S3 at {dead}"));
}

#[test]
fn check_prints_effective_settings_and_writes_nothing() {
    let host = PexrunHost::new();
    let file = host.home().join(".config/hostkit/pexrun.yaml");
    let file = file.display();
    let shown = host.pexrun(["--check", "--max-size=1G"]).exits(0).stdout;
    for row in [
        format!("repository       {} ({file}:", host.repository()),
        format!("arch             {ARCH} ({file}:"),
        "pex-name         {job}-{version}-{arch}.pex (default)\n".to_owned(),
        "java             java (default)\n".to_owned(),
        "pex-root         cache (default)\n".to_owned(),
        format!("cache-dir        {} ({file}:", host.cache().display()),
        "max-size         1.0 GiB (--max-size)\n".to_owned(),
        "keep-free        512.0 MiB (default)\n".to_owned(),
    ] {
        assert!(shown.contains(&row), "{row} in {shown}");
    }
    let path = host.path("pr9.yaml");
    let path = path.to_str().unwrap();
    std::fs::write(path, "repository: file:///srv\nregion: r\n").unwrap();
    let shown = host
        .pexrun(["--check", "--config", path, "--arch=x"])
        .exits(0)
        .stdout;
    for row in [
        format!("repository       file:///srv ({path}:1)\n"),
        format!("region           r ({path}:2)\n"),
        "arch             x (--arch)\n".to_owned(),
    ] {
        assert!(shown.contains(&row), "{row} in {shown}");
    }
    std::fs::write(path, "repository: file:///srv\nprofile: none\n").unwrap();
    host.pexrun(["--check", "--config", path])
        .exits(78)
        .logs("pr9.yaml:2: `profile`: there is no AWS profile");
    assert!(!host.cache().exists());
    for (line, says) in [
        (
            "repository: /srv/pex",
            "3:13: `repository`: invalid value `/srv/pex`: /srv/pex/JOB: a path is not a source",
        ),
        (
            "repository: [file:///a, 'ftp://b']",
            "3:25: `repository`: invalid value `ftp://b`: ftp://b/JOB: unknown scheme",
        ),
        (
            "pex-name: '{job}.pex'",
            "3:11: `pex-name`: invalid name of builds `{job}.pex`",
        ),
        (
            "endpoint-url: minio:9000",
            "3:15: `endpoint-url`: invalid value `minio:9000`: \"minio:9000\" has no scheme",
        ),
        (
            "ca-file: /x",
            "3:1: unknown key `ca-file`: valid keys: repository",
        ),
        ("region: x", "missing repository"),
        ("repository: ''", "3:13: `repository`: invalid empty value"),
        (
            "repository: [file:///a, '']",
            "3:25: `repository`: invalid empty value",
        ),
        ("region: ''", "3:9: `region`: invalid empty value"),
        ("profile: ' '", "3:10: `profile`: invalid empty value"),
        (
            "endpoint-url: \"\"",
            "3:15: `endpoint-url`: invalid empty value",
        ),
        ("java: ''", "3:7: `java`: invalid empty value"),
        (
            "java-flags: [-Xmx1g, '']",
            "3:22: `java-flags`: invalid empty value",
        ),
        (
            "pex-name: ''",
            "3:11: `pex-name`: invalid name of builds ``",
        ),
        (
            "jar-name: ''",
            "3:11: `jar-name`: invalid name of builds ``",
        ),
        ("pex-root: ''", "3:11: `pex-root`"),
    ] {
        host.configure(&format!("{line}\n"));
        let outcome = host.pexrun(["--check"]).exits(78).logs(says);
        let place = says.starts_with('3');
        assert!(
            !place || outcome.stderr.contains(&format!("{file}:{says}")),
            "{outcome:?}"
        );
        // A program would have run: then the exit codes of env(1) apply.
        host.pexrun(["job", HASH]).exits(125).logs(says);
    }
    assert!(!host.cache().exists());
    for key in ["arch", "cache-dir"] {
        let path = host.path("empty.yaml");
        std::fs::write(&path, format!("repository: file:///srv\n{key}: ''\n")).unwrap();
        host.pexrun(["--check", "--config", path.to_str().unwrap()])
            .exits(78)
            .logs(&format!("`{key}`: invalid empty value"));
    }
}

#[test]
fn check_verifies_requirements_of_repositories() {
    let host = PexrunHost::bare();
    // Repositories, variables, and the expected error; without one the check passes.
    for (repository, variables, says) in [
        (
            "s3://builds/pex",
            &[("AWS_CA_BUNDLE", "/nope.pem")][..],
            "AWS_CA_BUNDLE: cannot use /nope.pem",
        ),
        (
            "https://repo.example.org/pex",
            &[("AWS_CA_BUNDLE", "/nope.pem")],
            "",
        ),
        (
            "https://repo.example.org/pex",
            &[("ALL_PROXY", "socks5://p")],
            "ALL_PROXY is not an http",
        ),
        (
            "https://repo.example.org/pex",
            &[("ALL_PROXY", "socks5://p"), ("NO_PROXY", ".example.org")],
            "",
        ),
        (
            "s3://builds/pex",
            &[("HTTPS_PROXY", "socks5://p")],
            "HTTPS_PROXY",
        ),
        (
            "https://repo.example.org/pex",
            &[("NETRC", "/dev/zero")],
            "NETRC: cannot read /dev/zero",
        ),
        ("s3://builds/pex", &[("NETRC", "/dev/zero")], ""),
        ("file:///srv/pex", &[("ALL_PROXY", "socks5://p")], ""),
        ("file:///srv/pex", &[("NETRC", "/dev/zero")], ""),
    ] {
        host.repositories(&[repository]);
        let mut command = host.command(["--check"]);
        command.envs(variables.iter().copied());
        let code = if says.is_empty() { 0 } else { 78 };
        CommandOutcome::from(command.output().unwrap())
            .exits(code)
            .logs(says);
    }
}
