//! `key check`: shows the grant of a key, and whether a request with it is allowed.
//!
//! The decision is that of the daemon: `request_validation`, `authorizer` and `scope`.

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
use crate::permissions::server::PermissionsServers;
use crate::permissions::{PermissionsBackend as _, RemoteBackend};
use crate::request_error::RequestError;
use crate::request_validation;
use crate::settings::{self, BackendSettings, SiteSettings};

const BACKEND_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, clap::Args)]
#[command(group = clap::ArgGroup::new("backend").required(true).multiple(true))]
pub(crate) struct KeyCheckArgs {
    /// Rejected: shell history and process list would show the key
    #[arg(hide = true)]
    pub(super) key: Option<String>,
    /// Configuration file of the daemon, for its rules and its permissions backend; needs --path
    #[arg(long, value_name = "FILE", group = "backend", requires = "path")]
    config: Option<PathBuf>,
    /// Permissions backend: a YAML file of keys
    #[arg(long, value_name = "FILE", group = "backend")]
    acl_file: Option<PathBuf>,
    /// Permissions backend: http or https URLs, queried in this order; repeatable or comma-separated
    #[arg(long, value_name = "URL", value_delimiter = ',', value_parser = settings::parse_permissions_url, group = "backend")]
    acl_server: Option<Vec<Url>>,
    /// Rights that the request requires, as --right of the daemon; repeatable or comma-separated
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    right: Option<Vec<String>>,
    /// Host of the request [default: one that the key allows]
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Path of the request, with its query if a rule reads it [default: one that the key allows]
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Method of the request [default: one that the key allows; GET with --config]
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &KeyCheckArgs, key: KeyHash) -> Result<Exit, Failure> {
    let (line, files) = daemon_command_line(args)?;
    let (backend, site) = settings::resolve_rules(&line, &files, args.config.is_some())?;
    let runtime = hostkit::runtime::build(Builder::new_current_thread().enable_all())?;
    let result = runtime.block_on(async {
        let grant = look_up(backend, key).await?;
        let decision = decide(args, &site, grant.clone()).await?;
        Ok::<_, Failure>((grant, decision))
    });
    // Does not wait for a resolver thread that is blocked on a name server.
    runtime.shutdown_background();
    let (grant, decision) = result?;
    match args.json {
        true => {
            let denied = decision.as_ref().err();
            let route = match &decision {
                Ok(allowed) => &allowed.route,
                Err(denied) => &denied.route,
            };
            stdout::print_json(&json!({
                "known": grant.is_some(),
                "sha256": key.to_string(),
                "grant": grant.as_deref(),
                "allowed": decision.is_ok(),
                "route": route.as_deref(),
                "error": denied.map(|denied| denied.error.code()),
                "required_rights": denied.map(|denied| &denied.required_rights),
            }))?;
        }
        false => stdout::print_text(&describe(grant.as_deref(), &decision))?,
    }
    Ok(match decision {
        Ok(_) => Exit::OK,
        Err(_) => Exit::DENIED,
    })
}

/// The command line of a daemon with these flags, and its configuration files.
fn daemon_command_line(args: &KeyCheckArgs) -> Result<(CommandLine, ConfigFiles), Failure> {
    let files = match &args.config {
        Some(file) => ConfigFiles::read("authproxy", Some(file), None)?,
        None => ConfigFiles::default(),
    };
    let mut line = vec![OsString::from("authproxy")];
    if let Some(file) = &args.acl_file {
        line.extend(["--acl-file".into(), file.clone().into_os_string()]);
    }
    for url in args.acl_server.iter().flatten() {
        line.push(format!("--acl-server={url}").into());
    }
    for right in args.right.iter().flatten() {
        line.push(format!("--right={right}").into());
    }
    let (_, line) = parse_without_environment::<Args>(line)
        .map_err(|error| Failure::new(Exit::USAGE, "invalid flags").because(error.to_string()))?;
    Ok((line, files))
}

async fn look_up(backend: BackendSettings, key: KeyHash) -> Result<Option<Arc<Grant>>, Failure> {
    let backend = match backend {
        BackendSettings::File(path) => return Ok(AclFile::open(&path)?.get(&key)),
        BackendSettings::Servers(urls) => {
            RemoteBackend::Servers(PermissionsServers::new(&urls, BACKEND_TIMEOUT)?)
        }
        BackendSettings::Liveconf(path) => {
            RemoteBackend::Liveconf(Arc::new(LiveconfBackend::open(&path)))
        }
    };
    let response = backend.look_up(key).await.map_err(|error| {
        Failure::new(Exit::UNAVAILABLE, "permissions backend unavailable")
            .remedy("check its URL, and that it runs")
            .because(error)
    })?;
    Ok(response.grant)
}

