//! What the command lines of all tools have in common: environment variables of flags, layers, headings.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::Command as Process;

use assert_fs::TempDir;
use assert_fs::prelude::*;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use hostkit::cli::{self, Tool};
use hostkit_tests::host::run_as;
use hostkit_tests::origin::OriginServer;
use hostkit_tests::{CommandOutcome, bin, or_skip};

/// Set for the child process of [`parses_line_in_child_process`]: the tool, and its command line.
const LINE: &str = "HOSTKIT_TEST_LINE";

/// The given flags with their source.
type NamedFlags = Vec<(String, ValueSource)>;

/// One tool: its command, its exclusive flags, and its parser, which returns the flags given by a line and the
/// environment.
struct ToolCli {
    name: &'static str,
    command: Command,
    exclusive: &'static [&'static [&'static str]],
    parse: fn(&[&str]) -> Result<NamedFlags, clap::Error>,
    /// The shortest valid line.
    line: &'static str,
}

fn of<T: Tool>(line: &'static str) -> ToolCli {
    ToolCli {
        name: T::NAME,
        command: cli::command::<T>(),
        exclusive: T::EXCLUSIVE,
        parse: |line| cli::parse::<T, _>(line).map(|(_, line)| named(line.matches())),
        line,
    }
}

fn tools() -> Vec<ToolCli> {
    vec![
        of::<s3cache::Args>("b/k"),
        of::<pexrun::Args>("job 60a43ef"),
        of::<authproxy::Args>(""),
        of::<synapse::Args>(""),
        of::<proxy_healthcheck::Args>("--port=1 --test-port=2"),
        of::<log_healthcheck::Args>("--app-directory=a --freshness=1"),
    ]
}

/// The given flags, of the verb if there is one.
fn named(matches: &ArgMatches) -> NamedFlags {
    if let Some((_, matches)) = matches.subcommand() {
        return named(matches);
    }
    let ids = matches.ids().map(|id| id.as_str());
    ids.filter_map(|id| {
        let source = matches.value_source(id)?;
        let is_off = matches!(matches.try_get_one::<bool>(id), Ok(Some(false)));
        (source != ValueSource::DefaultValue && !is_off).then(|| (id.replace('_', "-"), source))
    })
    .collect()
}

/// Every command of a tool, with the verbs that lead to it.
fn commands(command: &Command) -> Vec<(Vec<String>, Command)> {
    let mut all = vec![(Vec::new(), command.clone())];
    for verb in command.get_subcommands() {
        for (verbs, command) in commands(verb) {
            all.push(([vec![verb.get_name().to_owned()], verbs].concat(), command));
        }
    }
    all
}

fn is_switch(arg: &Arg) -> bool {
    arg.get_value_parser().type_id() == std::any::TypeId::of::<bool>()
}

/// The child process of the tests below, which need an environment of their own. It is a test because that is how this
/// program can be started again.
#[test]
fn parses_line_in_child_process() {
    let Ok(line) = std::env::var(LINE) else {
        return;
    };
    let words: Vec<&str> = line.split_whitespace().collect();
    let tool = tools().into_iter().find(|tool| tool.name == words[0]);
    match (tool.unwrap().parse)(&words) {
        Ok(named) => println!("parsed: {named:?}"),
        Err(error) => println!("parsed: {}", error.to_string().replace('\n', " ")),
    }
}

/// The result of that child process for a line of a tool under these variables.
fn parse(tool: &ToolCli, line: &str, variables: &[(String, String)]) -> String {
    let line = format!("{} {line} {}", tool.name, tool.line);
    let output = Process::new(std::env::current_exe().unwrap())
        .args(["--exact", "cli::parses_line_in_child_process"])
        .arg("--nocapture")
        .env(LINE, line)
        .envs(variables.iter().cloned())
        .output()
        .unwrap();
    let message = CommandOutcome::from(output).exits(0).stdout;
    let mut lines = message.lines();
    let parsed = lines.find_map(|line| line.strip_prefix("parsed: "));
    parsed.unwrap_or_else(|| panic!("{message}")).to_owned()
}

#[test]
fn variable_belongs_to_one_flag_of_one_verb_and_one_shot_switches_have_none() {
    let one_shot =
        "check force replace json lenient dry-run list cached which warm fetch-only follow once";
    for tool in tools() {
        let mut owners = BTreeMap::new();
        for (verbs, command) in commands(&tool.command) {
            for arg in command.get_arguments() {
                let (Some(flag), Some(variable)) = (arg.get_long(), arg.get_env()) else {
                    continue;
                };
                // A flag of the tool that this verb accepts and does not use.
                if arg.is_hide_set() && arg.is_global_set() {
                    continue;
                }
                // A flag of all verbs has one variable, and stands in each of them.
                let own = if arg.is_global_set() { &[] } else { &verbs[..] };
                let words = [&[tool.name.to_owned()], own, &[flag.to_owned()]].concat();
                let wanted = format!("HOSTKIT_{}", words.join("_"));
                let wanted = wanted.replace('-', "_").to_uppercase();
                assert_eq!(variable.to_str(), Some(wanted.as_str()));
                let is_one_shot = one_shot.split(' ').any(|name| name == flag);
                assert!(!is_one_shot, "{wanted}");
                assert!(own.is_empty() || !is_switch(arg), "{wanted}: a switch");
                if own.len() < verbs.len() {
                    continue;
                }
                let other = owners.insert(wanted, (verbs.clone(), flag.to_owned()));
                assert_eq!(other, None, "{variable:?} means two things");
            }
        }
        assert!(owners.len() > 5, "{}", tool.name);
    }
}

#[test]
fn verbs_ignore_variables_of_daemon() {
    let authproxy = |args: &[&str], variables: &[(&str, &str)]| {
        let mut process = Process::new(bin("authproxy"));
        CommandOutcome::from(
            process
                .args(args)
                .envs(variables.iter().copied())
                .output()
                .unwrap(),
        )
    };
    for (variable, value, rights) in [
        ("HOSTKIT_AUTHPROXY_RIGHT", "admin", r#"rights: ["read"]"#),
        // An invalid one does not stop a verb either.
        ("HOSTKIT_AUTHPROXY_PORT", "http", r#"rights: ["read"]"#),
        (
            "HOSTKIT_AUTHPROXY_KEY_NEW_RIGHT",
            "stats",
            r#"rights: ["stats"]"#,
        ),
    ] {
        let outcome = authproxy(&["key", "new"], &[(variable, value)]).exits(0);
        assert!(outcome.stdout.contains(rights), "{variable}: {outcome:?}");
    }
    // The port is taken, which shows that it is opened, and not only the file checked.
    let temp = TempDir::new().unwrap();
    let acl = temp.child("acl.yaml");
    acl.write_str("keys: []\n").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (acl, taken) = (
        acl.to_str().unwrap(),
        taken.local_addr().unwrap().to_string(),
    );
    let serve = ["serve-acl", "--acl-file", acl, "--listen", &taken];
    authproxy(&serve, &[("HOSTKIT_AUTHPROXY_CHECK", "1")]).exits(73);
    authproxy(&serve, &[("HOSTKIT_AUTHPROXY_SERVE_ACL_CHECK", "1")]).exits(73);
}

#[test]
fn no_variable_makes_put_overwrite_or_disables_guard() {
    let temp = TempDir::new().unwrap();
    let (file, object) = (temp.child("file"), temp.child("job-1.2.3.txt"));
    file.write_str("new").unwrap();
    object.write_str("old").unwrap();
    let outcome = Process::new(bin("s3cache"))
        .arg("put")
        .arg(file.path())
        .arg(format!("file://{}", object.display()))
        .env("HOSTKIT_S3CACHE_REPLACE", "1")
        .env("HOSTKIT_S3CACHE_PUT_REPLACE", "1")
        .output();
    CommandOutcome::from(outcome.unwrap()).exits(73);
    object.assert("old");
    let synapse = tools()
        .into_iter()
        .find(|tool| tool.name == "synapse")
        .unwrap();
    for (verb, variable) in [
        ("", "FORCE"),
        ("", "LENIENT"),
        ("", "CHECK"),
        ("reload", "RELOAD_FORCE"),
    ] {
        let variable = (format!("HOSTKIT_SYNAPSE_{variable}"), "1".to_owned());
        let named = parse(&synapse, verb, &[variable]);
        assert_eq!(named, "[]", "{verb}");
    }
}

#[test]
fn empty_variable_counts_as_unset() {
    for tool in tools() {
        let variables: Vec<(String, String)> = commands(&tool.command)
            .iter()
            .flat_map(|(_, command)| command.get_arguments())
            .filter_map(|arg| Some((arg.get_env()?.to_str()?.to_owned(), String::new())))
            .collect();
        let unset = parse(&tool, "", &[]);
        assert!(unset.starts_with('['), "{unset}");
        assert_eq!(parse(&tool, "", &variables), unset, "{}", tool.name);
    }
}

#[test]
fn first_layer_that_names_exclusive_flag_wins() {
    let value = |arg: &Arg| match arg.get_long().unwrap() {
        _ if is_switch(arg) => "1",
        "acl-file" | "url" => "/f",
        "acl-server" => "http://h/",
        _ => "a",
    };
    let mut pairs = 0;
    for tool in tools() {
        for (verbs, command) in commands(&tool.command) {
            let args: Vec<&Arg> = command.get_arguments().collect();
            let of_group = |group: &[&str]| {
                let names = |arg: &&&Arg| arg.get_long().is_some_and(|flag| group.contains(&flag));
                args.iter().filter(names).copied().collect::<Vec<_>>()
            };
            for group in tool.exclusive {
                let members = of_group(group);
                for (one, other) in members
                    .iter()
                    .flat_map(|one| members.iter().map(move |other| (one, other)))
                {
                    let (flag, rival) = (one.get_long().unwrap(), other.get_long().unwrap());
                    if flag == rival {
                        continue;
                    }
                    pairs += 1;
                    let variable = |arg: &Arg| {
                        (
                            arg.get_env().unwrap().to_str().unwrap().to_owned(),
                            value(arg).to_owned(),
                        )
                    };
                    let given =
                        |arg: &Arg, value: &str| format!("--{}={value}", arg.get_long().unwrap());
                    let line = |flags: &str| format!("{} {flags}", verbs.join(" "));
                    let with_flag = line(&given(one, value(one)));
                    let both = line(&format!(
                        "{} {}",
                        given(one, value(one)),
                        given(other, value(other))
                    ));

                    let message = parse(&tool, &with_flag, &[variable(other)]);
                    assert!(
                        message.contains(&format!("({flag:?}, CommandLine)")),
                        "{message}"
                    );
                    assert!(!message.contains(&format!("({rival:?}, ")), "{message}");
                    for message in [
                        parse(&tool, &both, &[]),
                        parse(&tool, &line(""), &[variable(one), variable(other)]),
                    ] {
                        let refused = ["exclude one another", "cannot be used with"];
                        assert!(
                            refused.iter().any(|text| message.contains(text)),
                            "{flag} {rival}: {message}"
                        );
                    }
                    if is_switch(one) {
                        let message = parse(
                            &tool,
                            &line(&given(one, "no")),
                            &[variable(one), variable(other)],
                        );
                        let chosen = [format!("({rival:?}, EnvVariable)")];
                        assert!(
                            chosen.iter().all(|text| message.contains(text)),
                            "{message}"
                        );
                    }
                }
            }
        }
    }
    assert!(pairs > 20, "{pairs}");
}

#[test]
fn permissions_backend_of_stronger_layer_replaces_weaker() {
    let temp = TempDir::new().unwrap();
    let acl = temp.child("acl.yaml");
    acl.write_str("keys: []\n").unwrap();
    let acl = acl.display().to_string();
    let config = temp.child("authproxy.yaml");
    for (file, variable, flag, engine) in [
        (
            format!("acl-file: {acl}"),
            None,
            None,
            Ok(format!("{:<24}{acl} (", "acl-file")),
        ),
        (
            format!("acl-file: {acl}"),
            None,
            Some("--acl-server=http://f/"),
            Ok(format!("{:<24}http://f/ (--acl-server)", "acl-server")),
        ),
        (
            format!("acl-file: {acl}"),
            Some(("ACL_SERVER", "http://e/")),
            None,
            Ok(format!(
                "{:<24}http://e/ (HOSTKIT_AUTHPROXY_ACL_SERVER)",
                "acl-server"
            )),
        ),
        (
            "acl-server: http://y/\nuse-liveconf-aclserver: true".to_owned(),
            Some(("ACL_FILE", &*acl)),
            None,
            Ok(format!("{:<24}{acl} (", "acl-file")),
        ),
        (
            "use-liveconf-aclserver: true".to_owned(),
            Some(("ACL_FILE", &*acl)),
            Some("--acl-server=http://f/"),
            Ok(format!("{:<24}http://f/ (--acl-server)", "acl-server")),
        ),
        (
            format!("acl-file: {acl}"),
            Some(("USE_LIVECONF_ACLSERVER", "no")),
            None,
            Ok(format!("{:<24}{acl} (", "acl-file")),
        ),
        (
            format!("acl-file: {acl}\nacl-server: http://y/"),
            None,
            None,
            Err(78),
        ),
    ] {
        let text = format!("server: http://h:1\nport: 1\nright: all\n{file}\n");
        config.write_str(&text).unwrap();
        let mut process = Process::new(bin("authproxy"));
        process
            .arg("--check")
            .arg("--config")
            .arg(config.path())
            .args(flag);
        process.envs(variable.map(|(name, value)| (format!("HOSTKIT_AUTHPROXY_{name}"), value)));
        let outcome = CommandOutcome::from(process.output().unwrap());
        match engine {
            Ok(engine) => assert!(
                outcome.clone().exits(0).stdout.contains(&engine),
                "{file} {variable:?} {flag:?}: {outcome:?}"
            ),
            Err(code) => drop(outcome.exits(code)),
        }
    }
}

#[test]
fn too_few_open_files_are_error_and_never_panic() {
    let temp = TempDir::new().unwrap();
    let (acl, synapse) = (temp.child("acl.yaml"), temp.child("synapse.yaml"));
    acl.write_str("keys: []\n").unwrap();
    let haproxy = "global: [], defaults: [], do_writes: false, do_reloads: false";
    let paths = [
        "config_file_path: h.cfg",
        "socket_file_path: h.sock",
        "state_file_path: s.json",
    ];
    let paths = paths
        .join(", ")
        .replace(": ", &format!(": {}/", temp.display()));
    let text = format!("services: {{}}\nhaproxy: {{{haproxy}, {paths}}}\n");
    synapse.write_str(&text).unwrap();
    temp.child("job-1.2.3.txt").write_str("object").unwrap();
    // Each ends by itself: its port is taken, or no server answers.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (taken, dead) = (taken.local_addr().unwrap(), hostkit_tests::free_port());
    let port = taken.port();
    let lines = [
        format!("s3cache --cache-dir cache http://127.0.0.1:{dead}/job-1.2.3.txt"),
        format!(
            "s3cache --cache-dir cache --endpoint-url http://127.0.0.1:{dead} --no-sign-request s3://b/job-1.2.3.txt"
        ),
        format!(
            "s3cache --cache-dir cache file://{}/job-1.2.3.txt",
            temp.path().display()
        ),
        format!("s3cache exists http://127.0.0.1:{dead}/x"),
        format!("pexrun --cache-dir cache --repository http://127.0.0.1:{dead}/ job 60a43ef"),
        format!(
            "authproxy --listen {taken} --server http://127.0.0.1:{dead} --right a --acl-file acl.yaml"
        ),
        format!("authproxy serve-acl --acl-file acl.yaml --listen {taken}"),
        "authproxy key new".to_owned(),
        format!("proxy-healthcheck --port {port} --tcp --test-port {dead}"),
        format!("log-healthcheck --port {port} --file x.log --freshness 9"),
        format!("synapse -c synapse.yaml --admin {taken}"),
        "synapse -c synapse.yaml doctor".to_owned(),
    ];
    for line in lines {
        let (tool, args) = line.split_once(' ').unwrap();
        let mut is_refused = line.ends_with("key new");
        for limit in 4..24 {
            let mut process = Process::new("sh");
            process.args(["-c", &format!("ulimit -n {limit}; exec \"$@\""), "sh"]);
            process.arg(bin(tool)).args(args.split(' '));
            process.env("AWS_EC2_METADATA_DISABLED", "true");
            let outcome = CommandOutcome::from(process.current_dir(&temp).output().unwrap());
            let message = format!("{line} with {limit}: {outcome:?}");
            assert!(!outcome.stderr.contains("panicked"), "{message}");
            assert!((0..=127).contains(&outcome.code), "{message}");
            is_refused |= outcome
                .stderr
                .contains("cannot start a runtime: allow this process");
        }
        assert!(is_refused, "{line}: the limit is named");
    }
}

#[test]
fn fetch_with_too_few_open_files_is_io_error_that_names_limit() {
    let origin = OriginServer::start();
    origin.put("/b/job-1.2.3.txt", "object");
    origin.put("/b/job-1.2.3.jar", "\x7fELF");
    let temp = TempDir::new().unwrap();
    temp.child("job-1.2.3.txt").write_str("object").unwrap();
    let (url, file) = (origin.url("/b/job-1.2.3.txt"), temp.child("job-1.2.3.txt"));
    let file = format!("file://{}", file.display());
    let lines = [
        format!("s3cache --cache-dir new {url}"),
        format!("s3cache --cache-dir new --copy-to copy {url}"),
        format!("s3cache --cache-dir new {file}"),
        format!(
            "s3cache --cache-dir new --endpoint-url {} --no-sign-request s3://b/job-1.2.3.txt",
            origin.url("").trim_end_matches('/')
        ),
        format!("s3cache --cache-dir warm --offline {url}"),
        format!(
            "pexrun --cache-dir new --repository {} --fetch-only job 1.2.3",
            origin.url("/b/")
        ),
    ];
    let run = |line: &str, limit: u64| {
        let (tool, args) = line.split_once(' ').unwrap();
        let mut process = Process::new("sh");
        process.args(["-c", &format!("ulimit -n {limit}; exec \"$@\""), "sh"]);
        process.arg(bin(tool)).args(args.split(' '));
        process
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_REGION", "us-east-1");
        CommandOutcome::from(process.current_dir(&temp).output().unwrap())
    };
    let first = run(&lines[0].replace("new", "warm"), 1000);
    first.exits(0);
    for line in lines {
        let failed = match line.starts_with("pexrun") {
            true => 125,
            false => 74,
        };
        for limit in 4..=40 {
            let _ = std::fs::remove_dir_all(temp.child("new"));
            let outcome = run(&line, limit);
            let message = format!("{line} with {limit}: {outcome:?}");
            assert!([0, failed].contains(&outcome.code), "{message}");
            let is_named = outcome
                .stderr
                .contains("allow this process more open files");
            assert!(is_named || outcome.code == 0, "{message}");
            assert!(!outcome.stderr.contains("cache of this user"), "{message}");
        }
        run(&line, 100).exits(0);
    }
}

#[test]
fn fetch_with_too_few_processes_is_io_error_that_names_limit() {
    // The limit counts all processes of a user: this one has no others.
    const ALONE: u32 = 54_987;
    if or_skip("another uid", run_as(ALONE, "true")).is_none() {
        return;
    }
    let origin = OriginServer::start();
    origin.put("/b/job-1.2.3.tar", vec![0; 10_240]);
    origin.put("/b/job-1.2.3.jar", "\x7fELF");
    let temp = TempDir::new().unwrap();
    let mode: Permissions = PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&temp, mode).unwrap();
    for tool in ["s3cache", "pexrun"] {
        if std::fs::hard_link(bin(tool), temp.child(tool)).is_err() {
            std::fs::copy(bin(tool), temp.child(tool)).unwrap();
        }
    }
    temp.child("job-1.2.3.txt").write_str("object").unwrap();
    let url = origin.url("/b/job-1.2.3.tar");
    let service = origin.url("").trim_end_matches('/').to_owned();
    let lines = [
        format!("s3cache --cache-dir new {url} --copy-to copy"),
        format!(
            "s3cache --cache-dir new file://{}",
            temp.child("job-1.2.3.txt").display()
        ),
        format!(
            "s3cache --cache-dir new put job-1.2.3.txt file://{}/new/",
            temp.display()
        ),
        format!(
            "s3cache --cache-dir new --endpoint-url {service} --no-sign-request s3://b/job-1.2.3.tar"
        ),
        format!("pexrun --cache-dir new --repository {service}/b --fetch-only job 1.2.3"),
    ];
    let run = |line: &str, limit: u64| {
        let (tool, args) = line.split_once(' ').unwrap();
        let mut process = run_as(ALONE, "bash").unwrap();
        let script = format!("rm -rf new copy; ulimit -u {limit}; exec \"$@\"");
        process.args(["-c", &script, "bash"]);
        process.arg(temp.child(tool).path()).args(args.split(' '));
        process
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_REGION", "us-east-1")
            .env("HOME", temp.path());
        CommandOutcome::from(process.current_dir(&temp).output().unwrap())
    };
    for line in lines {
        let failed = match line.starts_with("pexrun") {
            true => 125,
            false => 74,
        };
        for limit in 1..=12 {
            let outcome = run(&line, limit);
            let message = format!("{line} with {limit}: {outcome:?}");
            assert!([0, failed].contains(&outcome.code), "{message}");
            let is_named = outcome.stderr.contains("allow this user more processes");
            assert!(is_named || outcome.code == 0, "{message}");
            assert!(limit > 1 || outcome.code == failed, "{message}");
        }
        run(&line, 100).exits(0);
    }
}

#[test]
fn heading_holds_same_flags_in_every_tool() {
    for tool in tools() {
        for (heading, flags) in [
            ("Logging", "console loglevel logstash-format logstash-tags"),
            ("Admin", "admin"),
            ("Health", "grace unhealthy-status"),
        ] {
            for (verbs, command) in commands(&tool.command) {
                let under = command
                    .get_arguments()
                    .filter(|arg| arg.get_help_heading() == Some(heading));
                let under: BTreeSet<&str> = under.filter_map(Arg::get_long).collect();
                let expected: BTreeSet<&str> = flags.split(' ').collect();
                assert!(
                    under.is_empty() || under == expected,
                    "{} {verbs:?} {heading}: {under:?}",
                    tool.name
                );
            }
        }
    }
}
