//! `key check`: what a key may do, and whether a request with it would pass.
//!
//! Owns what is asked and how it is told. The judgement is the daemon's own: `gate`, `door` and `scope`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hostkit::cli::{CommandLine, parse_without_environment};
use hostkit::config::ConfigFiles;
use hostkit::{Exit, Failure, stdout};
use hyper::Request;
use hyper::header::{HOST, HeaderValue};
use hyper::http::request::Parts;
use serde_json::json;
use tokio::runtime::Builder;
use url::{Url, form_urlencoded};

use crate::authorizer::{self, AllowDecision, AllowReason, DenyDecision};
use crate::cache::KeyLookup;
use crate::cli::Args;
use crate::grant::{Grant, KeyHash, format_expiry};
use crate::permissions::file::AclFile;
use crate::permissions::liveconf::LiveconfBackend;
use crate::permissions::server::Servers;
use crate::permissions::{PermissionsBackend as _, RemoteBackend};
use crate::request_error::RequestError;
use crate::request_validation;
use crate::settings::{self, BackendSettings, SiteSettings};

/// How long a person waits for a permissions engine.
const PATIENCE: Duration = Duration::from_secs(5);

/// Flags of `key check`.
#[derive(Debug, Clone, clap::Args)]
#[command(group = clap::ArgGroup::new("engine").required(true).multiple(true))]
pub struct Check {
    /// Refused: it would stay in the shell's history, and everybody on this host could see it
    #[arg(hide = true)]
    pub(super) key: Option<String>,
    /// Judge --path by the rules and the permissions engine of this configuration file of the daemon
    #[arg(long, value_name = "FILE", group = "engine", requires = "path")]
    config: Option<PathBuf>,
    /// The permissions engine: a YAML file of keys
    #[arg(long, value_name = "FILE", group = "engine")]
    acl_file: Option<PathBuf>,
    /// The permissions engine: http or https URLs that are asked in this order. Repeatable, or with commas
    #[arg(long, value_name = "URL", value_delimiter = ',', group = "engine")]
    acl_server: Option<Vec<Url>>,
    /// A right that requests need, as the daemon's --right. Repeatable, or with commas: then all of them
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    right: Option<Vec<String>>,
    /// The host of the request [default: one that the key is for]
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// The path of the request, with its query if that matters [default: one that the key is for]
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// The method of the request [default: one that the key is for; GET with --config]
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(check: &Check, key: KeyHash) -> Result<Exit, Failure> {
    let (line, files) = daemon_line(check)?;
    let (engine, site) = settings::resolve_rules(&line, &files, check.config.is_some())?;
    let runtime = hostkit::runtime::build(Builder::new_current_thread().enable_all())?;
    let judged = runtime.block_on(async {
        let grant = look_up(engine, key).await?;
        let judged = judge(check, &site, grant.clone()).await?;
        Ok::<_, Failure>((grant, judged))
    });
    // The resolver may still be busy with a name, and nothing waits for it any more.
    runtime.shutdown_background();
    let (grant, judged) = judged?;
    match check.json {
        true => {
            let refused = judged.as_ref().err();
            let route = match &judged {
                Ok(pass) => &pass.route,
                Err(refused) => &refused.route,
            };
            stdout::print_json(&json!({
                "known": grant.is_some(),
                "sha256": key.to_string(),
                "grant": grant.as_deref(),
                "passes": judged.is_ok(),
                "route": route.as_deref(),
                "error": refused.map(|refused| refused.error.code()),
                "required_rights": refused.map(|refused| &refused.required_rights),
            }))?;
        }
        false => stdout::print_text(&describe(grant.as_deref(), &judged))?,
    }
    Ok(match judged {
        Ok(_) => Exit::OK,
        Err(_) => Exit::DENIED,
    })
}

/// The daemon's files, and the command line of a daemon with what was given here.
fn daemon_line(check: &Check) -> Result<(CommandLine, ConfigFiles), Failure> {
    let files = match &check.config {
        Some(file) => ConfigFiles::read("authproxy", Some(file), None)?,
        None => ConfigFiles::default(),
    };
    let mut line = vec![OsString::from("authproxy")];
    if let Some(file) = &check.acl_file {
        line.extend(["--acl-file".into(), file.clone().into_os_string()]);
    }
    for url in check.acl_server.iter().flatten() {
        line.push(format!("--acl-server={url}").into());
    }
    for right in check.right.iter().flatten() {
        line.push(format!("--right={right}").into());
    }
    let (_, line) = parse_without_environment::<Args>(line)
        .map_err(|error| Failure::new(Exit::USAGE, "invalid flags").because(error.to_string()))?;
    Ok((line, files))
}

async fn look_up(engine: BackendSettings, key: KeyHash) -> Result<Option<Arc<Grant>>, Failure> {
    let remote = match engine {
        BackendSettings::File(path) => return Ok(AclFile::open(&path)?.get(&key)),
        BackendSettings::Servers(urls) => RemoteBackend::Servers(Servers::new(&urls, PATIENCE)?),
        BackendSettings::Liveconf(path) => {
            RemoteBackend::Liveconf(Arc::new(LiveconfBackend::open(&path)))
        }
    };
    let found = remote.look_up(key).await.map_err(|why| {
        Failure::new(Exit::UNAVAILABLE, "no permissions engine can be asked").because(why)
    })?;
    Ok(found.grant)
}

/// Judges as the daemon would: by what was named on the command line; of the rest nothing is asked.
async fn judge(
    check: &Check,
    site: &SiteSettings,
    grant: Option<Arc<Grant>>,
) -> Result<Result<AllowDecision, DenyDecision>, Failure> {
    let parts = request(check, site)?;
    let method = parts.method.as_str();
    let head = format!("{method} {} HTTP/1.1\r\nHost: h\r\n\r\n", parts.uri);
    if let Err(refusal) = request_validation::validate_head(head.as_bytes(), site.limits.head) {
        return Ok(Err(refusal.into()));
    }
    if site.health_path.as_deref() == Some(parts.uri.path()) {
        return Ok(Ok(AllowDecision {
            grant: None,
            route: None,
            reason: AllowReason::OpenPath,
        }));
    }
    let known = match grant {
        Some(grant) => KeyLookup::Grant {
            grant: Arc::new(as_asked(check, &grant)),
            stale: false,
        },
        None => KeyLookup::UnknownKey,
    };
    Ok(authorizer::decide(site, &parts, false, async |_| Ok(known)).await)
}

/// The request that is judged. Its key stands for the one that was typed: what is known of that is at hand.
fn request(check: &Check, site: &SiteSettings) -> Result<Parts, Failure> {
    let mut target = check.path.clone().unwrap_or("/".to_owned());
    if let (Some(name), Some(host)) = (&site.rules.host_parameter, &check.host) {
        let pair = form_urlencoded::Serializer::new(String::new())
            .append_pair(name, host)
            .finish();
        let separator = if target.contains('?') { '&' } else { '?' };
        target.push_str(&format!("{separator}{pair}"));
    }
    let host = HeaderValue::from_str(check.host.as_deref().unwrap_or("localhost"));
    let built = host.map_err(Into::into).and_then(|host| {
        Request::builder()
            .method(check.method.as_deref().unwrap_or("GET"))
            .uri(target)
            .header(HOST, host)
            .header(&site.credentials.header, HeaderValue::from_static("key"))
            .body(())
    });
    match built {
        Ok(request) => Ok(request.into_parts().0),
        Err(error) => Err(
            Failure::new(Exit::USAGE, "no request has this method, host and path")
                .remedy("write --method GET, --host example.com, --path /stats")
                .because(error),
        ),
    }
}

/// The grant without what restricts it to something that was not asked about.
fn as_asked(check: &Check, grant: &Grant) -> Grant {
    let mut grant = grant.clone();
    if check.host.is_none() {
        grant.hosts.clear();
    }
    if check.path.is_none() {
        grant.paths.clear();
    }
    if check.method.is_none() && check.config.is_none() {
        grant.methods.clear();
    }
    grant
}

fn describe(grant: Option<&Grant>, judged: &Result<AllowDecision, DenyDecision>) -> String {
    let mut text = String::new();
    if let Some(grant) = grant {
        let mut tell = |name: &str, value: &str| text.push_str(&format!("{name}: {value}\n"));
        let any = |values: &[String]| match values {
            [] => "any".to_owned(),
            values => values.join(", "),
        };
        tell("id", &grant.id);
        tell("rights", &grant.rights.join(", "));
        tell("hosts", &any(&grant.hosts));
        tell("paths", &any(&grant.paths));
        tell("methods", &any(&grant.methods));
        match grant.expires {
            Some(end) => tell("expires", &format_expiry(end)),
            None => tell("expires", "never"),
        }
    }
    let route = |route: &Option<Arc<str>>| match route {
        Some(route) => format!("route: {route}\n"),
        None => String::new(),
    };
    match judged {
        Ok(pass) => {
            text.push_str(&route(&pass.route));
            text.push_str(match pass.reason {
                AllowReason::OpenPath => "passes: this path needs no key\n",
                _ => "passes\n",
            });
        }
        Err(refused) => {
            text.push_str(&route(&refused.route));
            text.push_str(&format!(
                "refused: {} ({}, {})",
                refused.message(),
                refused.error.status().as_u16(),
                refused.error.code()
            ));
            if let (RequestError::MissingRight, Some(grant)) = (refused.error, grant) {
                let required = refused.required_rights.join(",");
                text.push_str(&format!(
                    " required_rights={required} key_rights={}",
                    grant.rights.join(",")
                ));
            }
            text.push('\n');
        }
    }
    text
}