/// Decides as the daemon would. Restrictions of the grant for which no flag was given are ignored.
async fn decide(
    args: &KeyCheckArgs,
    site: &SiteSettings,
    grant: Option<Arc<Grant>>,
) -> Result<Result<AllowDecision, DenyDecision>, Failure> {
    let parts = build_request(args, site)?;
    let method = parts.method.as_str();
    let head = format!("{method} {} HTTP/1.1\r\nHost: h\r\n\r\n", parts.uri);
    if let Err(error) = request_validation::validate_head(head.as_bytes(), site.limits.head) {
        return Ok(Err(error.into()));
    }
    if site.health_path.as_deref() == Some(parts.uri.path()) {
        return Ok(Ok(AllowDecision {
            grant: None,
            route: None,
            reason: AllowReason::OpenPath,
        }));
    }
    let lookup = match grant {
        Some(grant) => KeyLookup::Grant {
            grant: Arc::new(without_unchecked_restrictions(args, &grant)),
            stale: false,
        },
        None => KeyLookup::UnknownKey,
    };
    Ok(authorizer::decide(site, &parts, false, async |_| Ok(lookup)).await)
}

/// The request to decide on. Its key is a placeholder, because the lookup has been done already.
fn build_request(args: &KeyCheckArgs, site: &SiteSettings) -> Result<Parts, Failure> {
    let mut target = args.path.clone().unwrap_or("/".to_owned());
    if let (Some(name), Some(host)) = (&site.rules.host_parameter, &args.host) {
        let pair = form_urlencoded::Serializer::new(String::new())
            .append_pair(name, host)
            .finish();
        let separator = if target.contains('?') { '&' } else { '?' };
        target.push_str(&format!("{separator}{pair}"));
    }
    let host = HeaderValue::from_str(args.host.as_deref().unwrap_or("localhost"));
    let built = host.map_err(Into::into).and_then(|host| {
        Request::builder()
            .method(args.method.as_deref().unwrap_or("GET"))
            .uri(target)
            .header(HOST, host)
            .header(&site.credentials.header, HeaderValue::from_static("key"))
            .body(())
    });
    match built {
        Ok(request) => Ok(request.into_parts().0),
        Err(error) => Err(Failure::new(Exit::USAGE, "invalid method, host or path")
            .remedy("write --method GET, --host example.com, --path /stats")
            .because(error)),
    }
}

fn without_unchecked_restrictions(args: &KeyCheckArgs, grant: &Grant) -> Grant {
    let mut grant = grant.clone();
    if args.host.is_none() {
        grant.hosts.clear();
    }
    if args.path.is_none() {
        grant.paths.clear();
    }
    if args.method.is_none() && args.config.is_none() {
        grant.methods.clear();
    }
    grant
}

fn describe(grant: Option<&Grant>, decision: &Result<AllowDecision, DenyDecision>) -> String {
    let mut text = String::new();
    if let Some(grant) = grant {
        let mut add = |name: &str, value: &str| text.push_str(&format!("{name}: {value}\n"));
        let any = |values: &[String]| match values {
            [] => "any".to_owned(),
            values => values.join(", "),
        };
        add("id", &grant.id);
        add("rights", &grant.rights.join(", "));
        add("hosts", &any(&grant.hosts));
        add("paths", &any(&grant.paths));
        add("methods", &any(&grant.methods));
        match grant.expires {
            Some(end) => add("expires", &format_expiry(end)),
            None => add("expires", "never"),
        }
    }
    let route = |route: &Option<Arc<str>>| match route {
        Some(route) => format!("route: {route}\n"),
        None => String::new(),
    };
    match decision {
        Ok(allowed) => {
            text.push_str(&route(&allowed.route));
            text.push_str(match allowed.reason {
                AllowReason::OpenPath => "allowed: this path needs no key\n",
                _ => "allowed\n",
            });
        }
        Err(denied) => {
            text.push_str(&route(&denied.route));
            text.push_str(&format!(
                "denied: {} ({}, {})",
                denied.message(),
                denied.error.status().as_u16(),
                denied.error.code()
            ));
            if let (RequestError::MissingRight, Some(grant)) = (denied.error, grant) {
                let required = denied.required_rights.join(",");
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
