//! The command line of every tool, and its `main`: parse, log, run, print the failure, exit.
//!
//! A tool declares plain clap flags; [`command`] gives each its underscore spelling, its environment variable, and for
//! a boolean a value (`--console=True`). Owns `main`, not what a tool does.

mod environment;
#[cfg(feature = "config")]
mod settings;

use std::any::TypeId;
use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::builder::{BoolishValueParser, TypedValueParser as _};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, Parser};

use crate::log::{self, LogLevel};
use crate::mask::mask_refused;
use crate::printable::escape;
use crate::{Exit, Failure, nagios, stdout};

#[cfg(feature = "config")]
pub use settings::{FileLayer, SettingOrigin, SettingTable};

/// The values of a boolean (those of clap's `BoolishValueParser`).
const BOOLEANS: [&str; 12] = [
    "1", "0", "y", "n", "yes", "no", "t", "f", "true", "false", "on", "off",
];

/// The group of arguments that a configuration file may hold too, and that a daemon reads again on SIGHUP.
pub const RELOADABLE: &str = "reloadable";
/// The group of arguments that a configuration file may hold too, and that are read at the start only.
pub const AT_START: &str = "at-start";

/// The flags common to all tools.
// Each flag names its heading: a `next_help_heading` would go on over the flags of the tool behind it.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// Least severe messages to log: debug, info, warning or error
    #[arg(
        long,
        global = true,
        value_name = "LEVEL",
        ignore_case = true,
        help_heading = "Logging"
    )]
    pub loglevel: Option<LogLevel>,
    /// Accepted for compatibility: logs always go to stderr
    #[arg(long, global = true, help_heading = "Logging", hide_short_help = true)]
    pub console: bool,
    /// Log one JSON object per line, in logstash v1 shape
    #[arg(long, global = true, help_heading = "Logging")]
    pub logstash_format: bool,
    /// Tags added to every JSON log line
    #[arg(
        long,
        global = true,
        value_name = "A,B",
        value_delimiter = ',',
        require_equals = true,
        help_heading = "Logging"
    )]
    pub logstash_tags: Vec<String>,
}

/// A command-line tool.
pub trait Tool: Parser {
    /// The name it is installed under, and that its messages begin with.
    const NAME: &'static str;
    /// The exit code of an invalid command line.
    const USAGE_EXIT: Exit = Exit::USAGE;
    /// Whether this command line is that of a Nagios plugin: then an invalid one is a result, on stdout and UNKNOWN.
    fn is_plugin(_line: &[OsString]) -> bool {
        false
    }
    /// The default of `--loglevel`.
    const LOGLEVEL: LogLevel = LogLevel::Info;
    /// Groups of flags that exclude one another. The first layer that names one decides: the command line, then the
    /// environment, then the file.
    const EXCLUSIVE: &[&[&str]] = &[];
    /// Whether a verb uses a flag that all verbs accept. One that it does not use is not in its help.
    fn is_used(_verb: &str, _flag: &Arg) -> bool {
        true
    }
    /// The flags it shares with all tools.
    fn common(&self) -> &Common;
}

/// A valid command line, without the configuration files below it.
#[derive(Debug, Clone)]
// Tools without configuration files do not read all of it.
#[cfg_attr(not(feature = "config"), allow(dead_code))]
pub struct CommandLine {
    #[cfg(feature = "config")]
    argv: Vec<OsString>,
    matches: ArgMatches,
    /// What parsed it.
    #[cfg(feature = "config")]
    command: Command,
    #[cfg(feature = "config")]
    declarations: Vec<settings::Declaration>,
}

impl CommandLine {
    /// Its values, and those of the environment.
    #[must_use]
    pub const fn matches(&self) -> &ArgMatches {
        &self.matches
    }

    /// Whether a flag stands on the command line itself.
    #[must_use]
    pub fn has_flag(&self, flag: &str) -> bool {
        self.matches.value_source(&flag.replace('-', "_")) == Some(ValueSource::CommandLine)
    }
}

/// Parses the command line, runs the tool and returns its exit code: the whole of a `main`.
pub fn main<T: Tool>(run: impl FnOnce(T, &CommandLine) -> Result<Exit, Failure>) -> ExitCode {
    let line: Vec<OsString> = std::env::args_os().collect();
    let (args, command_line) = match parse::<T, _>(line.clone()) {
        Ok(parsed) => parsed,
        Err(error) => return refuse::<T>(&error, &line).into(),
    };
    let common = args.common();
    let json = common.logstash_format;
    log::init(
        T::NAME,
        common.loglevel.unwrap_or(T::LOGLEVEL),
        json,
        common.logstash_tags.clone(),
    );
    match run(args, &command_line) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if let Some(signal) = failure.signal() {
                crate::shutdown::terminate_by_signal(signal);
            }
            report(T::NAME, &failure, json);
            failure.exit().into()
        }
    }
}

