//! The command line.

use clap::Parser;
use hostkit::cli::{Common, Tool};

/// Keeps HAProxy in step with the services it finds.
#[derive(Debug, Parser)]
pub struct Args {
    /// Flags that all tools have.
    #[command(flatten)]
    pub common: Common,
}

impl Tool for Args {
    const NAME: &'static str = "synapse";
    fn common(&self) -> &Common {
        &self.common
    }
}
