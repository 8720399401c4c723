//! The command line of pexrun. Everything behind the version belongs to the program that is run.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::Parser;
use hostkit::Exit;
use hostkit::cli::{AT_START, Common, Tool};
use hostkit::log::LogLevel;
use s3cache::FetchArgs;

use crate::build_lookup;

const USAGE: &str = "\
pexrun [OPTIONS] JOB HASH_OR_VERSION [ARGS...]
       pexrun --list [--cached] [JOB]";

const FILES: &str = "\
/etc/hostkit/pexrun.yaml, then ~/.config/hostkit/pexrun.yaml, have the repositories:
  repository: s3://builds/pex";

const DETAILS: &str = "\
The version is a git hash (a unique prefix is enough where the repository can be listed), a version number, or
`static` for the build that has none, which is always revalidated.

SIZE is bytes, or a number with K, M, G or T (powers of 1024). DUR is seconds, or a number with ms, s, m, h or d.";

const EXIT_CODES: &str = "\
Exit codes: 125 pexrun itself failed, 126 the build cannot be executed, 127 the build does not exist, otherwise the
program's own.";

/// Run a build by job name and git hash: fetched once per host, then exec
#[derive(Debug, Parser)]
#[command(
    after_help = format!("{FILES}\n\n{EXIT_CODES}"),
    after_long_help = format!("{DETAILS}\n\n{FILES}\n\n{EXIT_CODES}"),
    override_usage = USAGE
)]
pub struct Args {
    /// Name of the job
    #[arg(value_name = "JOB")]
    pub(crate) job: Option<String>,
    /// Git hash, version, or `static`; every word after it is an argument of the program
    // One argument for both: clap reads no flags behind its first value, and would in front of an argument of its own.
    #[arg(value_name = "HASH_OR_VERSION", trailing_var_arg = true)]
    pub(crate) build: Vec<OsString>,

    /// Repositories of builds, tried in this order. Repeatable, or with commas
    #[arg(long, value_name = "URL", value_delimiter = ',', value_parser = parse_repository, group = AT_START)]
    pub(crate) repository: Vec<String>,
    /// Read this configuration of s3cache instead of /etc/hostkit/s3cache.yaml (also HOSTKIT_S3CACHE_CONFIG)
    #[arg(long, value_name = "FILE")]
    pub(crate) s3cache_config: Option<PathBuf>,
    /// Architecture in the names of builds; that of this host by default, such as trusty_x86_64
    #[arg(long, value_name = "ARCH", group = AT_START)]
    pub(crate) arch: Option<String>,

    /// List the builds of JOB, newest first
    #[arg(long, help_heading = "Instead of running")]
    pub(crate) list: bool,
    /// With --list: only cached builds; without JOB, those of every job
    #[arg(long, help_heading = "Instead of running")]
    pub(crate) cached: bool,
    /// With --list: show only the N builds published last
    #[arg(long, value_name = "N", default_value = "10000", value_parser = clap::value_parser!(u64).range(1..=1_000_000), help_heading = "Instead of running")]
    pub(crate) limit: u64,
    /// Print the path of the build in the cache
    #[arg(long, help_heading = "Instead of running")]
    pub(crate) which: bool,
    /// Fetch the build, and do not run it
    #[arg(long, help_heading = "Instead of running")]
    pub(crate) fetch_only: bool,
    /// Fetch and unpack the build, so that its first run is as fast as the next
    #[arg(long, help_heading = "Instead of running")]
    pub(crate) warm: bool,
    /// Validate the configuration, print every setting and its origin, and exit (0 or 78)
    #[arg(long, help_heading = "Instead of running")]
    pub(crate) check: bool,
    /// Print the actions, and do not run the build
    #[arg(long, help_heading = "Instead of running")]
    pub(crate) dry_run: bool,
    /// With --list and --which: print one JSON object per line
    #[arg(long, help_heading = "Instead of running")]
    pub(crate) json: bool,

    // Its `--config` is pexrun's own file here.
    #[command(flatten)]
    pub(crate) fetch: FetchArgs,
    #[command(flatten)]
    pub(crate) common: Common,
}

fn parse_repository(text: &str) -> Result<String, String> {
    match build_lookup::source(text, "JOB") {
        Ok(_) => Ok(text.to_owned()),
        Err(failure) => Err(failure.to_string()),
    }
}

impl Tool for Args {
    const NAME: &'static str = "pexrun";
    const USAGE_EXIT: Exit = Exit::LAUNCHER_FAILED;
    const EXCLUSIVE: &[&[&str]] = &[FetchArgs::FRESHNESS];
    // stderr is the program's: it gets messages of pexrun only about problems.
    const LOGLEVEL: LogLevel = LogLevel::Warning;
    fn common(&self) -> &Common {
        &self.common
    }
}

impl Args {
    /// The version, and the program's arguments.
    pub(crate) fn version(&self) -> Option<(&OsStr, &[OsString])> {
        let (version, args) = self.build.split_first()?;
        Some((version, args))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program_args(line: &str) -> Vec<OsString> {
        let (args, _) = hostkit::cli::parse::<Args, _>(line.split_whitespace()).unwrap();
        assert_eq!(args.job.as_deref(), Some("job"), "{line}");
        let (version, args) = args.version().unwrap();
        assert_eq!(version, "60a43ef", "{line}");
        args.to_vec()
    }

    #[test]
    fn everything_behind_the_version_is_the_programs() {
        for tail in [
            "",
            "--help",
            "-h --version",
            "--list x",
            "--arch=y -- z",
            "--console --logstash_format",
            "--",
            "-- --",
            "-- --port=1",
            "a --offline",
            "-",
        ] {
            let line = format!("pexrun --cache-dir=/c --arch a job 60a43ef {tail}");
            let expected: Vec<OsString> = tail.split_whitespace().map(OsString::from).collect();
            assert_eq!(program_args(&line), expected, "{line}");
            let line = format!("pexrun --arch=a -- job 60a43ef {tail}");
            assert_eq!(program_args(&line), expected, "{line}");
        }
    }

    #[test]
    fn several_repositories() {
        let (args, _) =
            hostkit::cli::parse::<Args, _>(["pexrun", "--repository=s3://a,https://b", "job", "v"])
                .unwrap();
        assert_eq!(args.repository, ["s3://a", "https://b"]);
    }
}