/// Prints clap's error of an invalid command line, or the help or version that it asks for.
fn refuse<T: Tool>(error: &clap::Error, line: &[OsString]) -> Exit {
    let is_help = error.exit_code() == 0;
    let is_result = !is_help && T::is_plugin(line);
    if is_result {
        // There is no other channel when stdout cannot be written.
        let _ = stdout::print_line(nagios::usage_line(error));
    }
    // A closed pipe (`--help | head`) is not an error.
    let _ = error.print();
    match (is_help, is_result) {
        (true, _) => Exit::OK,
        (_, true) => nagios::NagiosStatus::Unknown.exit(),
        _ => T::USAGE_EXIT,
    }
}

/// Prints a failure: one line naming the object and the remedy, then one `because:` line per cause.
fn report(tool: &str, failure: &Failure, json: bool) {
    if json {
        tracing::error!(
            exit_code = failure.exit().code(),
            because = failure.causes().join("; "),
            "{failure}"
        );
        return;
    }
    let mut text = format!("{tool}: {}\n", escape(&failure.to_string()));
    for cause in failure.causes() {
        text.push_str(&format!("  because: {}\n", escape(&cause)));
    }
    // There is no other channel when stderr is closed.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Parses `argv` (with the program name first) and the environment into the tool's flags.
///
/// # Errors
/// The command line is invalid, or asks for `--help` or `--version` (exit code 0).
pub fn parse<T, I>(argv: I) -> Result<(T, CommandLine), clap::Error>
where
    T: Tool,
    I: IntoIterator<Item: Into<OsString> + Clone>,
{
    parse_layers(argv.into_iter().map(Into::into).collect(), true)
}

/// Parses `argv` without the environment, for the verb of a tool that reads the configuration of its daemon.
///
/// # Errors
/// As [`parse`].
pub fn parse_without_environment<T: Tool>(
    argv: Vec<OsString>,
) -> Result<(T, CommandLine), clap::Error> {
    parse_layers(argv, false)
}

fn parse_layers<T: Tool>(
    argv: Vec<OsString>,
    has_environment: bool,
) -> Result<(T, CommandLine), clap::Error> {
    let mut command = prepared::<T>(&argv, has_environment);
    let matches = command.try_get_matches_from_mut(&argv);
    let matches = matches.map_err(|error| {
        let error = explain_missing_equals(&mut command, &argv, error);
        mask_value(&mut command, error)
    })?;
    environment::exclude(&mut command, T::EXCLUSIVE, &matches)?;
    let args = T::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    let command_line = CommandLine {
        #[cfg(feature = "config")]
        argv,
        matches,
        #[cfg(feature = "config")]
        declarations: settings::declarations(&command),
        #[cfg(feature = "config")]
        command,
    };
    Ok((args, command_line))
}

/// The command for one command line, without the variables that do not count beside it.
fn prepared<T: Tool>(argv: &[OsString], has_environment: bool) -> Command {
    match has_environment {
        true => environment::applicable(command::<T>(), T::EXCLUSIVE, argv),
        false => environment::without_variables(command::<T>()),
    }
}

/// The error without the secrets of a URL that it quotes.
fn mask_value(command: &mut Command, mut error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) else {
        return error;
    };
    let masked = mask_refused(value);
    let reason = std::error::Error::source(&error).map(ToString::to_string);
    let quoting = reason.filter(|reason| masked != *value && reason.contains(value));
    if let (Some(reason), Some(arg)) = (quoting, error.get(ContextKind::InvalidArg)) {
        let reason = reason.replace(value, &masked);
        let text = format!("invalid value '{masked}' for '{arg}': {reason}");
        return command.error(ErrorKind::ValueValidation, text);
    }
    error.insert(ContextKind::InvalidValue, ContextValue::String(masked));
    error
}

/// The error of a command line. An unexpected word after a switch is most likely its value.
fn explain_missing_equals(
    command: &mut Command,
    argv: &[OsString],
    error: clap::Error,
) -> clap::Error {
    if !matches!(
        error.kind(),
        ErrorKind::InvalidSubcommand | ErrorKind::UnknownArgument
    ) {
        return error;
    }
    let words: Vec<&str> = argv.iter().filter_map(|word| word.to_str()).collect();
    let found = words.windows(2).find_map(|pair| {
        let &[flag, value] = pair else { return None };
        let name = flag.strip_prefix("--")?;
        let is_value = BOOLEANS.contains(&value.to_lowercase().as_str());
        (is_value && has_switch(command, name)).then_some((flag, value))
    });
    match found {
        Some((flag, value)) => {
            let text = format!("{flag} takes a value only after `=`: write {flag}={value}");
            command.error(ErrorKind::ValueValidation, text)
        }
        None => error,
    }
}

