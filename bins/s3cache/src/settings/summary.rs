//! What `--check` prints of the settings of a fetch: each value that is in force, and where it comes from.

use std::fmt::Write as _;

use hostkit::Failure;
use hostkit::units::{show_duration, show_size};

use super::{FetchArgs, Raw, Settings};
use crate::store::http::HttpStore;

/// Where a value comes from that a flag or its environment variable names.
pub const GIVEN: &str = "flag or variable";

/// Validates the settings that `merged` and s3cache's configuration file make, and shows them. The layers that were
/// merged, the strongest first, say where a value comes from.
///
/// # Errors
/// The configuration file, a certificate or the AWS configuration cannot be used (exit 78).
pub fn summary(merged: &FetchArgs, layers: &[(&str, &FetchArgs)]) -> Result<String, Failure> {
    let raw: Raw = hostkit::config::load("s3cache", merged.config.as_deref(), None)?;
    let settings = Settings::load(merged)?;
    let access = &settings.access;
    HttpStore::new(access)?;
    let s3 = access.s3()?;
    let file = match &merged.config {
        Some(file) => file.display().to_string(),
        None => "s3cache.yaml".to_owned(),
    };
    let mut text = String::new();
    let mut row = |key: &str, value: Option<String>, from: &str| {
        if let Some(value) = value {
            let _ = writeln!(text, "{key:<16} {value} ({from})");
        }
    };
    macro_rules! rows {
        ($($field:ident: $value:expr, else $otherwise:expr;)*) => {$({
            let layer = layers.iter().find(|(_, layer)| layer.$field.is_some());
            let from = match (layer, &raw.$field) {
                (Some((name, _)), _) => *name,
                (None, Some(_)) => &file,
                (None, None) => $otherwise,
            };
            row(&stringify!($field).replace('_', "-"), $value, from);
        })*};
    }
    let size = |bytes: u64| Some(show_size(bytes));
    let aws = "settings of the AWS tools";
    rows! {
        cache_dir: Some(settings.cache_dir.display().to_string()), else "default";
        max_size: size(settings.max_size), else "default";
        total_max_size: Some(settings.total_max_size).filter(|bytes| *bytes < u64::MAX).and_then(size), else "default";
        keep_free: size(settings.keep_free), else "default";
        endpoint_url: s3.endpoint.as_deref().map(hostkit::mask::url), else aws;
        region: s3.region.clone(), else aws;
        profile: Some(s3.profile.clone()), else aws;
        path_style: Some(s3.path_style.to_string()), else "endpoint or profile";
        no_sign_request: Some(access.no_sign_request.to_string()), else "default";
        ca_file: s3.ca_file.as_ref().map(|file| file.display().to_string()), else aws;
        client_cert: access.client_cert.as_ref().map(|(file, _)| file.display().to_string()), else "default";
        part_size: settings.part_size.and_then(size), else "default";
        connections: settings.connections.map(|n| n.to_string()), else "default";
        max_rate: settings.max_rate.and_then(size), else "default";
        min_rate: size(settings.min_rate), else "default";
        timeout: Some(show_duration(settings.timeout)), else "default";
        stall_timeout: Some(show_duration(settings.stall_timeout)), else "default";
    }
    Ok(text)
}
