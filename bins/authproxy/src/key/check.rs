//! `key check`: what a key may do, and whether a request with it would pass.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use hostkit::{Exit, Failure, clock, out};
use serde_json::json;
use tokio::runtime::Builder;
use url::Url;

use crate::grant::{Grant, KeyHash};
use crate::permissions::Permissions as _;
use crate::permissions::file::AclFile;
use crate::permissions::server::Servers;
use crate::refusal::Refusal;
use crate::scope::{self, Asked};

/// How long a person waits for a permissions engine.
const PATIENCE: Duration = Duration::from_secs(5);

/// Flags of `key check`.
#[derive(Debug, Clone, clap::Args)]
#[command(group = clap::ArgGroup::new("engine").required(true))]
pub struct Check {
    /// Refused: it would stay in the shell's history, and everybody on this host could see it
    #[arg(hide = true)]
    pub(super) key: Option<String>,
    /// Who knows it: a YAML file of keys
    #[arg(long, value_name = "FILE", group = "engine")]
    acl_file: Option<PathBuf>,
    /// Who knows it: http or https URLs that are asked in this order. Repeatable, or with commas
    #[arg(long, value_name = "URL", value_delimiter = ',', group = "engine")]
    acl_server: Vec<Url>,
    /// A right that is needed. Repeatable, or with commas: then all of them
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    right: Vec<String>,
    /// The host of the request
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// The path of the request
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// The method of the request
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(check: &Check, key: KeyHash) -> Result<Exit, Failure> {
    let grant = find(check, key)?;
    let judged = match &grant {
        Some(grant) => judge(check, grant),
        None => Err(Refusal::UnknownKey),
    };
    match check.json {
        true => out::json(&json!({
            "known": grant.is_some(),
            "sha256": key.to_string(),
            "grant": grant.as_deref(),
            "passes": judged.is_ok(),
            "error": judged.err().map(Refusal::word),
        }))?,
        false => out::text(&describe(grant.as_deref(), judged))?,
    }
    Ok(match judged {
        Ok(()) => Exit::OK,
        Err(_) => Exit::DENIED,
    })
}

fn find(check: &Check, key: KeyHash) -> Result<Option<Arc<Grant>>, Failure> {
    if let Some(file) = &check.acl_file {
        return Ok(AclFile::open(file)?.get(&key));
    }
    let servers = Servers::new(&check.acl_server, PATIENCE)?;
    let runtime = hostkit::runtime::build(Builder::new_current_thread().enable_all())?;
    let found = runtime.block_on(servers.find(key));
    // The resolver may still be busy with a name, and nobody waits for it any more.
    runtime.shutdown_background();
    let found = found.map_err(|why| {
        Failure::new(Exit::UNAVAILABLE, "no permissions engine can be asked").because(why)
    })?;
    Ok(found.grant)
}

/// Judges by what was named on the command line; of the rest nothing is asked.
fn judge(check: &Check, grant: &Grant) -> Result<(), Refusal> {
    let mut asked_for = grant.clone();
    if check.host.is_none() {
        asked_for.hosts.clear();
    }
    if check.path.is_none() {
        asked_for.paths.clear();
    }
    if check.method.is_none() {
        asked_for.methods.clear();
    }
    let now = clock::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let asked = Asked {
        method: check.method.as_deref().unwrap_or_default(),
        path: check.path.as_deref().unwrap_or_default(),
        host: check.host.as_deref().unwrap_or_default(),
        rights: &check.right,
        now: now.as_secs(),
    };
    scope::allows(&asked_for, &asked)
}

fn describe(grant: Option<&Grant>, judged: Result<(), Refusal>) -> String {
    let mut text = String::new();
    if let Some(grant) = grant {
        let mut tell = |name: &str, value: &str| text.push_str(&format!("{name}: {value}\n"));
        let all = |values: &[String]| match values {
            [] => "all".to_owned(),
            values => values.join(", "),
        };
        tell("id", &grant.id);
        tell("rights", &grant.rights.join(", "));
        tell("hosts", &all(&grant.hosts));
        tell("paths", &all(&grant.paths));
        tell("methods", &all(&grant.methods));
        let end = grant
            .expires
            .and_then(|end| UNIX_EPOCH.checked_add(Duration::from_secs(end)));
        match end {
            Some(end) => tell(
                "expires",
                &humantime::format_rfc3339_seconds(end).to_string(),
            ),
            None => tell("expires", "never"),
        }
    }
    match judged {
        Ok(()) => text.push_str("passes\n"),
        Err(refusal) => text.push_str(&format!(
            "refused: {} ({}, {})\n",
            refusal.sentence(),
            refusal.status().as_u16(),
            refusal.word()
        )),
    }
    text
}
