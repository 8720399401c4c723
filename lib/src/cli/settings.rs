//! Settings: flags whose value a configuration file may hold too. The clap argument is the one declaration; this module
//! puts the files below the command line and the environment, and shows what is in force and where it comes from.
//!
//! A file's text goes through the argument's own value parser: it is parsed as if the flag stood on the command line.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{AT_START, CommandLine, RELOADABLE, Tool, environment, prepared};
use crate::config::{ConfigFiles, FileSetting};
use crate::units::{format_setting, format_size};
use crate::{Exit, Failure, mask};

/// The declaration of a setting, from its clap argument.
#[derive(Debug, Clone)]
pub(super) struct Declaration {
    id: String,
    key: String,
    kind: ValueKind,
    is_list: bool,
    delimiter: Option<char>,
    variable: Option<String>,
    is_reloadable: bool,
}

/// How a value is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ValueKind {
    Boolean,
    Duration,
    Size,
    Text,
}

/// Configuration files as a layer below the command line and the environment.
pub struct FileLayer<'a> {
    /// What they hold.
    pub files: &'a ConfigFiles,
    /// Which of the tool's settings are accepted.
    pub accepts: fn(&str) -> bool,
    /// Keys that are not declared as flags: the tool reads them with [`ConfigFiles::structured`].
    pub other_keys: &'a [&'a str],
}

/// Where the value of a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingOrigin {
    /// A flag of the command line.
    Flag(String),
    /// An environment variable.
    Variable(String),
    /// `FILE:LINE`.
    File(String),
    /// The declaration.
    Default,
    /// Something else, in words.
    Other(String),
}

impl fmt::Display for SettingOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag(text) | Self::Variable(text) | Self::File(text) | Self::Other(text) => text,
            Self::Default => "default",
        })
    }
}

/// The value of a setting that is in force.
#[derive(Debug, Clone)]
struct Setting {
    name: String,
    /// The exact value, in one spelling, for comparisons.
    value: String,
    shown: String,
    origin: SettingOrigin,
    is_reloadable: bool,
}

/// All settings of a run, with their values and origins. Displayed as the lines of `--check`.
#[derive(Debug, Clone, Default)]
pub struct SettingTable(Vec<Setting>);

impl SettingTable {
    /// Where the value of a setting comes from.
    #[must_use]
    pub fn origin(&self, name: &str) -> &SettingOrigin {
        let setting = self.0.iter().find(|setting| setting.name == name);
        setting.map_or(&SettingOrigin::Default, |setting| &setting.origin)
    }

    /// The name of a setting as its writer knows it, for errors of its value: the flag, the variable, or the line of
    /// the file.
    #[must_use]
    pub fn locate(&self, name: &str) -> String {
        match self.origin(name) {
            SettingOrigin::File(line) => format!("{line}: `{name}`"),
            SettingOrigin::Variable(variable) => variable.clone(),
            _ => format!("--{name}"),
        }
    }

    /// Adds a key that only a file can set.
    pub fn push(&mut self, name: &str, value: String, files: &ConfigFiles) {
        let origin = match files.get(name) {
            Some(setting) => SettingOrigin::File(setting.line()),
            None => SettingOrigin::Default,
        };
        self.0.push(Setting {
            name: name.to_owned(),
            shown: value.clone(),
            value,
            origin,
            is_reloadable: true,
        });
    }

    /// Shows another value for a setting, such as one that is derived where nothing sets it; and for one that nothing
    /// sets, where that value comes from.
    pub fn show(&mut self, name: &str, value: String, default_origin: &str) {
        let setting = self.0.iter_mut().find(|setting| setting.name == name);
        if let Some(setting) = setting {
            setting.shown = value;
            if setting.origin == SettingOrigin::Default {
                setting.origin = SettingOrigin::Other(default_origin.to_owned());
            }
        }
    }

    /// Names and values, for a digest.
    pub fn values(&self) -> impl Iterator<Item = (&str, &str)> {
        let settings = self.0.iter();
        settings.map(|setting| (setting.name.as_str(), setting.value.as_str()))
    }

    /// The settings that differ and are read only at the start.
    #[must_use]
    pub fn restarts(&self, after: &Self) -> Vec<String> {
        let fixed = self.0.iter().filter(|setting| !setting.is_reloadable);
        let differs = |setting: &&Setting| {
            let now = after.0.iter().find(|now| now.name == setting.name);
            now.is_some_and(|now| now.value != setting.value)
        };
        fixed
            .filter(differs)
            .map(|setting| setting.name.clone())
            .collect()
    }
}

