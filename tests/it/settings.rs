//! One declaration per setting: its flag, its variable, its key in the configuration file, its line of `--check`, its row in
//! the operator's page, and the help. `HOSTKIT_BLESS=1` renews the tables of the pages and the golden files of the help.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use assert_fs::TempDir;
use clap::{Arg, Command};
use hostkit::cli::{self, AT_START, FileLayer, RELOADABLE, SettingTable, Tool};
use hostkit::config::ConfigFiles;
use hostkit_tests::{CommandOutcome, bin, workspace};

/// A tool and its settings.
struct ToolCase {
    name: &'static str,
    command: Command,
    /// The table of settings for a command line above the text of a file.
    load: fn(&[String], &str) -> Result<SettingTable, String>,
    /// A command line whose `--check` succeeds; empty for a tool without configuration files.
    check: &'static str,
    /// Words that every command line needs.
    operands: &'static [&'static str],
}

fn case<T: Tool>(check: &'static str, operands: &'static [&'static str]) -> ToolCase {
    let mut command = cli::command::<T>();
    command.build();
    ToolCase {
        name: T::NAME,
        command,
        load: load::<T>,
        check,
        operands,
    }
}

/// The tools; synapse has a schema of its own.
fn cases() -> Vec<ToolCase> {
    vec![
        case::<s3cache::Args>("--check", &["b/k"]),
        case::<pexrun::Args>("--check --repository=file:///srv", &[]),
        case::<authproxy::Args>(
            "--check --port=1 --server=unix:/s --right=a --acl-server=http://h/",
            &[],
        ),
        case::<proxy_healthcheck::Args>("", &["--port=1"]),
        case::<log_healthcheck::Args>("", &["--file=a", "--freshness=1"]),
    ]
}

fn load<T: Tool>(flags: &[String], file: &str) -> Result<SettingTable, String> {
    let temp = TempDir::new().unwrap();
    let path = temp.path().join("t.yaml");
    std::fs::write(&path, file).unwrap();
    let files = ConfigFiles::read(T::NAME, Some(&path), None).unwrap();
    let words = [T::NAME.to_owned()]
        .into_iter()
        .chain(flags.iter().cloned());
    let (_, line) = cli::parse::<T, _>(words).unwrap();
    let layer = FileLayer {
        files: &files,
        accepts: |_| true,
        other_keys: &[],
    };
    let loaded = line.with_files::<T>(&[layer]);
    loaded
        .map(|(_, table)| table)
        .map_err(|failure| failure.to_string())
}

fn is_in_group(command: &Command, name: &str, flag: &Arg) -> bool {
    let group = command.get_groups().find(|group| group.get_id() == name);
    group.is_some_and(|group| group.get_args().any(|id| id == flag.get_id()))
}

impl ToolCase {
    fn flags(&self) -> Vec<(&str, &Arg)> {
        let flags = self.command.get_arguments();
        let flags = flags.filter_map(|flag| Some((flag.get_long()?, flag)));
        flags
            .filter(|(name, _)| !matches!(*name, "help" | "version"))
            .collect()
    }

    fn is_reloadable(&self, flag: &Arg) -> bool {
        is_in_group(&self.command, RELOADABLE, flag)
    }

    fn is_setting(&self, flag: &Arg) -> bool {
        self.is_reloadable(flag) || is_in_group(&self.command, AT_START, flag)
    }

    fn page(&self) -> PathBuf {
        workspace().join("bins").join(self.name).join("README.md")
    }

    fn has_files(&self) -> bool {
        !self.check.is_empty()
    }
}

/// A value that is not the default.
fn sample(name: &str, flag: &Arg) -> &'static str {
    let value_name = flag.get_value_names().and_then(<[_]>::first);
    match (name, value_name.map_or("", |name| name.as_str())) {
        ("cors-preflight", _) => "pass",
        ("access-log", _) => "json",
        ("server", _) => "http://h:1",
        ("admin", _) => "unix:/a",
        ("trusted-proxies", _) => "10.0.0.0/8",
        ("repository", _) => "file:///srv",
        (_, "BOOL") => "true",
        (_, "SIZE") => "2K",
        (_, "DURATION" | "DUR") => "77s",
        (_, "N" | "PORT") => "7",
        (_, "ADDR") => "127.0.0.1",
        (_, "URL") => "http://h/",
        (_, "PATH" | "FILE" | "DIR") => "/x",
        _ => "x",
    }
}

