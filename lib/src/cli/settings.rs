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

use super::{AT_START, CommandLine, RELOADABLE, Tool, environment};
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
    /// Whether its value is a text as it is written, and not a boolean, number, size or duration.
    is_text: bool,
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

/// The settings that files decide, by the names of their arguments.
type ChosenSettings<'a> = BTreeMap<&'a str, (&'a Declaration, &'a FileSetting)>;

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
        if chosen.is_empty() {
            let args = T::from_arg_matches(&self.matches)
                .map_err(|error| explain_file_value(&chosen, &error))?;
            let declarations = self.declarations.iter();
            let settings = declarations.map(|declared| self.setting(declared, None, &self.matches));
            return Ok((args, SettingTable(settings.collect())));
        }
        let argv = self.line_with(chosen.values())?;
        // The command of the first parsing: to make it takes as long as to parse.
        let command = self.command.clone();
        let mut command =
            command.mut_args(|arg| match chosen.contains_key(arg.get_id().as_str()) {
                // A text of a list may have the delimiter in it, and an empty list is not the default.
                true => arg
                    .value_delimiter(None)
                    .default_values(std::iter::empty::<&str>()),
                false => arg,
            });
        let refused = |error: clap::Error| match error.kind() {
            ErrorKind::MissingRequiredArgument => explain_missing(&error, self.requiring(&chosen)),
            _ => explain_file_value(&chosen, &error),
        };
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

    /// The command line with settings of files as flags in front.
    fn line_with<'a>(
        &self,
        settings: impl Iterator<Item = &'a (&'a Declaration, &'a FileSetting)>,
    ) -> Result<Vec<OsString>, Failure> {
        let mut argv: Vec<OsString> = self.argv.iter().take(1).cloned().collect();
        for (declaration, setting) in settings {
            let Declaration {
                key,
                is_list,
                is_text,
                delimiter,
                ..
            } = declaration;
            let texts = setting.texts(key, *is_list, *delimiter, *is_text)?;
            argv.extend(
                texts
                    .iter()
                    .map(|part| format!("--{key}={}", part.text).into()),
            );
        }
        argv.extend(self.argv.iter().skip(1).cloned());
        Ok(argv)
    }

    /// The setting of a file that requires one that is missing.
    fn requiring<'a>(&self, chosen: &ChosenSettings<'a>) -> Option<&'a FileSetting> {
        let requires = |setting: &&(&Declaration, &FileSetting)| {
            let argv = self
                .line_with(std::iter::once(*setting))
                .unwrap_or_default();
            let parsed = self.command.clone().try_get_matches_from(argv);
            parsed.is_err_and(|error| error.kind() == ErrorKind::MissingRequiredArgument)
        };
        chosen.values().find(requires).map(|(_, setting)| *setting)
    }

    /// The settings that the files decide.
    fn choose<'a, T: Tool>(
        &'a self,
        layers: &[FileLayer<'a>],
    ) -> Result<ChosenSettings<'a>, Failure> {
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
            is_text: ![
                TypeId::of::<bool>(),
                TypeId::of::<u16>(),
                TypeId::of::<u32>(),
                TypeId::of::<u64>(),
                TypeId::of::<Duration>(),
            ]
            .iter()
            .any(|typed| parser == *typed),
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
fn explain_file_value(chosen: &ChosenSettings<'_>, error: &clap::Error) -> Failure {
    let context = |kind| error_context(error, kind);
    let flag = context(ContextKind::InvalidArg);
    let key = flag_name(&flag);
    let found = chosen.values().find(|(declared, _)| declared.key == key);
    let source = std::error::Error::source(error).map(ToString::to_string);
    match found {
        Some((_, setting)) => {
            let why = match source {
                Some(source) => source,
                None => format!("expected one of {}", context(ContextKind::ValidValue)),
            };
            setting.invalid(key, &context(ContextKind::InvalidValue), &why)
        }
        None => {
            Failure::new(Exit::CONFIG, "cannot use the configuration").because(error.to_string())
        }
    }
}

/// The error of a setting that requires another one.
fn explain_missing(error: &clap::Error, requiring: Option<&FileSetting>) -> Failure {
    let flag = error_context(error, ContextKind::InvalidArg);
    let place = requiring.map_or_else(String::new, |setting| format!("{}: ", setting.line()));
    Failure::new(
        Exit::CONFIG,
        format!("{place}missing `{}`", flag_name(&flag)),
    )
    .remedy("set it too, or remove the setting that requires it")
}

fn error_context(error: &clap::Error, kind: ContextKind) -> String {
    match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        _ => String::new(),
    }
}

/// `--name <VALUE>` and `--name[=<BOOL>]` without what is around the name.
fn flag_name(shown: &str) -> &str {
    let flag = shown.trim_start_matches("--");
    &flag[..flag.find(['=', ' ', '[']).unwrap_or(flag.len())]
}

#[cfg(test)]
mod tests;
