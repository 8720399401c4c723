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
A line's time is the one it carries (JSON: @timestamp, timestamp or time; other lines: at their beginning), else the
file's time of modification at the first check that finds it.

Exit codes, as Nagios has them: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN (a wrong command line too).";

/// Tells whether a line that begins with a pattern was written to a log lately
///
/// Without --port it looks once and says so by its exit code, for Aurora's shell checks and for Nagios.
#[derive(Debug, Clone, Parser)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The process whose logs are looked at, .logs/NAME in the sandbox; or the directory of its runs, as an absolute path
    #[arg(long, value_name = "NAME", required_unless_present = "file")]
    pub app_directory: Option<PathBuf>,
    /// Logs to look at; * ? and [..] are understood
    #[arg(long, value_name = "GLOB", num_args = 1..)]
    pub file: Vec<PathBuf>,
    /// What a line must begin with; empty for any line
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        allow_hyphen_values = true
    )]
    pub line_pattern: String,
    /// The pattern is a regular expression, matched at the beginning of a line
    #[arg(long)]
    pub regex: bool,
    /// How old the newest such line may be; older is CRITICAL
    #[arg(short = 'c', long, value_name = "DURATION", value_parser = units::parse_duration)]
    pub freshness: Duration,
    /// How old it may be without being WARNING, which Aurora takes for a failure
    #[arg(short = 'w', long, value_name = "DURATION", value_parser = units::parse_duration)]
    pub warning: Option<Duration>,
    /// A share of this is added to it, another one for each instance of a job ($CB_AURORA_INSTANCE)
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = units::parse_duration)]
    pub spread: Duration,
    /// Times without a zone are UTC; else they are no times
    #[arg(long)]
    pub assume_utc: bool,
    /// What a line's time is: the one it carries, where it carries one, or always the file's time of modification
    #[arg(long, value_name = "SOURCE", default_value = "line")]
    pub time_from: TimeFrom,
    /// What is remembered from one check to the next [default: .log-healthcheck-HASH in the sandbox]
    #[arg(long, value_name = "FILE")]
    pub state_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Answer Aurora's health checks on this port of 127.0.0.1 and ::1, `{{thermos.ports[health]}}`, instead of looking
    /// once
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// The contract with Aurora. `--grace` counts from the first check where there is no port.
    #[command(flatten)]
    pub health: HealthFlags,
    /// Flags that all tools have.
    #[command(flatten)]
    pub common: Common,
}

/// Where the time of a line comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TimeFrom {
    /// The line, if it carries a time; else the file.
    Line,
    /// The file's time of modification.
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

/// The share of `--spread` that an instance has: multiples of the golden ratio, which lie far apart for any number of
/// instances.
#[must_use]
pub fn share(spread: Duration, instance: u64) -> Duration {
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
    fn both_spellings() {
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
    fn shares_lie_apart() {
        let spread = Duration::from_secs(120);
        let mut shares: Vec<Duration> = (0..12).map(|instance| share(spread, instance)).collect();
        shares.sort();
        let gap = |pair: &[Duration]| pair[1] - pair[0];
        assert!(shares.windows(2).map(gap).min().unwrap() > Duration::from_secs(5));
        assert!(shares.iter().all(|share| *share < spread));
        assert!(share(spread, u64::MAX) < spread);
    }
}