/// The tool's clap command with every spelling and environment variable in place; also what man pages come from.
#[must_use]
pub fn command<T: Tool>() -> Command {
    let command = T::command().name(T::NAME).version(crate::VERSION);
    let command = prepare(command, T::NAME, &[]);
    let global = command.get_arguments().filter(|arg| arg.is_global_set());
    let global: Vec<Arg> = global.cloned().collect();
    command.mut_subcommands(|verb| {
        // A copy takes the place of the flag that clap would add.
        let unused = global
            .iter()
            .filter(|flag| !T::is_used(verb.get_name(), flag));
        let hidden: Vec<Arg> = unused.map(|flag| flag.clone().hide(true)).collect();
        verb.args(hidden)
    })
}

fn prepare(command: Command, tool: &str, verbs: &[String]) -> Command {
    let groups = [RELOADABLE, AT_START].map(|name| ArgGroup::new(name).multiple(true));
    command
        .groups(groups)
        .mut_args(|arg| spellings(arg, tool, verbs))
        .mut_subcommands(|sub| {
            let verbs = [verbs, &[sub.get_name().to_owned()]].concat();
            prepare(sub, tool, &verbs)
        })
}

fn spellings(arg: Arg, tool: &str, verbs: &[String]) -> Arg {
    let Some(long) = arg.get_long().map(str::to_owned) else {
        return arg;
    };
    if long == "help" || long == "version" {
        return arg;
    }
    // An alias is an old name of the flag: it keeps its variable and its underscores.
    let old_names: Vec<String> = arg
        .get_all_aliases()
        .into_iter()
        .flatten()
        .map(str::to_owned)
        .collect();
    let names: Vec<String> = std::iter::once(long).chain(old_names).collect();
    let arg = environment::with_variable(arg, tool, verbs, &names);
    let hyphenated = names.iter().filter(|name| name.contains('-'));
    let arg = arg.aliases(hyphenated.map(|name| name.replace('-', "_")));
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
    // `Option<bool>` has no default.
    if !is_switch && !is_boolean(&arg) {
        return arg;
    }
    let arg = arg
        .action(ArgAction::Set)
        .value_name("BOOL")
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .hide_possible_values(true)
        .value_parser(BoolishValueParser::new().map(|value| value));
    match is_switch {
        true => arg.default_value("false").hide_default_value(true),
        false => arg,
    }
}

/// Whether a command or one of its verbs has a boolean flag of this name, in either spelling.
fn has_switch(command: &Command, name: &str) -> bool {
    let name = name.replace('_', "-");
    let is_it = |arg: &Arg| arg.get_long() == Some(&name) && is_boolean(arg);
    command.get_arguments().any(is_it)
        || command
            .get_subcommands()
            .any(|verb| has_switch(verb, &name))
}

