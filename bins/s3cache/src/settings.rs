//! The settings of a fetch, declared once, as flags: with their defaults, their parsers, and below them the file
//! `/etc/hostkit/s3cache.yaml`; and the validated values that the rest of the crate uses.

mod summary;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

pub use summary::complete_check;

use hostkit::cli::{AT_START, FileLayer, SettingOrigin, SettingTable};
use hostkit::config::ConfigFiles;
use hostkit::units::{parse_size, parse_timeout};
use hostkit::{Exit, Failure};
use serde::Deserialize;

use crate::cache::IndexEntry;
use crate::deadline::Deadline;
use crate::environment::EnvironmentVariables;
use crate::named_file::NamedFile;
use crate::s3_access::{self, ProfileFiles, S3Access, S3Overrides};
use crate::sidecar;
use crate::source::ArtifactSource;

/// Below 64 KiB a range request costs more than the bytes it brings.
const MIN_PART_SIZE: u64 = 64 << 10;

/// How a cached copy is trusted to be current.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Freshness {
    /// By its name: an immutable one is served as it is, every other is revalidated.
    #[default]
    ByName,
    /// Never revalidated.
    Immutable,
    /// Revalidated whatever its name.
    Revalidate,
    /// Served as it is; the network is not used at all.
    Offline,
}

/// The flags of a fetch, shared by s3cache and pexrun.
#[derive(Debug, Clone, clap::Args)]
pub struct FetchArgs {
    /// Read this configuration file instead of those in /etc/hostkit
    #[arg(long, value_name = "FILE", global = true, help_heading = "Cache")]
    pub config: Option<PathBuf>,
    /// Cache shared by all users of this host
    #[arg(long, value_name = "DIR", default_value = "/var/cache/hostkit/s3cache", global = true,
          help_heading = "Cache", group = AT_START)]
    pub cache_dir: PathBuf,
    /// Maximum size per user: artifacts, partial downloads and unpacked pexes
    #[arg(long, value_name = "SIZE", default_value = "20G", value_parser = parse_size, global = true,
          help_heading = "Cache", group = AT_START)]
    pub max_size: u64,
    /// Maximum size of all users together, enforced by `s3cache gc` as root; unlimited by default
    #[arg(long, value_name = "SIZE", value_parser = parse_size, global = true, help_heading = "Cache",
          group = AT_START, hide_short_help = true)]
    pub total_max_size: Option<u64>,
    /// Free space to leave on the filesystem of the cache
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_size, global = true,
          help_heading = "Cache", group = AT_START, hide_short_help = true)]
    pub keep_free: u64,

    /// Never revalidate the cached copy
    #[arg(long, help_heading = "Freshness")]
    pub immutable: bool,
    /// Revalidate the cached copy, whatever its name
    #[arg(long, help_heading = "Freshness")]
    pub revalidate: bool,
    /// Use the cache only, never the network
    #[arg(long, help_heading = "Freshness")]
    pub offline: bool,

    /// Refuse an artifact without a published sidecar (URL.sha256)
    #[arg(long, group = AT_START)]
    pub require_sidecar: bool,

    /// URL of the S3 service, if not AWS (also AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, the profile)
    #[arg(long, value_name = "URL", value_parser = parse_endpoint, global = true, help_heading = "S3",
          group = AT_START)]
    pub endpoint_url: Option<String>,
    /// Region of the bucket (also AWS_REGION, the profile, the instance)
    #[arg(long, value_name = "NAME", global = true, help_heading = "S3", group = AT_START)]
    pub region: Option<String>,
    /// Profile of ~/.aws/config (also AWS_PROFILE)
    #[arg(long, value_name = "NAME", global = true, help_heading = "S3", group = AT_START)]
    pub profile: Option<String>,
    /// Put the bucket into the path, not the host name
    #[arg(long, global = true, help_heading = "S3", group = AT_START, hide_short_help = true)]
    pub path_style: bool,
    /// Send unsigned requests, for a public bucket
    #[arg(long, global = true, help_heading = "S3", group = AT_START, hide_short_help = true)]
    pub no_sign_request: bool,

    /// Certificate authorities to trust, instead of the system's (PEM)
    #[arg(long, value_name = "FILE", global = true, help_heading = "Network", group = AT_START)]
    pub ca_file: Option<PathBuf>,
    /// Client certificate for https, with its chain (PEM)
    #[arg(long, value_name = "FILE", global = true, help_heading = "Network", requires = "client_key",
          group = AT_START, hide_short_help = true)]
    pub client_cert: Option<PathBuf>,
    /// Key of the client certificate (PEM)
    #[arg(long, value_name = "FILE", global = true, help_heading = "Network", requires = "client_cert",
          group = AT_START, hide_short_help = true)]
    pub client_key: Option<PathBuf>,
    /// Bytes per range request, at least 64K; chosen by the size of the artifact by default
    #[arg(long, value_name = "SIZE", value_parser = parse_positive_size, help_heading = "Network", group = AT_START,
          hide_short_help = true)]
    pub part_size: Option<u64>,
    /// Concurrent connections; chosen by the size of the artifact by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=64), help_heading = "Network",
          group = AT_START, hide_short_help = true)]
    pub connections: Option<u64>,
    /// Maximum transfer rate in bytes per second; unlimited by default
    #[arg(long, value_name = "SIZE", value_parser = parse_positive_size, help_heading = "Network", group = AT_START)]
    pub max_rate: Option<u64>,
    /// Take over from a process that fetches for others at fewer bytes per second than this
    #[arg(long, value_name = "SIZE", default_value = "128K", value_parser = parse_size, help_heading = "Network",
          group = AT_START, hide_short_help = true)]
    pub min_rate: u64,
    /// Deadline of the whole run
    #[arg(long, value_name = "DUR", default_value = "1h", value_parser = parse_timeout, global = true,
          help_heading = "Network", group = AT_START)]
    pub timeout: Duration,
    /// Idle timeout of a connection, after which the request is retried
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = parse_timeout, global = true,
          help_heading = "Network", group = AT_START, hide_short_help = true)]
    pub stall_timeout: Duration,
}

