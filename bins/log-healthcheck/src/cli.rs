//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use hostkit::Exit;
use hostkit::cli::{Common, Tool};
use hostkit::health::HealthFlags;
use hostkit::log::LogLevel;
use hostkit::{nagios, units};

const AFTER_HELP: &str = "\
The time of a line is the one it carries (JSON: @timestamp, timestamp or time; other lines: at their beginning), else
the file's modification time at the first check that finds it.

Exit codes of Nagios: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN (also for an invalid command line).";

/// Checks that a log line with a given prefix was written within the last N seconds
///
/// Without --port it checks once and returns the result as exit code, for Aurora's shell checks and for Nagios.
#[derive(Debug, Clone, Parser)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Process whose logs to check (.logs/NAME in the sandbox), or the absolute path of its run directories
    #[arg(long, value_name = "NAME", required_unless_present = "file")]
    pub app_directory: Option<PathBuf>,
    /// Logs to check, with the wildcards * ? and [..]
    #[arg(long, value_name = "GLOB", num_args = 1..)]
    pub file: Vec<PathBuf>,
    /// Beginning of a matching line; empty matches any line
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        allow_hyphen_values = true
    )]
    pub line_pattern: String,
    /// Treat the pattern as a regular expression, anchored at the beginning of the line
    #[arg(long)]
    pub regex: bool,
    /// Maximum age of the newest matching line; CRITICAL beyond
    #[arg(short = 'c', long, value_name = "DURATION", value_parser = units::parse_duration)]
    pub freshness: Duration,
    /// Age of the newest matching line beyond which the result is WARNING, a failure for Aurora
    #[arg(short = 'w', long, value_name = "DURATION", value_parser = units::parse_duration)]
    pub warning: Option<Duration>,
    /// Extra freshness, of which each instance of a job gets a different share ($CB_AURORA_INSTANCE)
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = units::parse_duration)]
    pub spread: Duration,
    /// Interpret times without a zone as UTC instead of ignoring them
    #[arg(long)]
    pub assume_utc: bool,
    /// Time of a line: the one it carries, if any, or always the file's modification time
    #[arg(long, value_name = "SOURCE", default_value = "line")]
    pub time_from: TimeSource,
    /// File that stores the state between checks [default: .log-healthcheck-HASH in the sandbox]
    #[arg(long, value_name = "FILE")]
    pub state_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Serve Aurora's health checks on this port of 127.0.0.1 and ::1 (`{{thermos.ports[health]}}`) instead of checking
    /// once
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Aurora's health contract. Without a port, `--grace` counts from the first check.
    #[command(flatten)]
    pub health: HealthFlags,
    /// Flags that all tools have.
    #[command(flatten)]
    pub common: Common,
}

/// The source of a line's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TimeSource {
    /// The line, if it carries a time; else the file.
    Line,
    /// The file's modification time.
    File,
}

impl Tool for Args {
    const NAME: &'static str = "log-healthcheck";
    const USAGE_EXIT: Exit = Exit::from_code(3);
    const LOGLEVEL: LogLevel = LogLevel::Info;
    fn is_plugin(line: &[OsString]) -> bool {
        !nagios::has_switch(line, "--port")
    }
    fn common(&self) -> &Common {
        &self.common
    }
}

/// The share of `--spread` of an instance: multiples of the golden ratio, which are far apart for any number of
/// instances.
pub(crate) fn spread_share(spread: Duration, instance: u64) -> Duration {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    // Instances are numbered from 0; the modulus keeps the fraction exact for any number.
    spread.mul_f64(((instance % 1_000_000) as f64 * GOLDEN).fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Args, clap::Error> {
        hostkit::cli::parse::<Args, _>(line.split_whitespace()).map(|(args, _)| args)
    }

    #[test]
    fn both_spellings_of_flags_are_accepted() {
        for line in [
            "log-healthcheck --app-directory eightball --line-pattern { --freshness 100",
            "check_log_health --app_directory=eightball --line_pattern={ --freshness=100",
        ] {
            let args = parsed(line).unwrap();
            assert_eq!(args.app_directory.unwrap().to_str(), Some("eightball"));
            assert_eq!(args.line_pattern, "{");
            assert_eq!(args.freshness, Duration::from_secs(100));
        }
        let args = parsed("l --file a b --freshness 1m --line-pattern -x").unwrap();
        assert_eq!((args.file.len(), args.line_pattern.as_str()), (2, "-x"));
        let args = parsed("l --file a -w 1m -c 100").unwrap();
        let ages = (args.warning.unwrap().as_secs(), args.freshness.as_secs());
        assert_eq!(ages, (60, 100));
        assert!(parsed("l --freshness 100").is_err());
        assert!(parsed("l --file a").is_err());
    }

    #[test]
    fn shares_of_instances_are_far_apart() {
        let spread = Duration::from_secs(120);
        let mut shares: Vec<Duration> = (0..12)
            .map(|instance| spread_share(spread, instance))
            .collect();
        shares.sort();
        let gap = |pair: &[Duration]| pair[1] - pair[0];
        assert!(shares.windows(2).map(gap).min().unwrap() > Duration::from_secs(5));
        assert!(shares.iter().all(|spread_share| *spread_share < spread));
        assert!(spread_share(spread, u64::MAX) < spread);
    }
}