#[test]
fn every_setting_has_both_spellings_a_variable_and_a_key_with_one_meaning() {
    for tool in cases().into_iter().filter(ToolCase::has_files) {
        let settings: Vec<(&str, &Arg)> = tool.flags();
        let settings = settings
            .into_iter()
            .filter(|(_, flag)| tool.is_setting(flag));
        let settings: Vec<(&str, &Arg)> = settings.collect();
        assert!(settings.len() > 10, "{}", tool.name);
        let mut file = String::new();
        let operands = tool.operands.iter().map(ToString::to_string);
        let operands: Vec<String> = operands.collect();
        let mut line = operands.clone();
        for (name, flag) in &settings {
            let aliases = flag.get_all_aliases().unwrap_or_default();
            let underscores = name.replace('-', "_");
            assert!(
                !name.contains('-') || aliases.contains(&underscores.as_str()),
                "{name}"
            );
            let variable = format!("HOSTKIT_{}_{name}", tool.name).replace('-', "_");
            assert_eq!(flag.get_env(), Some(variable.to_uppercase().as_ref()));
            let value = sample(name, flag);
            writeln!(file, "{name}: {value}").unwrap();
            // Of the flags that exclude one another a command line has one.
            if !matches!(*name, "acl-server" | "use-liveconf-aclserver") {
                line.push(format!("--{underscores}={value}"));
            }
        }
        let from_file = (tool.load)(&operands, &file).unwrap();
        let from_flags = (tool.load)(&line, "").unwrap();
        let defaults = (tool.load)(&operands, "").unwrap();
        let value = |table: &SettingTable, name: &str| {
            let found = table.values().find(|(other, _)| *other == name);
            found.unwrap().1.to_owned()
        };
        for (at, (name, _)) in settings.iter().enumerate() {
            let origin = from_file.origin(name).to_string();
            assert!(
                origin.ends_with(&format!("t.yaml:{}", at + 1)),
                "{name}: {origin}"
            );
            assert_ne!(value(&from_file, name), value(&defaults, name), "{name}");
            if from_flags.origin(name).to_string() == format!("--{name}") {
                assert_eq!(value(&from_file, name), value(&from_flags, name), "{name}");
            }
        }
        for (name, flag) in tool.flags() {
            if !tool.is_setting(flag) {
                let refused = (tool.load)(&operands, &format!("{name}: x\n")).unwrap_err();
                assert!(
                    refused.contains(&format!("unknown key `{name}`")),
                    "{refused}"
                );
            }
        }
    }
}

#[test]
fn check_prints_a_line_for_every_setting() {
    for tool in cases().into_iter().filter(ToolCase::has_files) {
        let home = TempDir::new().unwrap();
        let output = Process::new(bin(tool.name))
            .args(tool.check.split(' '))
            .env("HOME", home.path())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .output();
        let shown = CommandOutcome::from(output.unwrap()).exits(0).stdout;
        for (name, flag) in tool.flags() {
            let lines = shown
                .lines()
                .filter(|line| line.starts_with(&format!("{name} ")));
            assert_eq!(
                lines.count(),
                usize::from(tool.is_setting(flag)),
                "{name}: {shown}"
            );
        }
    }
}

/// The default of a flag, as a page shows it.
fn default_of(flag: &Arg) -> String {
    let defaults = flag.get_default_values().iter();
    let defaults: Vec<_> = defaults.map(|value| value.to_string_lossy()).collect();
    match defaults.join(",").as_str() {
        "false" => String::new(),
        // A table may break a line behind a space only.
        defaults => defaults.replace(',', ", "),
    }
}