impl FetchArgs {
    /// The flags that select a [`Freshness`]. They exclude one another.
    pub const FRESHNESS: &[&str] = &["immutable", "revalidate", "offline"];
}

/// What only the file can set.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct FileOnly {
    trusted_uids: Option<Vec<u32>>,
}

const TRUSTED_UIDS: &str = "trusted-uids";

/// Reads the configuration files of s3cache, or `explicit` instead.
///
/// # Errors
/// A file cannot be read or is not YAML (exit 78).
pub fn read_files(explicit: Option<&Path>) -> Result<ConfigFiles, Failure> {
    ConfigFiles::read("s3cache", explicit, None)
}

/// Those files as a layer below a command line, of which `accepts` selects the flags of [`FetchArgs`].
#[must_use]
pub const fn file_layer(files: &ConfigFiles, accepts: fn(&str) -> bool) -> FileLayer<'_> {
    FileLayer {
        files,
        accepts,
        other_keys: &[TRUSTED_UIDS],
    }
}

fn parse_endpoint(text: &str) -> Result<String, String> {
    match s3_access::check_endpoint(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(failure) => {
            let text = failure.to_string();
            // The name of the setting and its value are printed in front of this.
            let reason = text.split_once(": ").map(|(_, reason)| reason.to_owned());
            Err(reason.unwrap_or(text))
        }
    }
}

fn parse_positive_size(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0 => Err("expected at least 1: leave it out for the default".to_owned()),
        size => Ok(size),
    }
}

