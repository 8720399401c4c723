//! Settings of a small tool through command line, environment and files.

use std::path::PathBuf;

use clap::Parser;

use super::*;
use crate::cli::{Common, parse};
use crate::units;

#[derive(Debug, Parser)]
struct SettingsArgs {
    #[command(flatten)]
    common: Common,
    #[arg(long)]
    config: Option<PathBuf>,
    #[arg(long, value_parser = units::parse_duration, default_value = "60s", group = RELOADABLE)]
    timeout: Duration,
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size, group = AT_START)]
    max_size: Option<u64>,
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), group = AT_START)]
    port: Option<u16>,
    #[arg(long, value_delimiter = ',', default_value = "a,b", group = AT_START)]
    name: Vec<String>,
    #[arg(long, group = RELOADABLE)]
    cache: bool,
    #[arg(long, value_enum, default_value = "plain", group = AT_START)]
    access_log: Shape,
    #[arg(long, group = AT_START)]
    acl_file: Option<PathBuf>,
    #[arg(long, group = AT_START)]
    acl_server: Option<String>,
    #[arg(long, group = AT_START, requires = "client_key")]
    client_cert: Option<PathBuf>,
    #[arg(long, group = AT_START, requires = "client_cert")]
    client_key: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, clap::ValueEnum)]
enum Shape {
    Plain,
    Off,
}

impl Tool for SettingsArgs {
    const NAME: &'static str = "t";
    const EXCLUSIVE: &[&[&str]] = &[&["acl-file", "acl-server"]];
    fn common(&self) -> &Common {
        &self.common
    }
}

fn layered(line: &str, texts: &[&str]) -> Result<(SettingsArgs, SettingTable), Failure> {
    let temp = assert_fs::TempDir::new().unwrap();
    let files: Vec<ConfigFiles> = texts
        .iter()
        .enumerate()
        .map(|(at, text)| {
            let path = temp.path().join(format!("t{at}.yaml"));
            std::fs::write(&path, text).unwrap();
            ConfigFiles::read("t", Some(&path), None)
        })
        .collect::<Result<_, _>>()?;
    let layers: Vec<FileLayer<'_>> = files
        .iter()
        .map(|files| FileLayer {
            files,
            accepts: |_| true,
            other_keys: &["routes"],
        })
        .collect();
    let (_, command_line) =
        parse::<SettingsArgs, _>(format!("t {line}").split_whitespace()).unwrap();
    command_line.with_files(&layers)
}

#[test]
fn file_below_the_command_line_is_parsed_as_its_flags() {
    let text = "timeout: 90\nmax-size: 1.5K\nport: 7\nname: 'x, y'\ncache: yes\naccess-log: off\nroutes: [{a: b}]\n";
    let (args, table) = layered("--port=8 --cache=no", &[text]).unwrap();
    assert_eq!(args.timeout, Duration::from_secs(90));
    assert_eq!((args.max_size, args.port), (Some(1536), Some(8)));
    assert_eq!(args.name, ["x", "y"]);
    assert!(!args.cache);
    assert_eq!(args.access_log, Shape::Off);
    let lines = table.to_string();
    for (name, value, origin) in [
        ("timeout", "90s", "t0.yaml:1)"),
        ("max-size", "1.5 KiB", "t0.yaml:2)"),
        ("port", "8", "(--port)"),
        ("cache", "false", "(--cache)"),
        ("name", "x, y", "t0.yaml:4)"),
        ("acl-file", "unset", "(default)"),
    ] {
        let line = lines
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")))
            .unwrap();
        assert!(
            line.contains(&format!("  {value} (")) && line.ends_with(origin),
            "{line}"
        );
    }
}

#[test]
fn lists_replace_the_default_and_keep_the_delimiter_in_their_texts() {
    for (text, expected) in [
        ("", &["a", "b"][..]),
        ("name:\n", &["a", "b"]),
        ("name: []\n", &[]),
        ("name: [x]\n", &["x"]),
        ("name: ['x,y', -z]\n", &["x,y", "-z"]),
    ] {
        assert_eq!(layered("", &[text]).unwrap().0.name, expected, "{text}");
    }
}