fn is_boolean(arg: &Arg) -> bool {
    arg.get_value_parser().type_id() == TypeId::of::<bool>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Parser)]
    struct Args {
        #[command(flatten)]
        common: Common,
        #[arg(long)]
        cache_prefix: Option<String>,
        #[arg(long)]
        cache: bool,
        #[arg(long)]
        path_style: Option<bool>,
        #[arg(long)]
        level: Option<LogLevel>,
        #[arg(long, value_parser = crate::units::parse_duration)]
        wait: Option<std::time::Duration>,
        rest: Vec<String>,
    }

    impl Tool for Args {
        const NAME: &'static str = "some-tool";
        const EXCLUSIVE: &[&[&str]] = &[&["cache", "cache-prefix"]];
        fn common(&self) -> &Common {
            &self.common
        }
    }

    /// A tool without operands, and with a verb.
    #[derive(Debug, Parser)]
    struct Bare {
        #[command(flatten)]
        common: Common,
        #[arg(long)]
        cache: bool,
        #[arg(long)]
        path_style: Option<bool>,
        #[command(subcommand)]
        verb: Option<Verb>,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Verb {
        Check,
    }

    impl Tool for Bare {
        const NAME: &'static str = "some-tool";
        fn common(&self) -> &Common {
            &self.common
        }
    }

    fn parsed(line: &str) -> Args {
        parse::<Args, _>(line.split_whitespace()).unwrap().0
    }

    #[test]
    fn underscores_are_accepted_for_hyphens() {
        assert_eq!(
            parsed("t --cache_prefix=eightball").cache_prefix.as_deref(),
            Some("eightball")
        );
        assert_eq!(
            parsed("t --cache-prefix eightball").cache_prefix.as_deref(),
            Some("eightball")
        );
        assert!(parsed("t --logstash_format").common.logstash_format);
    }

    #[test]
    fn booleans_are_accepted_bare_and_with_a_value() {
        for (line, expected) in [
            ("t --cache", true),
            ("t --cache=1", true),
            ("t --cache=True", true),
            ("t --cache=yes", true),
            ("t --cache=0", false),
            ("t --cache=False", false),
            ("t", false),
        ] {
            assert_eq!(parsed(line).cache, expected, "{line}");
        }
        for (line, expected) in [
            ("t --path-style", Some(true)),
            ("t --path_style=no word", Some(false)),
            ("t word", None),
        ] {
            assert_eq!(parsed(line).path_style, expected, "{line}");
        }
        assert_eq!(
            parsed("t --cache word").rest,
            ["word"],
            "a bare boolean takes no following word"
        );
    }

    #[test]
    fn value_of_a_boolean_in_a_word_of_its_own_is_refused_with_the_equals_sign() {
        for (line, says) in [
            ("t --cache 1 two three", None),
            ("bare --cache 1", Some("--cache=1")),
            ("bare --path_style True", Some("--path_style=True")),
            ("bare --console off --cache", Some("--console=off")),
            ("bare --logstash-tags True", None),
            ("bare --cache perhaps", None),
        ] {
            let words: Vec<&str> = line.split_whitespace().collect();
            let error = match words[0] {
                "t" => parse::<Args, _>(words).err(),
                _ => parse::<Bare, _>(words).err(),
            };
            let said = error.map(|error| error.to_string()).unwrap_or_default();
            match says {
                Some(says) => assert!(said.contains(&format!("after `=`: write {says}")), "{said}"),
                None => assert!(!said.contains("after `=`"), "{said}"),
            }
        }
    }

    #[test]
    fn reason_that_quotes_a_password_is_masked() {
        let error = parse::<Args, _>(["t", "--wait=u:hunter2@h"]).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.exit_code(), 2);
        assert!(
            text.contains("invalid value '***@h' for '--wait <WAIT>': unknown unit \"***@h\""),
            "{text}"
        );
    }

    #[test]
    fn refused_url_is_quoted_without_its_secrets() {
        let error = parse::<Args, _>(["t", "--level=ftp://u:hunter2@h/?k=hunter2"]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("ftp://***@h/?k=***") && !text.contains("hunter2"),
            "{text}"
        );
    }

    #[test]
    fn boolean_with_an_invalid_value_is_refused() {
        assert!(parse::<Args, _>(["t", "--cache=perhaps"]).is_err());
    }

    #[test]
    fn levels_are_accepted_in_any_case() {
        assert_eq!(
            parsed("t --loglevel=DEBUG").common.loglevel,
            Some(LogLevel::Debug)
        );
        assert_eq!(
            parsed("t --loglevel Warning").common.loglevel,
            Some(LogLevel::Warning)
        );
    }

    #[test]
    fn variables_of_flags_name_the_verb_and_one_shot_switches_have_none() {
        let variable = |verbs: &[&str], flag| {
            let verbs: Vec<String> = verbs.iter().map(ToString::to_string).collect();
            environment::variable("some-tool", &verbs, flag)
        };
        for (verbs, flag, name) in [
            (
                &[][..],
                "cache-prefix",
                Some("HOSTKIT_SOME_TOOL_CACHE_PREFIX"),
            ),
            (
                &["key", "new"],
                "right",
                Some("HOSTKIT_SOME_TOOL_KEY_NEW_RIGHT"),
            ),
            (
                &["serve-acl"],
                "listen",
                Some("HOSTKIT_SOME_TOOL_SERVE_ACL_LISTEN"),
            ),
            (&[], "check", None),
            (&["put"], "replace", None),
        ] {
            assert_eq!(variable(verbs, flag).as_deref(), name, "{flag}");
        }
    }

    #[test]
    fn flags_of_one_group_on_one_command_line_are_refused_unless_turned_off() {
        for (line, is_refused) in [
            ("t --cache --cache-prefix=x", true),
            ("t --cache=no --cache-prefix=x", false),
            ("t --cache", false),
        ] {
            let parsed = parse::<Args, _>(line.split_whitespace());
            assert_eq!(parsed.is_err(), is_refused, "{line}");
        }
    }
}
