//! Environment variables of flags: their names, and which of them apply to a given command line.
//!
//! A flag of the tool itself has `HOSTKIT_<TOOL>_<FLAG>`, one of a verb `HOSTKIT_<TOOL>_<VERB>_<FLAG>` only, and a
//! one-shot switch has none. Owns neither spellings nor values of flags.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

/// Flags that ask for one thing in one run. A variable would repeat that in every later run: `HOSTKIT_SYNAPSE_FORCE`
/// would disarm the removal guard for good.
const ONE_SHOT: [&str; 14] = [
    "cached",
    "check",
    "check-clusters",
    "dry-run",
    "fetch-only",
    "follow",
    "force",
    "json",
    "lenient",
    "list",
    "once",
    "replace",
    "warm",
    "which",
];

/// The variable of a flag that is declared by `verbs` of `tool`, or by the tool itself where there are none.
pub(super) fn variable(tool: &str, verbs: &[String], flag: &str) -> Option<String> {
    if ONE_SHOT.contains(&flag) {
        return None;
    }
    let words = std::iter::once(tool)
        .chain(verbs.iter().map(String::as_str))
        .chain([flag]);
    let words: Vec<String> = words
        .map(|word| word.replace('-', "_").to_uppercase())
        .collect();
    Some(format!("HOSTKIT_{}", words.join("_")))
}

/// Gives a flag its variable, or that of an old name if only that is set. An empty variable is an unset one.
pub(super) fn with_variable(arg: Arg, tool: &str, verbs: &[String], names: &[String]) -> Arg {
    let variables: Vec<String> = names
        .iter()
        .filter_map(|name| variable(tool, verbs, name))
        .collect();
    let value = |variable: &String| std::env::var_os(variable);
    let set = variables
        .iter()
        .find(|variable| value(variable).is_some_and(|value| !value.is_empty()));
    let first = variables.first().filter(|first| value(first).is_none());
    match set.or(first) {
        Some(variable) => arg.env(variable.clone()).hide_env_values(true),
        None => arg,
    }
}

/// The command without the variables that this command line overrides: those of flags that exclude one it gives, and,
/// if it names a verb, those of flags that the verb does not have.
pub(super) fn applicable(command: Command, exclusive: &[&[&str]], line: &[OsString]) -> Command {
    // Most of the time none is set, and one parsing is enough.
    if !is_concerned(&command, exclusive) {
        return command;
    }
    // The command line alone. Its errors are reported by the real parsing after this one.
    let line_only = without_variables(command.clone()).ignore_errors(true);
    match line_only.try_get_matches_from(line) {
        Ok(given) => without_overridden(command, exclusive, &given),
        // `--help` and `--version`.
        Err(_) => command,
    }
}

/// Whether a variable is set that a command line could override.
fn is_concerned(command: &Command, exclusive: &[&[&str]]) -> bool {
    let has_verbs = command.has_subcommands();
    let is_set = |arg: &Arg| {
        arg.get_env()
            .is_some_and(|name| std::env::var_os(name).is_some())
    };
    let in_groups = |arg: &Arg| exclusive.iter().any(|group| in_group(arg, group));
    command
        .get_arguments()
        .any(|arg| is_set(arg) && ((has_verbs && !arg.is_global_set()) || in_groups(arg)))
        || command
            .get_subcommands()
            .any(|verb| is_concerned(verb, exclusive))
}

pub(super) fn without_variables(command: Command) -> Command {
    command
        .mut_args(|arg| arg.env(None::<&str>))
        .mut_subcommands(without_variables)
}

fn without_overridden(command: Command, exclusive: &[&[&str]], given: &ArgMatches) -> Command {
    let verb = given.subcommand();
    let is_excluded = |arg: &Arg| {
        let of_arg = exclusive.iter().filter(|group| in_group(arg, group));
        of_arg.copied().flatten().any(|flag| {
            arg.get_long() != Some(flag) && layer(flag, given) == Some(ValueSource::CommandLine)
        })
    };
    command
        .mut_args(|arg| {
            let is_unknown_there = verb.is_some() && !arg.is_global_set();
            match is_unknown_there || is_excluded(&arg) {
                true => arg.env(None::<&str>),
                false => arg,
            }
        })
        .mut_subcommands(|sub| match verb {
            Some((name, given)) if sub.get_name() == name => {
                without_overridden(sub, exclusive, given)
            }
            _ => sub,
        })
}

/// Refuses two flags of one layer that exclude one another.
pub(super) fn exclude(
    command: &mut Command,
    exclusive: &[&[&str]],
    matches: &ArgMatches,
) -> Result<(), clap::Error> {
    for source in [ValueSource::CommandLine, ValueSource::EnvVariable] {
        for group in exclusive {
            let named: Vec<String> = command
                .get_arguments()
                .filter(|arg| in_group(arg, group))
                .filter_map(|arg| {
                    let flag = arg.get_long()?;
                    (layer(flag, matches) == Some(source)).then_some(())?;
                    Some(match source {
                        ValueSource::EnvVariable => arg.get_env()?.to_string_lossy().into_owned(),
                        _ => format!("--{flag}"),
                    })
                })
                .collect();
            if named.len() > 1 {
                let text = format!("{} exclude one another: give one", named.join(" and "));
                return Err(command.error(ErrorKind::ArgumentConflict, text));
            }
        }
    }
    match matches.subcommand() {
        Some((name, matches)) => match command.find_subcommand_mut(name) {
            Some(verb) => exclude(verb, exclusive, matches),
            None => Ok(()),
        },
        None => Ok(()),
    }
}

fn in_group(arg: &Arg, group: &[&str]) -> bool {
    arg.get_long().is_some_and(|flag| group.contains(&flag))
}

/// Whether the command line or the environment names one of these flags: then a file's values of them do not count.
#[cfg(feature = "config")]
pub(super) fn names_any(flags: &[&str], matches: &ArgMatches) -> bool {
    flags.iter().any(|flag| layer(flag, matches).is_some())
}

/// Where a flag is named: on the command line or in the environment. A switch that is turned off names nothing.
fn layer(flag: &str, matches: &ArgMatches) -> Option<ValueSource> {
    let id = flag.replace('-', "_");
    // An error is a flag of another verb, or one with another value than a boolean.
    let is_here = matches!(matches.try_contains_id(&id), Ok(true));
    let is_off = matches!(matches.try_get_one::<bool>(&id), Ok(Some(false)));
    let source = is_here.then(|| matches.value_source(&id)).flatten()?;
    (source != ValueSource::DefaultValue && !is_off).then_some(source)
}
