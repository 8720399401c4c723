//! The command line of s3cache: what can be asked of it. What is done lives in the modules named after the verbs.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use hostkit::Exit;
use hostkit::cli::{Common, Tool};

use crate::digest;
use crate::settings::FetchArgs;
use crate::verbs;

const USAGE: &str = "\
s3cache [OPTIONS] SOURCE [--copy-to PATH]
       s3cache [OPTIONS] COMMAND ...";

const AFTER_HELP: &str = "\
SOURCE is https://host/path, http://host/path, s3://bucket/key, bucket/key (s3) or file:///path.

A name with a git hash or a version never changes: once cached, it is served without a connection. Any other name is
revalidated on every use.

SIZE is bytes, or a number with K, M, G or T (powers of 1024). DUR is seconds, or a number with ms, s, m, h or d.

Exit codes: 0 ok, 2 usage, 65 corrupt, 66 not found, 69 unreachable, 73 cannot write, 74 I/O error, 75 try again,
77 denied, 78 bad configuration.";

/// Fetch an artifact once per host, verify it, keep it, and copy it into place
#[derive(Debug, Parser)]
#[command(after_help = AFTER_HELP, override_usage = USAGE, subcommand_negates_reqs = true)]
pub struct Args {
    /// Something else than fetching
    #[command(subcommand)]
    pub verb: Option<Verb>,
    /// The artifact
    #[arg(required_unless_present = "check")]
    pub source: Option<String>,
    /// Copy it here, with a slash at the end into this directory; without this it is only cached, and its path in the
    /// cache printed
    #[arg(long, value_name = "PATH")]
    pub copy_to: Option<PathBuf>,
    /// The mode of the copy, in octal
    #[arg(long, value_name = "MODE", value_parser = mode, default_value = "0644")]
    pub mode: u32,
    /// Unpack it (tar, tgz, gz) into this directory
    #[arg(long, value_name = "DIR")]
    pub unpack_to: Option<PathBuf>,
    /// The SHA-256 it must have
    #[arg(long, value_name = "HEX", value_parser = digest::parse)]
    pub sha256: Option<String>,
    /// Read and validate the configuration, print what is in force, and stop
    #[arg(long)]
    pub check: bool,
    /// How it is fetched.
    #[command(flatten)]
    pub fetch: FetchArgs,
    /// Logging.
    #[command(flatten)]
    pub common: Common,
}

/// What else can be done with artifacts.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List what is cached, or what a store has below s3://bucket/prefix/
    Ls(verbs::ls::LsArgs),
    /// Read every cached artifact again and compare its digest
    Verify(verbs::verify::VerifyArgs),
    /// Remove garbage and what is over the bounds; as root, for all users
    Gc(verbs::gc::GcArgs),
    /// Remove artifacts from the cache
    Rm(verbs::rm::RmArgs),
    /// Say how much is cached
    Stats(verbs::stats::StatsArgs),
    /// Ask whether an artifact is published, without fetching it
    Exists(verbs::exists::ExistsArgs),
    /// Publish an artifact with its SHA-256
    Put(verbs::put::PutArgs),
}

impl Tool for Args {
    const NAME: &'static str = "s3cache";
    const USAGE_EXIT: Exit = Exit::USAGE;
    const EXCLUSIVE: &[&[&str]] = &[FetchArgs::FRESHNESS];
    fn common(&self) -> &Common {
        &self.common
    }
}

fn mode(text: &str) -> Result<u32, String> {
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
        assert_eq!(args.fetch.cache_dir.unwrap().to_str(), Some("/mnt/s3cache"));
        assert!(args.common.logstash_format);
    }

    #[test]
    fn verbs_and_sources() {
        assert!(matches!(
            parse("s3cache ls --json").unwrap().verb,
            Some(Verb::Ls(_))
        ));
        assert!(
            parse("s3cache gc --cache-dir /c --max-size 1G")
                .unwrap()
                .fetch
                .max_size
                .is_some()
        );
        assert!(parse("s3cache").is_err());
        assert!(parse("s3cache --check").unwrap().check);
        assert!(parse("s3cache b/k --sha256=abc").is_err());
        assert!(parse("s3cache b/k --mode=9").is_err());
        assert!(parse("s3cache b/k --part-size=0").is_err());
        assert!(parse("s3cache b/k --max-rate=0").is_err());
        assert!(parse("s3cache b/k --offline=False --revalidate=1").is_ok());
    }
}