/// Validated settings of one run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The cache shared by all users of the host.
    pub cache_dir: PathBuf,
    /// The most each uid keeps (bytes).
    pub max_size: u64,
    /// The most all uids keep together (bytes).
    pub total_max_size: u64,
    /// What stays free on the cache's filesystem (bytes).
    pub keep_free: u64,
    /// How a cached copy is trusted to be current.
    pub freshness: Freshness,
    /// Uids, besides root and the caller, whose entries are used without comparing their digest.
    pub trusted_uids: Vec<u32>,
    /// Whether an artifact without a sidecar is refused.
    pub require_sidecar: bool,
    /// Bytes per range request, when settled by the user.
    pub part_size: Option<u64>,
    /// Connections at once, when settled by the user.
    pub connections: Option<u64>,
    /// The most to fetch per second (bytes).
    pub max_rate: Option<u64>,
    /// A leader slower than this is overtaken (bytes per second).
    pub min_rate: u64,
    /// How long all of it may take.
    pub timeout: Duration,
    /// How long a connection may be silent.
    pub stall_timeout: Duration,
    /// How the stores are reached.
    pub(crate) access: StoreAccess,
}

/// How the stores are reached, as our own settings say: endpoints, credentials, certificates.
#[derive(Debug, Clone, Default)]
pub(crate) struct StoreAccess {
    /// The S3 service.
    pub endpoint_url: Option<String>,
    /// The bucket's region.
    pub region: Option<String>,
    /// The profile of `~/.aws/config`.
    pub profile: Option<String>,
    /// Put the bucket into the path.
    pub path_style: bool,
    /// Ask without credentials.
    pub no_sign_request: bool,
    /// The certificate authorities to trust instead of the system's (PEM).
    pub ca_file: Option<NamedFile>,
    /// The client certificate and its key (PEM files).
    pub client_cert: Option<(NamedFile, NamedFile)>,
    /// Where a configuration file names the profile that is in force.
    pub(crate) profile_place: Option<String>,
    /// What [`StoreAccess::s3`] made of these and the settings of the AWS tools.
    pub(crate) s3: OnceLock<S3Access>,
}

impl Settings {
    /// The values of the flags, with the files below them.
    ///
    /// # Errors
    /// A key that only the file has is invalid (exit 78).
    pub fn resolve(
        args: &FetchArgs,
        table: &SettingTable,
        files: &ConfigFiles,
    ) -> Result<Self, Failure> {
        // The command line has one of them at most ([`FetchArgs::FRESHNESS`]).
        let freshness = match args {
            _ if args.offline => Freshness::Offline,
            _ if args.revalidate => Freshness::Revalidate,
            _ if args.immutable => Freshness::Immutable,
            _ => Freshness::ByName,
        };
        let named = |setting: &str, path: &Option<PathBuf>| {
            let path = path.as_ref()?;
            Some(NamedFile::new(path, table.locate(setting)))
        };
        // Verbs do not need what flags require, so that clap does not find this.
        for (key, missing, is_half) in [
            ("client-cert", "client-key", args.client_key.is_none()),
            ("client-key", "client-cert", args.client_cert.is_none()),
        ] {
            if is_half && args.client_cert.is_some() != args.client_key.is_some() {
                let origin = table.origin(key);
                let exit = match origin {
                    SettingOrigin::File(_) => Exit::CONFIG,
                    _ => Exit::USAGE,
                };
                return Err(Failure::new(exit, format!("{origin}: missing `{missing}`"))
                    .remedy("set it too, or remove the setting that requires it"));
            }
        }
        let file_only: FileOnly = files.structured()?;
        Ok(Self {
            cache_dir: args.cache_dir.clone(),
            max_size: args.max_size,
            total_max_size: args.total_max_size.unwrap_or(u64::MAX),
            keep_free: args.keep_free,
            freshness,
            trusted_uids: file_only.trusted_uids.unwrap_or_default(),
            require_sidecar: args.require_sidecar,
            part_size: args.part_size.map(|size| size.max(MIN_PART_SIZE)),
            connections: args.connections,
            max_rate: args.max_rate,
            min_rate: args.min_rate,
            timeout: args.timeout,
            stall_timeout: args.stall_timeout,
            access: StoreAccess {
                endpoint_url: args.endpoint_url.clone(),
                region: args.region.clone(),
                profile: args.profile.clone(),
                path_style: args.path_style,
                no_sign_request: args.no_sign_request,
                ca_file: named("ca-file", &args.ca_file),
                client_cert: named("client-cert", &args.client_cert)
                    .zip(named("client-key", &args.client_key)),
                profile_place: match table.origin("profile") {
                    SettingOrigin::File(_) => Some(table.locate("profile")),
                    _ => None,
                },
                s3: OnceLock::new(),
            },
        })
    }