#[test]
fn number_or_boolean_is_a_text_as_it_is_written() {
    for (text, expected) in [
        ("name: 012345678901\n", &["012345678901"][..]),
        (
            "name: [1.10, 1e5, True, 0x10, 1_000, +5, 5]\n",
            &["1.10", "1e5", "True", "0x10", "1_000", "+5", "5"],
        ),
        (
            "\u{feff}# \u{e9}\r\nname: [\u{e9}, 007]\r\n",
            &["\u{e9}", "007"],
        ),
        ("port: &p 0x7\nname: *p\n", &["0x7"]),
        ("name: !!int \"5\"\n", &["5"]),
        ("name: 1.10, 2.0\n", &["1.10", "2.0"]),
    ] {
        assert_eq!(layered("", &[text]).unwrap().0.name, expected, "{text}");
    }
    let (args, _) = layered("", &["port: 0x10\ntimeout: 1e1\nacl-file: 1.0\n"]).unwrap();
    assert_eq!(
        (args.port, args.timeout),
        (Some(16), Duration::from_secs(10))
    );
    assert_eq!(args.acl_file, Some(PathBuf::from("1.0")));
}

#[test]
fn first_layer_that_names_one_of_an_exclusive_group_decides() {
    let both = &["acl-file: /a\n", "acl-server: b\n"][..];
    for (line, texts, file, server) in [
        ("", both, Some("/a"), None),
        ("", &["", "acl-server: b\n"], None, Some("b")),
        ("--acl-server=c", both, None, Some("c")),
        (
            "",
            &["acl-file: /a\nacl-server: b\n"],
            Some("/a"),
            Some("b"),
        ),
    ] {
        let (args, _) = layered(line, texts).unwrap();
        let found = (args.acl_file, args.acl_server.as_deref());
        assert_eq!(found, (file.map(PathBuf::from), server), "{line} {texts:?}");
    }
}

#[test]
fn invalid_value_of_a_file_is_an_error_with_file_line_column_key_and_reason() {
    for (text, message) in [
        (
            "zzz: 1\nprot: 2\n",
            "t0.yaml:1:1: unknown key `zzz`: valid keys: timeout",
        ),
        (
            "cache: no\nprot: 2\n",
            "t0.yaml:2:1: unknown key `prot`: did you mean `port`?",
        ),
        ("config: /x\n", "t0.yaml:1:1: unknown key `config`"),
        (
            "timeout: 3y\n",
            "t0.yaml:1:10: `timeout`: invalid value `3y`: unknown unit \"y\"",
        ),
        (
            "port: 0\n",
            "t0.yaml:1:7: `port`: invalid value `0`: 0 is not in 1..=65535",
        ),
        (
            "cache: perhaps\n",
            "t0.yaml:1:8: `cache`: invalid value `perhaps`: value was not a boolean",
        ),
        (
            "access-log: loud\n",
            "`access-log`: invalid value `loud`: expected one of plain, off",
        ),
        (
            "max-size: ''\n",
            "t0.yaml:1:11: `max-size`: invalid empty value",
        ),
        (
            "name: [x, '']\n",
            "t0.yaml:1:11: `name`: invalid empty value",
        ),
        (
            "name: [x, {a: b}]\n",
            "t0.yaml:1:11: `name`: expected a list",
        ),
        (
            "port: [1]\n",
            "`port`: expected one text, number or boolean",
        ),
        ("port: {a: 1}\n", "t0.yaml:1:7: `port`: expected one text"),
        ("port: [\n", "t0.yaml:"),
        (
            "acl-file: /a\nclient-cert: /x\nmax-size: 1\n",
            "t0.yaml:2: missing `client-key`: set it too",
        ),
        (
            "acl-server: x\nmax-size: user:secret@h\n",
            "t0.yaml:2:11: `max-size`: invalid value `***@h`: unknown unit \"***@h\"",
        ),
        (
            "port: 1\nport: 2\n",
            "t0.yaml:2:1: duplicate key `port`: remove one",
        ),
    ] {
        let failure = layered("", &[text]).unwrap_err();
        assert_eq!(failure.exit(), Exit::CONFIG, "{text}");
        assert!(failure.to_string().contains(message), "{text}: {failure}");
    }
}

#[test]
fn settings_that_are_read_at_the_start_and_differ_are_named() {
    let table = |text: &str| layered("", &[text]).unwrap().1;
    let before = table("port: 1\n");
    for (text, expected) in [
        ("port: 1\ntimeout: 5\ncache: 1\n", &[][..]),
        ("port: 2\nmax-size: 1K\n", &["max-size", "port"]),
        ("port: '1'\nname: 'a, b'\n", &[]),
    ] {
        assert_eq!(before.restarts(&table(text)), expected, "{text}");
    }
}