impl fmt::Display for SettingTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .0
            .iter()
            .map(|setting| setting.name.len())
            .max()
            .unwrap_or(0);
        for setting in &self.0 {
            let Setting {
                name,
                shown,
                origin,
                ..
            } = setting;
            writeln!(f, "{name:<width$}  {shown} ({origin})")?;
        }
        Ok(())
    }
}

impl CommandLine {
    /// Puts configuration files below the command line and the environment, the strongest first.
    ///
    /// # Errors
    /// A file has a key that is not accepted, or a value that its setting refuses (exit 78): the message names file,
    /// line, column and key.
    pub fn with_files<T: Tool>(
        &self,
        layers: &[FileLayer<'_>],
    ) -> Result<(T, SettingTable), Failure> {
        let chosen = self.choose::<T>(layers)?;
        let mut argv: Vec<OsString> = self.argv.iter().take(1).cloned().collect();
        for (declaration, setting) in chosen.values() {
            let Declaration {
                key,
                is_list,
                delimiter,
                ..
            } = declaration;
            let texts = setting.texts(key, *is_list, *delimiter)?;
            argv.extend(
                texts
                    .iter()
                    .map(|part| format!("--{key}={}", part.text).into()),
            );
        }
        argv.extend(self.argv.iter().skip(1).cloned());
        let command = prepared::<T>(&self.argv, self.has_environment);
        let mut command =
            command.mut_args(|arg| match chosen.contains_key(arg.get_id().as_str()) {
                // A text of a list may have the delimiter in it, and an empty list is not the default.
                true => arg
                    .value_delimiter(None)
                    .default_values(std::iter::empty::<&str>()),
                false => arg,
            });
        let refused = |error: clap::Error| explain_file_value(&chosen, &error);
        let matches = command.try_get_matches_from_mut(&argv).map_err(refused)?;
        let args = T::from_arg_matches(&matches).map_err(refused)?;
        let settings = self.declarations.iter().map(|declaration| {
            let setting = chosen
                .get(declaration.id.as_str())
                .map(|(_, setting)| *setting);
            self.setting(declaration, setting, &matches)
        });
        Ok((args, SettingTable(settings.collect())))
    }

    /// The settings that the files decide.
    fn choose<'a, T: Tool>(
        &'a self,
        layers: &[FileLayer<'a>],
    ) -> Result<BTreeMap<&'a str, (&'a Declaration, &'a FileSetting)>, Failure> {
        let mut chosen = BTreeMap::new();
        let mut decided_groups: Vec<bool> = T::EXCLUSIVE
            .iter()
            .map(|group| environment::names_any(group, &self.matches))
            .collect();
        for FileLayer {
            files,
            accepts,
            other_keys,
        } in layers
        {
            let accepted = self
                .declarations
                .iter()
                .filter(|declared| accepts(&declared.key));
            let accepted: Vec<&Declaration> = accepted.collect();
            let keys = accepted.iter().map(|declared| declared.key.as_str());
            let keys: Vec<&str> = keys.chain(other_keys.iter().copied()).collect();
            files.refuse_unknown(&keys)?;
            let is_decided = |key: &str| {
                let groups = T::EXCLUSIVE.iter().zip(&decided_groups);
                groups
                    .into_iter()
                    .any(|(group, is_decided)| *is_decided && group.contains(&key))
            };
            let mut named = Vec::new();
            for declared in accepted {
                let Some(setting) = files.get(&declared.key) else {
                    continue;
                };
                named.push(declared.key.as_str());
                if !is_decided(&declared.key) && !self.is_given(&declared.id) {
                    chosen
                        .entry(declared.id.as_str())
                        .or_insert((declared, setting));
                }
            }
            for (group, is_decided) in T::EXCLUSIVE.iter().zip(&mut decided_groups) {
                *is_decided |= named.iter().any(|key| group.contains(key));
            }
        }
        Ok(chosen)
    }

    fn is_given(&self, id: &str) -> bool {
        let source = self.matches.value_source(id);
        source.is_some_and(|source| source != ValueSource::DefaultValue)
    }