    /// The end of a run that begins now, about a source.
    #[must_use]
    pub(crate) fn deadline(&self, source: &ArtifactSource) -> Deadline {
        Deadline::new(source, self.timeout)
    }

    /// Whether a cached copy lacks a required sidecar: neither a sidecar nor the caller named its digest when it was fetched.
    #[must_use]
    pub fn lacks_sidecar(&self, entry: &IndexEntry) -> bool {
        let vouched = matches!(entry.verified_by.as_deref(), Some("sidecar" | "flag"));
        self.require_sidecar && !vouched && !entry.name.ends_with(sidecar::SUFFIX)
    }

    /// The name of a source in the cache's index. For S3 it holds the service, which the AWS configuration may name.
    ///
    /// # Errors
    /// That configuration cannot be used (exit 78).
    pub fn index_key(&self, source: &ArtifactSource) -> Result<String, Failure> {
        Ok(source.index_key(match source {
            ArtifactSource::S3 { .. } => self.access.s3()?.service(),
            ArtifactSource::Http(_) | ArtifactSource::File(_) => "",
        }))
    }
}

impl StoreAccess {
    /// How S3 is reached, with the settings of the AWS tools. They are read once, when S3 is needed at all.
    ///
    /// # Errors
    /// The AWS configuration cannot be used (exit 78).
    pub(crate) fn s3(&self) -> Result<&S3Access, Failure> {
        if let Some(resolved) = self.s3.get() {
            return Ok(resolved);
        }
        let own = S3Overrides {
            endpoint_url: self.endpoint_url.as_deref(),
            region: self.region.as_deref(),
            profile: self.profile.as_deref(),
            profile_place: self.profile_place.as_deref(),
            path_style: self.path_style,
            ca_file: self.ca_file.as_ref(),
        };
        let env = EnvironmentVariables::of_process();
        let files = ProfileFiles::read(&env)?;
        let resolved = S3Access::resolve(own, &env, files)?;
        Ok(self.s3.get_or_init(|| resolved))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(yaml: &str, flags: &str) -> Result<Settings, Failure> {
        load_line(yaml, &format!("b/k {flags}"))
    }

    fn load_line(yaml: &str, line: &str) -> Result<Settings, Failure> {
        let temp = tempfile::tempdir().unwrap();
        let config = temp.path().join("s3cache.yaml");
        std::fs::write(&config, yaml).unwrap();
        let words = std::iter::once("s3cache").chain(line.split_whitespace());
        let (_, line) = hostkit::cli::parse::<crate::Args, _>(words).unwrap();
        let files = read_files(Some(&config))?;
        let (args, table) = line.with_files::<crate::Args>(&[file_layer(&files, |_| true)])?;
        Settings::resolve(&args.fetch, &table, &files)
    }

    #[test]
    fn flag_overrides_the_file_which_overrides_the_default() {
        let yaml = "max-size: 1G\ntotal-max-size: 2G\ntimeout: 90\nstall-timeout: 250ms\ntrusted-uids: [1001]\n";
        let settings = load(yaml, "--max-size=7").unwrap();
        assert_eq!(settings.max_size, 7);
        assert_eq!(settings.total_max_size, 2 << 30);
        assert_eq!(settings.timeout, Duration::from_secs(90));
        assert_eq!(settings.stall_timeout, Duration::from_millis(250));
        assert_eq!(settings.keep_free, 512 << 20);
        assert_eq!(settings.trusted_uids, [1001]);
    }

    #[test]
    fn switch_that_is_turned_off_overrides_the_file() {
        let yaml = "path-style: true\nno-sign-request: true\nrequire-sidecar: true\n";
        let off = "--path-style=no --no-sign-request=no --require-sidecar=no";
        for (flags, expected) in [("", true), (off, false)] {
            let settings = load(yaml, flags).unwrap();
            let access = settings.access;
            assert_eq!(
                [
                    access.path_style,
                    access.no_sign_request,
                    settings.require_sidecar
                ],
                [expected; 3]
            );
        }
    }

    #[test]
    fn half_a_client_certificate_is_refused() {
        for (key, missing) in [("client-cert", "client-key"), ("client-key", "client-cert")] {
            let yaml = format!("cache-dir: /c\n{key}: /x.pem\n");
            for line in ["b/k", "ls s3://b/", "exists b/k", "stats"] {
                let failure = load_line(&yaml, line).unwrap_err();
                assert_eq!(failure.exit(), Exit::CONFIG, "{line}");
                let text = format!("s3cache.yaml:2: missing `{missing}`");
                assert!(failure.to_string().contains(&text), "{line}: {failure}");
            }
            let failure = load_line("", &format!("--{key}=/x exists b/k")).unwrap_err();
            assert_eq!(failure.exit(), Exit::USAGE);
            let text = format!("--{key}: missing `{missing}`");
            assert!(failure.to_string().contains(&text), "{failure}");
        }
    }

    #[test]
    fn file_of_a_certificate_is_named_by_its_setting() {
        let settings = load("ca-file: /x.pem\n", "--client-cert=/c --client-key=/k").unwrap();
        let ca_file = settings.access.ca_file.unwrap();
        assert!(
            ca_file.setting.ends_with("s3cache.yaml:1: `ca-file`"),
            "{ca_file:?}"
        );
        let (_, key) = settings.access.client_cert.unwrap();
        assert_eq!(key.setting, "--client-key");
    }

    #[test]
    fn invalid_value_names_file_line_key_and_remedy() {
        for (line, says) in [
            (
                "max-size: lots",
                "`max-size`: invalid value `lots`: unknown unit",
            ),
            ("timeout: 0", "`timeout`: invalid value `0`: a timeout of 0"),
            ("stall-timeout: -1", "`stall-timeout`: invalid value `-1`"),
            (
                "connections: 65",
                "`connections`: invalid value `65`: 65 is not in 1..=64",
            ),
            (
                "endpoint-url: minio:9000",
                "`endpoint-url`: invalid value `minio:9000`: \"minio:9000\" has no scheme: write https://minio:9000",
            ),
            (
                "endpoint-url: http://me:hunter2@h",
                "credentials in an endpoint",
            ),
            (
                "endpoint-url: me:hunter2@minio:9000",
                "invalid value `***@minio:9000`: \"minio:9000\" has no scheme",
            ),
            ("path-style: perhaps", "`path-style`"),
            ("trusted-uids: [bob]", "`trusted-uids`: invalid value"),
            ("cache-dir: ''", "`cache-dir`: invalid empty value"),
            ("endpoint-url: ''", "`endpoint-url`: invalid empty value"),
            ("profile: \" \"", "`profile`: invalid empty value"),
            ("max-size: ''", "`max-size`: invalid empty value"),
            ("max-size: [1]", "expected one text, number or boolean"),
            ("max-size: {a: 1}", "expected one text, number or boolean"),
            ("timeout: [", "`timeout`"),
            ("part-size: 0", "`part-size`: invalid value `0`"),
            ("max-rate: 0", "`max-rate`: invalid value `0`"),
            ("mode: 0644", "unknown key `mode`"),
        ] {
            let failure = load(&format!("# Ours.\n{line}\n"), "").unwrap_err();
            let text = failure.to_string();
            assert_eq!(failure.exit(), Exit::CONFIG, "{text}");
            assert!(text.contains("s3cache.yaml:2:"), "{text}");
            assert!(text.contains(says) && !text.contains("hunter2"), "{text}");
        }
    }
}
