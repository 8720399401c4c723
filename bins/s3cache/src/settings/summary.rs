//! What `--check` adds to the settings: the values that come from the AWS tools, and the files and proxies that they name.

use hostkit::Failure;
use hostkit::cli::SettingTable;
use hostkit::config::ConfigFiles;
use hostkit::mask::mask_url;
use hostkit::units::format_size;

use super::{Settings, TRUSTED_UIDS};
use crate::source::ArtifactSource;
use crate::store;
use crate::store::s3::DEFAULT_REGION;

/// Validates what the settings name, and completes their table. `sources` are examples of what will be fetched, where
/// they are known.
///
/// # Errors
/// A certificate, a proxy or the AWS configuration cannot be used (exit 78).
pub fn complete_check(
    settings: &Settings,
    files: &ConfigFiles,
    sources: &[ArtifactSource],
    table: &mut SettingTable,
) -> Result<(), Failure> {
    let access = &settings.access;
    let s3 = access.s3()?;
    store::check(access, sources)?;
    let aws = |is_theirs| match is_theirs {
        true => "settings of the AWS tools",
        false => "default",
    };
    let endpoint = s3.endpoint.as_deref();
    let (region, region_origin) = match (&s3.region, endpoint) {
        (Some(region), _) => (region.as_str(), aws(true)),
        (None, Some(_)) => (DEFAULT_REGION, "implied by the endpoint"),
        (None, None) => ("that of the instance", "default"),
    };
    let style_origin = match s3.path_style {
        true => "endpoint or profile",
        false => "default",
    };
    let ca_file = s3.ca_file.as_ref();
    let ca_file = ca_file.map(|file| file.path.display().to_string());
    for (name, value, origin) in [
        (
            "endpoint-url",
            endpoint.map_or("AWS".to_owned(), mask_url),
            aws(endpoint.is_some()),
        ),
        ("region", region.to_owned(), region_origin),
        ("profile", s3.profile.clone(), aws(s3.profile != "default")),
        ("path-style", s3.path_style.to_string(), style_origin),
        (
            "ca-file",
            ca_file.clone().unwrap_or("that of the system".to_owned()),
            aws(ca_file.is_some()),
        ),
    ] {
        table.show(name, value, origin);
    }
    // A smaller one is raised.
    if let Some(size) = settings.part_size {
        table.show("part-size", format_size(size), "default");
    }
    let uids: Vec<String> = settings.trusted_uids.iter().map(u32::to_string).collect();
    let uids = match uids.is_empty() {
        true => "none".to_owned(),
        false => uids.join(", "),
    };
    table.push(TRUSTED_UIDS, uids, files);
    Ok(())
}