    fn setting(
        &self,
        declared: &Declaration,
        file: Option<&FileSetting>,
        matches: &ArgMatches,
    ) -> Setting {
        let Declaration {
            id, key, variable, ..
        } = declared;
        let origin = match (file, self.matches.value_source(id)) {
            (Some(setting), _) => SettingOrigin::File(setting.line()),
            (None, Some(ValueSource::CommandLine)) => SettingOrigin::Flag(format!("--{key}")),
            (None, Some(ValueSource::EnvVariable)) => {
                SettingOrigin::Variable(variable.clone().unwrap_or_default())
            }
            (None, _) => SettingOrigin::Default,
        };
        let raw = matches.get_raw(id).into_iter().flatten();
        let raw: Vec<String> = raw
            .map(|value| value.to_string_lossy().into_owned())
            .collect();
        let written = raw.join(", ");
        let (value, shown) = match declared.kind {
            _ if raw.is_empty() => (String::new(), "unset".to_owned()),
            ValueKind::Boolean => match matches.try_get_one::<bool>(id) {
                Ok(Some(is_on)) => (is_on.to_string(), is_on.to_string()),
                _ => (written.clone(), written),
            },
            ValueKind::Duration => match matches.try_get_one::<Duration>(id) {
                Ok(Some(span)) => (format_setting(*span), format_setting(*span)),
                _ => (written.clone(), written),
            },
            ValueKind::Size => match matches.try_get_one::<u64>(id) {
                Ok(Some(bytes)) => (bytes.to_string(), format_size(*bytes)),
                _ => (written.clone(), written),
            },
            ValueKind::Text => {
                let masked: Vec<String> = raw.iter().map(|text| mask::mask_url(text)).collect();
                (written, masked.join(", "))
            }
        };
        Setting {
            name: key.clone(),
            value,
            shown,
            origin,
            is_reloadable: declared.is_reloadable,
        }
    }
}

/// The settings that a command declares. It is one that was used for parsing, and so has its groups filled in.
pub(super) fn declarations(command: &Command) -> Vec<Declaration> {
    let in_group = |name: &str, arg: &Arg| {
        let group = command.get_groups().find(|group| group.get_id() == name);
        group.is_some_and(|group| group.get_args().any(|id| id == arg.get_id()))
    };
    let declaration = |arg: &Arg| {
        let is_reloadable = in_group(RELOADABLE, arg);
        let is_setting = is_reloadable || in_group(AT_START, arg);
        let key = arg.get_long().filter(|_| is_setting)?;
        let parser = arg.get_value_parser().type_id();
        let is_size = arg
            .get_value_names()
            .is_some_and(|names| names.iter().any(|name| name == "SIZE"));
        Some(Declaration {
            id: arg.get_id().to_string(),
            key: key.to_owned(),
            kind: match parser {
                _ if parser == TypeId::of::<bool>() => ValueKind::Boolean,
                _ if parser == TypeId::of::<Duration>() => ValueKind::Duration,
                _ if is_size => ValueKind::Size,
                _ => ValueKind::Text,
            },
            is_list: matches!(arg.get_action(), ArgAction::Append),
            delimiter: arg.get_value_delimiter(),
            variable: arg
                .get_env()
                .map(|name| name.to_string_lossy().into_owned()),
            is_reloadable,
        })
    };
    command.get_arguments().filter_map(declaration).collect()
}

/// The error of a value of a file. The command line alone was right, so that only a file's text can be wrong.
fn explain_file_value(
    chosen: &BTreeMap<&str, (&Declaration, &FileSetting)>,
    error: &clap::Error,
) -> Failure {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        _ => String::new(),
    };
    let flag = context(ContextKind::InvalidArg);
    let flag = flag.trim_start_matches("--");
    let key = &flag[..flag.find(['=', ' ', '[']).unwrap_or(flag.len())];
    let found = chosen.values().find(|(declared, _)| declared.key == key);
    let source = std::error::Error::source(error).map(ToString::to_string);
    match (found, error.kind()) {
        (Some((_, setting)), _) => {
            let why = match source {
                Some(source) => source,
                None => format!("expected one of {}", context(ContextKind::ValidValue)),
            };
            setting.invalid(key, &context(ContextKind::InvalidValue), &why)
        }
        (None, ErrorKind::MissingRequiredArgument) => {
            let file = chosen.values().next().map(|(_, setting)| setting.line());
            let file = file.unwrap_or_default();
            Failure::new(Exit::CONFIG, format!("{file}: missing `{key}`"))
                .remedy("set it too, or remove the setting that requires it")
        }
        _ => Failure::new(Exit::CONFIG, "cannot use the configuration").because(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use clap::Parser;

    use super::*;
    use crate::cli::{Common, parse};
    use crate::units;

    #[derive(Debug, Parser)]
    struct Args {
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

    impl Tool for Args {
        const NAME: &'static str = "t";
        const EXCLUSIVE: &[&[&str]] = &[&["acl-file", "acl-server"]];
        fn common(&self) -> &Common {
            &self.common
        }
    }

    fn layered(line: &str, texts: &[&str]) -> Result<(Args, SettingTable), Failure> {
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
        let (_, command_line) = parse::<Args, _>(format!("t {line}").split_whitespace()).unwrap();
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
                "t0.yaml:1:1: unknown key `zzz`: the keys are timeout",
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
                "client-cert: /x\n",
                "t0.yaml:1: missing `client-key`: set it too",
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
}
