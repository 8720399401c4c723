//! pexrun: runs a build by job name and git hash. It is fetched once per host by the `s3cache` crate; then this process
//! becomes the program.

pub mod arch;
pub mod cli;
pub mod config;
pub mod find;
pub mod launch;
pub mod listing;
pub mod names;

pub use cli::Args;
pub use config::Config;

use hostkit::{Exit, Failure, out};
use launch::Launch;
use s3cache::source::is_immutable;

/// Does what the command line asks for. As a launcher it exits with 125, 126 or 127 where the program did not run.
///
/// # Errors
/// See above.
pub fn run(args: Args) -> Result<Exit, Failure> {
    go(&args).map_err(|failure| match failure.exit() {
        Exit::NOT_EXECUTABLE | Exit::NO_SUCH_PROGRAM => failure,
        _ => failure.with_exit(Exit::LAUNCHER_FAILED),
    })
}

fn go(args: &Args) -> Result<Exit, Failure> {
    let config = Config::load(args)?;
    if args.list {
        return listing::run(&config, args.job.as_deref(), args.cached, args.json);
    }
    let (Some(job), Some(version)) = (&args.job, &args.build) else {
        return Err(
            Failure::new(Exit::LAUNCHER_FAILED, "a job and a version are needed")
                .remedy("pexrun JOB HASH_OR_VERSION [ARGS...], or pexrun --list JOB"),
        );
    };
    for word in [job, version] {
        if word.contains('/') || word.starts_with('.') || word.chars().any(char::is_control) {
            return Err(Failure::new(
                Exit::LAUNCHER_FAILED,
                format!("{word:?} is not the name of a job or a version"),
            )
            .remedy("give the names as they are in the repository"));
        }
    }
    if args.dry_run {
        return dry_run(&config, job, version, args);
    }
    let blob = find::build(&config, job, version)?;
    if args.which {
        out::line(blob.path.display())?;
    }
    if args.warm {
        return launch::warm(&config, blob);
    }
    if args.which || args.fetch_only {
        return Ok(Exit::OK);
    }
    launch::check_interpreter(&blob.path)?;
    let argv: Vec<_> = std::env::args_os().collect();
    Launch::new(&config, blob, &cli::untouched(&args.args, &argv)).exec()
}

/// Says what would be run when it is cached, and what would be asked for when not.
fn dry_run(config: &Config, job: &str, version: &str, args: &Args) -> Result<Exit, Failure> {
    for repository in &config.repositories {
        for name in config.names(job, version) {
            let source = find::source(repository, &name)?;
            match s3cache::cached(&source, &config.settings) {
                Some(blob) if is_immutable(&name) => {
                    out::line(format_args!("cached {source}"))?;
                    out::line(format_args!(
                        "run {}",
                        Launch::new(config, blob, &args.args).shown()
                    ))?;
                    return Ok(Exit::OK);
                }
                Some(_) => out::line(format_args!("revalidate {source}"))?,
                None => out::line(format_args!("ask {source}"))?,
            }
        }
    }
    Ok(Exit::OK)
}
