//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use hostkit::admin::AdminFlags;
use hostkit::cli::{Common, Tool};
use hostkit::shutdown::DrainFlags;

/// Follows services in ZooKeeper, files and DNS, and keeps HAProxy in step without losing a request.
///
/// Without a command it runs until it is told to stop. SIGHUP reads the configuration again. The commands look at the
/// same configuration and state, and change nothing unless they say so; they need no running synapse.
#[derive(Debug, Parser)]
pub struct Args {
    /// Flags that all tools have.
    #[command(flatten)]
    pub common: Common,
    /// The configuration: a Synapse YAML or JSON file [default: /etc/hostkit/synapse.yaml and synapse.d/*.yaml]
    #[arg(short, long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Read and validate the configuration, print a summary, and stop
    #[arg(long)]
    pub check: bool,
    /// Read and validate a file of clusters (/etc/hostkit/clusters.yaml), print them, and stop
    #[arg(long, value_name = "FILE")]
    pub check_clusters: Option<PathBuf>,
    /// Warn of what Synapse would have dropped or ignored instead of refusing it; with --check, the migration report
    #[arg(long, global = true)]
    pub lenient: bool,
    /// Accept a configuration that removes more services than `max_removed_services` allows
    #[arg(long)]
    pub force: bool,
    /// Where it can be asked.
    #[command(flatten)]
    pub admin: AdminFlags,
    /// How it ends.
    #[command(flatten)]
    pub drain: DrainFlags,
    /// What to do instead of running.
    #[command(subcommand)]
    pub verb: Option<Verb>,
}

/// What a person asks.
#[derive(Debug, Clone, Subcommand)]
pub enum Verb {
    /// Show what would change now, by runtime API or by reload, and why
    Plan {
        /// How long to wait for registries to answer
        #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = hostkit::units::parse_duration)]
        wait: Duration,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show every registration of a service: accepted or refused and why, its server, HAProxy's state of it
    Explain {
        /// The service
        service: String,
        /// How long to wait for registries to answer
        #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = hostkit::units::parse_duration)]
        wait: Duration,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the HAProxy configuration that a snapshot of members results in; asks nobody
    Render {
        /// A state file, or JSON of the shape {"services": {"NAME": [{"host": "h", "port": 80}]}}
        #[arg(long, value_name = "SNAPSHOT")]
        from: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what the running synapse knows and does
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what changed, when, and which reload had which cause
    Journal {
        /// Only what is newer than this
        #[arg(long, value_name = "DURATION", value_parser = hostkit::units::parse_duration)]
        since: Option<Duration>,
        /// Only of this service
        #[arg(long)]
        service: Option<String>,
        /// Only the last N entries
        #[arg(short = 'n', long, value_name = "N")]
        lines: Option<usize>,
        /// Go on as entries are added
        #[arg(short, long)]
        follow: bool,
        /// Print JSON, one object per line
        #[arg(long)]
        json: bool,
    },
    /// Check permissions, sockets, HAProxy's version and build, file limits and registries
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Tell the running synapse to read its configuration again
    Reload {
        /// Accept a configuration that removes more services than `max_removed_services` allows
        #[arg(long)]
        force: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl Tool for Args {
    const NAME: &'static str = "synapse";
    fn common(&self) -> &Common {
        &self.common
    }
}
