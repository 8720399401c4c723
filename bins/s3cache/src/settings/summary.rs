//! What `--check` prints of the settings of a fetch: each value that is in force, and where it comes from.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use hostkit::Failure;
use hostkit::units::{format_setting, format_size};

use super::{FetchArgs, Raw, Settings};
use crate::source::ArtifactSource;
use crate::store;
use crate::store::s3::DEFAULT_REGION;

/// The configuration file that decides, for each key.
type Files = BTreeMap<String, PathBuf>;

/// Validates the settings that `merged` and s3cache's configuration file make, and shows them. `given` names the flag or
/// variable that gives a value; `own` is what the tool's own configuration files say, and which of them says it. `sources`
/// are examples of what will be fetched, where they are known.
///
/// # Errors
/// The configuration file, a certificate or the AWS configuration cannot be used (exit 78).
pub fn summary(
    merged: &FetchArgs,
    given: impl Fn(&str) -> Option<String>,
    own: Option<(&Files, &FetchArgs)>,
    sources: &[ArtifactSource],
) -> Result<String, Failure> {
    let raw: Raw = hostkit::config::load("s3cache", merged.config.as_deref(), None)?;
    let settings = Settings::load(merged)?;
    let access = &settings.access;
    let s3 = access.s3()?;
    store::check(access, sources)?;
    let files = hostkit::config::deciding_files("s3cache", merged.config.as_deref(), None)?;
    let named = |files: &Files, key: &str| files.get(key).map(|file| file.display().to_string());
    let mut text = String::new();
    let mut row = |key: &str, value: String, from: &str| {
        let _ = writeln!(text, "{key:<16} {value} ({from})");
    };
    macro_rules! rows {
        ($($field:ident: $value:expr, else $otherwise:expr;)*) => {$({
            let key = stringify!($field).replace('_', "-");
            let given = given(&key);
            let own = own.filter(|(_, own)| own.$field.is_some()).and_then(|(files, _)| named(files, &key));
            let written = raw.$field.as_ref().and_then(|_| named(&files, &key));
            let from = given.or(own).or(written);
            row(&key, $value, from.as_deref().unwrap_or($otherwise));
        })*};
    }
    let size =
        |bytes: Option<u64>, otherwise: &str| bytes.map_or(otherwise.to_owned(), format_size);
    let aws = |is_theirs| match is_theirs {
        true => "settings of the AWS tools",
        false => "default",
    };
    let path = |path: Option<&PathBuf>, otherwise: &str| {
        path.map_or(otherwise.to_owned(), |path| path.display().to_string())
    };
    let endpoint = s3.endpoint.as_deref();
    let (region, region_from) = match (&s3.region, endpoint) {
        (Some(region), _) => (region.as_str(), aws(true)),
        (None, Some(_)) => (DEFAULT_REGION, "implied by the endpoint"),
        (None, None) => ("that of the instance", "default"),
    };
    let total = Some(settings.total_max_size).filter(|bytes| *bytes < u64::MAX);
    rows! {
        cache_dir: settings.cache_dir.display().to_string(), else "default";
        max_size: format_size(settings.max_size), else "default";
        total_max_size: size(total, "unbounded"), else "default";
        keep_free: format_size(settings.keep_free), else "default";
        require_sidecar: settings.require_sidecar.to_string(), else "default";
        endpoint_url: endpoint.map_or("AWS".to_owned(), hostkit::mask::mask_url), else aws(endpoint.is_some());
        region: region.to_owned(), else region_from;
        profile: s3.profile.clone(), else aws(s3.profile != "default");
        path_style: s3.path_style.to_string(), else if s3.path_style { "endpoint or profile" } else { "default" };
        no_sign_request: access.no_sign_request.to_string(), else "default";
        ca_file: path(s3.ca_file.as_ref().map(|file| &file.path), "that of the system"), else aws(s3.ca_file.is_some());
        client_cert: path(access.client_cert.as_ref().map(|(file, _)| &file.path), "none"), else "default";
        client_key: path(access.client_cert.as_ref().map(|(_, file)| &file.path), "none"), else "default";
        part_size: size(settings.part_size, "by size"), else "default";
        connections: settings.connections.map_or("by size".to_owned(), |n| n.to_string()), else "default";
        max_rate: size(settings.max_rate, "unbounded"), else "default";
        min_rate: format_size(settings.min_rate), else "default";
        timeout: format_setting(settings.timeout), else "default";
        stall_timeout: format_setting(settings.stall_timeout), else "default";
    }
    let uids: Vec<String> = settings.trusted_uids.iter().map(u32::to_string).collect();
    let from = raw.trusted_uids.and_then(|_| named(&files, "trusted-uids"));
    let uids = match uids.is_empty() {
        true => "none".to_owned(),
        false => uids.join(", "),
    };
    row("trusted-uids", uids, from.as_deref().unwrap_or("default"));
    Ok(text)
}