/// The table of a tool's flags but those of logging.
fn reference(tool: &ToolCase) -> String {
    let mut table = "| flag | default | in the file | |\n|---|---|---|---|\n".to_owned();
    for (name, flag) in tool.flags() {
        if flag.get_help_heading() == Some("Logging") {
            continue;
        }
        let value = match flag.get_value_names() {
            Some([value]) if value != "BOOL" => format!(" {value}"),
            _ => String::new(),
        };
        let in_file = match (tool.is_reloadable(flag), tool.is_setting(flag)) {
            (true, _) => "yes, SIGHUP",
            (_, true) => "yes",
            _ => "",
        };
        let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
        let default = default_of(flag);
        writeln!(
            table,
            "| `--{name}{value}` | {default} | {in_file} | {help} |"
        )
        .unwrap();
    }
    table
}

/// Compares a file with a text, or renews it.
fn compare(path: &Path, wanted: &str) {
    if std::env::var("HOSTKIT_BLESS").is_ok_and(|value| value == "1") {
        std::fs::write(path, wanted).unwrap();
        return;
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == wanted,
        "{} differs from the code: HOSTKIT_BLESS=1 writes it",
        path.display()
    );
}

#[test]
fn page_of_every_tool_has_a_row_for_every_flag() {
    for tool in cases() {
        let path = tool.page();
        let page = std::fs::read_to_string(&path).unwrap();
        if tool.has_files() {
            let start = "<!-- options: generated, see CONTRIBUTING.md -->\n";
            let (before, rest) = page.split_once(start).unwrap();
            let (_, after) = rest.split_once("<!-- end of options -->").unwrap();
            let table = reference(&tool);
            compare(
                &path,
                &format!("{before}{start}\n{table}\n<!-- end of options -->{after}"),
            );
            continue;
        }
        for (name, flag) in tool.flags() {
            if flag.get_help_heading() == Some("Logging") {
                continue;
            }
            let rows: Vec<&str> = page
                .lines()
                .filter(|line| line.starts_with("| `-"))
                .collect();
            let row = rows.iter().find(|row| row.contains(&format!("`--{name}")));
            let row = row.unwrap_or_else(|| panic!("{}: --{name} has no row", tool.name));
            let default = default_of(flag);
            let is_own_row = row.starts_with(&format!("| `--{name}"));
            assert!(
                default.is_empty() || !is_own_row || row.contains(&format!("| {default} |")),
                "{row}: the default is {default}"
            );
        }
    }
}

/// Every command of a tool with its name, such as `authproxy-key-new`.
fn commands(command: &Command, name: &str) -> Vec<(String, Command)> {
    let mut all = vec![(name.to_owned(), command.clone())];
    for verb in command
        .get_subcommands()
        .filter(|verb| verb.get_name() != "help")
    {
        all.extend(commands(verb, &format!("{name}-{}", verb.get_name())));
    }
    all
}

#[test]
fn short_help_has_fewer_than_60_lines_and_long_help_is_the_golden_file() {
    let directory = workspace().join("tests/golden/help");
    let mut names = Vec::new();
    for tool in cases() {
        for (name, mut command) in commands(&tool.command, tool.name) {
            let short = command.render_help().to_string();
            assert!(short.lines().count() < 60, "{name} -h:\n{short}");
            let long = command.render_long_help().to_string();
            let lines: String = long
                .lines()
                .map(|line| format!("{}\n", line.trim_end()))
                .collect();
            compare(&directory.join(format!("{name}.txt")), &lines);
            names.push(format!("{name}.txt"));
        }
    }
    for file in std::fs::read_dir(&directory).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(names.contains(&name), "{name} is of a verb that is gone");
    }
}

#[test]
fn help_of_a_verb_has_the_flags_that_it_uses() {
    let tools = cases();
    let s3cache = tools.iter().find(|tool| tool.name == "s3cache").unwrap();
    for (verb, used, unused) in [
        ("stats", "--cache-dir", "--endpoint-url"),
        ("gc", "--max-size", "--ca-file"),
        ("rm", "--endpoint-url", "--ca-file"),
        ("put", "--ca-file", "--cache-dir"),
        ("ls", "--endpoint-url", "--max-size"),
    ] {
        let mut command = s3cache.command.clone();
        let verb = command.find_subcommand_mut(verb).unwrap();
        let help = verb.render_long_help().to_string();
        assert!(help.contains(used) && !help.contains(unused), "{help}");
    }
}
