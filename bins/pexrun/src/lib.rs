//! pexrun runs a build by job name and git hash. The `s3cache` crate fetches it once per host; then this process
//! becomes the program.

mod arch;
mod build_lookup;
mod cli;
mod config;
mod launch;
mod listing;
mod name_template;

pub use cli::Args;

/// For the demo, whose builds have the names that this host expects.
#[doc(hidden)]
pub mod testing {
    pub use crate::arch::host_arch;
}

use config::{Config, ConfigSources};
use hostkit::cli::CommandLine;
use hostkit::{Exit, Failure, stdout};
use launch::ProgramLaunch;
use name_template::spellings;
use s3cache::Freshness;
use serde_json::json;

/// Runs the tool. When the program could not be started it exits with 125, 126 or 127.
///
/// # Errors
/// The failures behind these exit codes; an invalid configuration with `--check` (exit 78).
pub fn run(args: Args, line: &CommandLine) -> Result<Exit, Failure> {
    check_usage(&args, line)?;
    if args.check {
        return check(line);
    }
    go(&args, line).map_err(|failure| match failure.exit() {
        Exit::NOT_EXECUTABLE | Exit::NO_SUCH_PROGRAM => failure,
        _ => failure.with_exit(Exit::LAUNCHER_FAILED),
    })
}

/// Prints the configuration. No program would run, so an invalid one is exit 78, as for the other tools.
fn check(line: &CommandLine) -> Result<Exit, Failure> {
    let (config, mut sources) = Config::read(line)?;
    let repositories = config.repositories.iter();
    let examples: Vec<_> = repositories
        .map(|repository| build_lookup::source(repository, "job"))
        .collect::<Result<_, _>>()?;
    let ConfigSources {
        table,
        s3cache_files,
    } = &mut sources;
    s3cache::complete_check(&config.settings, s3cache_files, &examples, table)?;
    stdout::print_text(&table.to_string())?;
    Ok(Exit::OK)
}

/// Rejects flags that would have no effect. Their variables are allowed, because they may be meant for other runs.
///
/// # Errors
/// A flag has no effect (exit 125).
fn check_usage(args: &Args, line: &CommandLine) -> Result<(), Failure> {
    let usage =
        |text: &str, remedy: &str| Err(Failure::new(Exit::LAUNCHER_FAILED, text).remedy(remedy));
    if args.check {
        let others = [
            args.job.is_some(),
            args.list,
            args.cached,
            args.which,
            args.fetch_only,
            args.warm,
            args.dry_run,
            args.json,
        ];
        if others.contains(&true) {
            let text = "--check validates the configuration and takes no build";
            return usage(text, "leave out JOB and the other actions");
        }
    }
    if line.has_flag("limit") && !args.list {
        return usage("--limit needs --list", "leave it out, or add --list");
    }
    if args.json && !args.list && !args.which {
        return usage(
            "--json needs --list or --which",
            "leave it out, or add one of them",
        );
    }
    Ok(())
}

fn go(args: &Args, line: &CommandLine) -> Result<Exit, Failure> {
    let named = named(args)?;
    let config = Config::load(line)?;
    let Some((job, version)) = named else {
        let cached_only = args.cached || config.settings.freshness == Freshness::Offline;
        return listing::run(&config, args, cached_only);
    };
    if args.dry_run {
        return dry_run(&config, job, version, args);
    }
    let blob = build_lookup::build(&config, job, version)?;
    if args.which && args.json {
        let entry = &blob.entry;
        stdout::print_json(
            &json!({"path": blob.path.display().to_string(), "source": entry.source, "sha256": entry.sha256,
            "size": entry.size}),
        )?;
    } else if args.which {
        stdout::print_line(blob.path.display())?;
    }
    if args.warm {
        return launch::warm(&config, blob);
    }
    if args.which || args.fetch_only {
        return Ok(Exit::OK);
    }
    launch::check(&blob.path)?;
    ProgramLaunch::new(&config, blob, args.version().map_or(&[], |(_, args)| args)).exec()
}

/// The job and version to run; `None` for a listing.
fn named(args: &Args) -> Result<Option<(&str, &str)>, Failure> {
    let usage = |text: String| Failure::new(Exit::LAUNCHER_FAILED, text);
    let version = match args.version() {
        Some((version, _)) => Some(version.to_str().ok_or_else(|| {
            usage(format!("invalid version {version:?}")).remedy("write it as in the repository")
        })?),
        None => None,
    };
    for word in [args.job.as_deref(), version].into_iter().flatten() {
        // They become part of paths and URLs.
        let strange = |c: char| c.is_control() || c.is_whitespace() || "/\\?#%*".contains(c);
        if word.is_empty() || word.starts_with('.') || word.contains(strange) {
            return Err(usage(format!("invalid job or version {word:?}"))
                .remedy("write the names as in the repository"));
        }
    }
    if args.list {
        if args.job.is_none() && !args.cached && !args.fetch.offline {
            return Err(usage("--list needs a job".to_owned()).remedy("name one, or add --cached"));
        }
        if let Some(version) = version {
            return Err(
                usage(format!("--list takes a job and no version ({version:?})"))
                    .remedy("leave out what follows the job"),
            );
        }
        let others = [
            ("--which", args.which),
            ("--fetch-only", args.fetch_only),
            ("--warm", args.warm),
            ("--dry-run", args.dry_run),
        ];
        if let Some((flag, _)) = others.iter().find(|(_, is_given)| *is_given) {
            return Err(
                usage(format!("--list and {flag} exclude each other")).remedy("use only one")
            );
        }
        return Ok(None);
    }
    if args.cached {
        return Err(usage("--cached needs --list".to_owned())
            .remedy("use --offline to run only cached builds"));
    }
    match (&args.job, version) {
        (Some(job), Some(version)) => Ok(Some((job, version))),
        (Some(job), None) => Err(usage(format!("missing version of {job}")).remedy(format!(
            "write pexrun {job} HASH_OR_VERSION [ARGS...]; `pexrun --list {job}` lists the builds"
        ))),
        _ => Err(usage("missing job and version".to_owned())
            .remedy("write pexrun JOB HASH_OR_VERSION [ARGS...], or pexrun --list JOB")),
    }
}

/// Prints the command if the build is cached, and otherwise the requests that would be made. Sends none.
fn dry_run(config: &Config, job: &str, version: &str, args: &Args) -> Result<Exit, Failure> {
    let names = config.names(job, version);
    let offline = config.settings.freshness == Freshness::Offline;
    let cached = match build_lookup::cached::from_cache(config, &names)? {
        None if offline => Some(build_lookup::build(config, job, version)?),
        cached => cached,
    };
    if let Some(blob) = cached {
        stdout::print_line(format_args!("cached {}", blob.entry.source))?;
        let launch = ProgramLaunch::new(config, blob, args.version().map_or(&[], |(_, args)| args));
        stdout::print_line(format_args!("run {}", launch.command_line()))?;
        return Ok(Exit::OK);
    }
    for repository in &config.repositories {
        for name in &names {
            let source = build_lookup::source(repository, name)?;
            let verb = match s3cache::find_cached(&source, &config.settings) {
                Some(_) => "revalidate",
                None => "fetch",
            };
            stdout::print_line(format_args!("{verb} {source}"))?;
        }
        for version in spellings(version)
            .iter()
            .filter(|version| build_lookup::is_short(version))
        {
            let prefix = format!("{}{version}", config.pex_name.prefix(job));
            stdout::print_line(format_args!(
                "list {}",
                build_lookup::source(repository, &prefix)?
            ))?;
        }
    }
    Ok(Exit::OK)
}
