//! What `--check` prints beside the settings as they were written: the rules of the file, and what all of it comes to.

use hostkit::cli::SettingTable;
use hostkit::config::ConfigFiles;
use hyper::header::ACCESS_CONTROL_ALLOW_ORIGIN;

use super::{CorsPolicy, PreflightPolicy, RouteRule, Settings, SiteSettings};
use crate::config::FileRules;

/// Adds the keys that only the file has.
pub(super) fn add_file_keys(
    table: &mut SettingTable,
    site: &SiteSettings,
    rules: &FileRules,
    files: &ConfigFiles,
) {
    let unset = || "unset".to_owned();
    let routes = rules.routes.as_ref().map_or(0, Vec::len);
    let everywhere = site.rules.preflight;
    for route in site.rules.routes.iter().take(routes) {
        table.push("routes", describe_route(route, everywhere), files);
    }
    if routes == 0 {
        table.push("routes", unset(), files);
    }
    let open = rules.open.as_ref().map(|paths| paths.join(", "));
    table.push("open", open.unwrap_or_else(unset), files);
    let host = rules.host_param.clone();
    let host_key = match files.get("host_param") {
        Some(_) => "host_param",
        None => "host-param",
    };
    table.push(host_key, host.unwrap_or_else(unset), files);
    let headers = describe_cors(&site.cors);
    if headers.is_empty() {
        table.push("cors", unset(), files);
    }
    for header in headers {
        table.push("cors", header, files);
    }
}

/// What the settings come to, where no single setting shows it.
#[must_use]
pub(crate) fn describe_effects(settings: &Settings) -> String {
    let memcached = match &settings.memcached {
        Some(memcached) => {
            let secrets = match memcached.secrets.len() {
                1 => "",
                _ => "; two secrets, the first signs",
            };
            format!("{}{secrets}", memcached.servers.join(", "))
        }
        None => "not used".to_owned(),
    };
    let listen: Vec<String> = settings.listen.iter().map(ToString::to_string).collect();
    let preflights = describe_preflight(settings.site.rules.preflight);
    format!(
        "listening on: {}\nthreads: {}\nmemcached: {memcached}\npreflights: {preflights}\n",
        listen.join(", "),
        settings.threads
    )
}

fn describe_route(route: &RouteRule, everywhere: PreflightPolicy) -> String {
    let RouteRule {
        name,
        prefix,
        methods,
        rights,
        preflight,
    } = route;
    let rights = match rights {
        Some(rights) => rights.join(", "),
        None => "open".to_owned(),
    };
    let methods = match methods.as_slice() {
        [] => String::new(),
        methods => format!(" {}", methods.join(",")),
    };
    let name = match **name == **prefix {
        true => String::new(),
        false => format!(" [{name}]"),
    };
    let preflights = match *preflight == everywhere {
        true => String::new(),
        false => format!("; preflights {}", describe_preflight(*preflight)),
    };
    format!("{prefix}{methods}{name}: {rights}{preflights}")
}

const fn describe_preflight(preflight: PreflightPolicy) -> &'static str {
    match preflight {
        PreflightPolicy::Off => "off",
        PreflightPolicy::Answer => "answer",
        PreflightPolicy::Pass => "pass",
    }
}

fn describe_cors(cors: &CorsPolicy) -> Vec<String> {
    let CorsPolicy { headers, origins } = cors;
    let origins = origins
        .iter()
        .map(|origin| (&ACCESS_CONTROL_ALLOW_ORIGIN, origin));
    headers
        .iter()
        .map(|(name, value)| (name, value))
        .chain(origins)
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap_or_default()))
        .collect()
}
