//! The command line of s3cache. The settings of a fetch are `settings`'s; the verbs have modules of their own.

use std::path::PathBuf;

use clap::{Arg, Parser, Subcommand};
use hostkit::Exit;
use hostkit::cli::{Common, Tool};

use crate::digest;
use crate::settings::FetchArgs;
use crate::verbs;

const USAGE: &str = "\
s3cache [OPTIONS] SOURCE [--copy-to PATH]
       s3cache [OPTIONS] COMMAND ...";

const SOURCES: &str = "SOURCE is https://host/path, http://host/path, s3://bucket/key, bucket/key (s3) or file:///path.";

const DETAILS: &str = "\
A name with a git hash or a version never changes: once cached, it is served without a connection. Any other name is
revalidated on every use.

SIZE is bytes, or a number with K, M, G or T (powers of 1024). DUR is seconds, or a number with ms, s, m, h or d.";

const EXIT_CODES: &str = "\
Exit codes: 0 ok, 2 usage, 65 corrupt, 66 not found, 69 unreachable, 73 cannot write, 74 I/O error, 75 try again,
77 denied, 78 bad configuration.";

/// Fetch an artifact once per host, verify it, cache it, and copy it into place
#[derive(Debug, Parser)]
#[command(
    after_help = format!("{SOURCES}\n\n{EXIT_CODES}"),
    after_long_help = format!("{SOURCES}\n\n{DETAILS}\n\n{EXIT_CODES}"),
    override_usage = USAGE,
    subcommand_negates_reqs = true
)]
pub struct Args {
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
    /// Artifact to fetch
    #[arg(required_unless_present = "check")]
    pub(crate) source: Option<String>,
    /// Copy the artifact to this path, or into this directory if it ends in a slash. Without --copy-to the artifact is
    /// cached and its path in the cache printed
    #[arg(long, value_name = "PATH")]
    pub(crate) copy_to: Option<PathBuf>,
    /// Mode of the copy, in octal
    #[arg(long, value_name = "MODE", value_parser = parse_mode, default_value = "0644")]
    pub(crate) mode: u32,
    /// Unpack the artifact (tar, tgz, gz) into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) unpack_to: Option<PathBuf>,
    /// SHA-256 that the artifact must have
    #[arg(long, value_name = "HEX", value_parser = digest::parse)]
    pub(crate) sha256: Option<String>,
    /// Validate the configuration, print every setting and its origin, and exit
    #[arg(long)]
    pub(crate) check: bool,
    #[command(flatten)]
    pub(crate) fetch: FetchArgs,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List what is cached, or what a store has below s3://bucket/prefix/
    Ls(verbs::ls::LsArgs),
    /// Read every cached artifact again and compare its digest
    Verify(verbs::verify::VerifyArgs),
    /// Remove garbage, and artifacts over the size limits; as root, of all users
    Gc(verbs::gc::GcArgs),
    /// Remove artifacts from the cache
    Rm(verbs::rm::RmArgs),
    /// Print the size of the cache
    Stats(verbs::stats::StatsArgs),
    /// Check that an artifact is published, without fetching it
    Exists(verbs::exists::ExistsArgs),
    /// Publish an artifact with its SHA-256
    Put(verbs::put::PutArgs),
}

impl Tool for Args {
    const NAME: &'static str = "s3cache";
    const USAGE_EXIT: Exit = Exit::USAGE;
    const EXCLUSIVE: &[&[&str]] = &[FetchArgs::FRESHNESS];
    fn is_used(verb: &str, flag: &Arg) -> bool {
        let reads_store = matches!(verb, "ls" | "exists" | "put");
        match (flag.get_help_heading(), flag.get_long()) {
            (_, Some("config")) => true,
            (Some("Cache"), Some("cache-dir")) => !matches!(verb, "exists" | "put"),
            (Some("Cache"), _) => verb == "gc",
            // The index names artifacts of S3 with their service.
            (Some("S3"), _) => reads_store || matches!(verb, "verify" | "rm"),
            (Some("Network"), _) => reads_store,
            _ => true,
        }
    }
    fn common(&self) -> &Common {
        &self.common
    }
}

fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("a mode is three octal digits, such as 0755".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        hostkit::cli::parse::<Args, _>(line.split_whitespace()).map(|(args, _)| args)
    }

    #[test]
    fn the_line_of_the_blog() {
        let args = parse(
            "s3cache https://repo:7443/pex/a.pex --cache-dir=/mnt/s3cache --copy-to=a.pex --console --loglevel=debug --logstash_format",
        )
        .unwrap();
        assert_eq!(args.copy_to.unwrap().to_str(), Some("a.pex"));
        assert_eq!(args.fetch.cache_dir.to_str(), Some("/mnt/s3cache"));
        assert!(args.common.logstash_format);
    }

    #[test]
    fn verbs_and_sources() {
        assert!(matches!(
            parse("s3cache ls --json").unwrap().verb,
            Some(Verb::Ls(_))
        ));
        for line in ["gc --cache-dir /c --max-size 1G", "--max-size 1G gc"] {
            let args = parse(&format!("s3cache {line}")).unwrap();
            assert_eq!(args.fetch.max_size, 1 << 30, "{line}");
        }
        // A flag that a verb does not use may stand in a common command line.
        for line in ["--ca-file /x stats", "stats --ca-file /x"] {
            let args = parse(&format!("s3cache {line}")).unwrap();
            assert!(args.fetch.ca_file.is_some(), "{line}");
        }
        assert!(parse("s3cache").is_err());
        assert!(parse("s3cache --check").unwrap().check);
        assert!(parse("s3cache b/k --sha256=abc").is_err());
        assert!(parse("s3cache b/k --mode=9").is_err());
        assert!(parse("s3cache b/k --part-size=0").is_err());
        assert!(parse("s3cache b/k --max-rate=0").is_err());
        assert!(parse("s3cache b/k --offline=False --revalidate=1").is_ok());
    }
}
