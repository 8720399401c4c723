//! Everything that steers a fetch, in two stages: what flags, environment and `/etc/hostkit/s3cache.yaml` say, then one
//! validated set of values. Only the second is used.

mod summary;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

pub use summary::summary;

use hostkit::config::value;
use hostkit::{Exit, Failure, units};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::cache::IndexEntry;
use crate::deadline::Deadline;
use crate::environment::EnvironmentVariables;
use crate::named_file::NamedFile;
use crate::s3_access::{self, ProfileFiles, S3Access, S3Overrides};
use crate::sidecar;
use crate::source::ArtifactSource;

/// Where the cache is when nobody says otherwise.
pub const CACHE_DIR: &str = "/var/cache/hostkit/s3cache";
/// The most a uid keeps (bytes).
pub const MAX_SIZE: u64 = 20 << 30;
/// What is left free on the cache's filesystem (bytes).
pub const KEEP_FREE: u64 = 512 << 20;
/// A leader slower than this is overtaken (bytes per second).
pub const MIN_RATE: u64 = 128 << 10;
/// How long all of it may take.
pub const TIMEOUT: Duration = Duration::from_secs(3600);
/// How long a connection may be silent.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How a cached copy is trusted to be current.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Freshness {
    /// By its name: an immutable one is served as it is, every other is revalidated.
    #[default]
    ByName,
    /// Never asked for again.
    Immutable,
    /// Revalidated whatever its name.
    Revalidate,
    /// Served as it is; the network is not used at all.
    Offline,
}

/// The flags that steer a fetch, shared by s3cache and pexrun.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct FetchArgs {
    /// Read this configuration file instead of /etc/hostkit
    #[arg(long, value_name = "FILE", global = true, help_heading = "Cache")]
    pub config: Option<PathBuf>,
    /// The cache shared by all users of this host [default: /var/cache/hostkit/s3cache]
    #[arg(long, value_name = "DIR", global = true, help_heading = "Cache")]
    pub cache_dir: Option<PathBuf>,
    /// The most each user keeps: artifacts, partial downloads and unpacked pexes [default: 20G]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size, global = true, help_heading = "Cache")]
    pub max_size: Option<u64>,
    /// The most all users keep together; `s3cache gc` of root sees to it [default: no bound]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size, global = true, help_heading = "Cache")]
    pub total_max_size: Option<u64>,
    /// What stays free on the cache's filesystem [default: 512M]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size, global = true, help_heading = "Cache")]
    pub keep_free: Option<u64>,

    /// Never ask whether the cached copy is current
    #[arg(long, help_heading = "Freshness")]
    pub immutable: bool,
    /// Ask whether the cached copy is current, whatever its name
    #[arg(long, help_heading = "Freshness")]
    pub revalidate: bool,
    /// Use the cache only, never the network
    #[arg(long, help_heading = "Freshness")]
    pub offline: bool,

    /// Refuse an artifact without a published sidecar (URL.sha256)
    #[arg(long)]
    pub require_sidecar: Option<bool>,

    /// The URL of the S3 service, if not AWS (also AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, the profile)
    #[arg(long, value_name = "URL", global = true, help_heading = "S3")]
    pub endpoint_url: Option<String>,
    /// The bucket's region (also AWS_REGION, the profile, the instance)
    #[arg(long, value_name = "NAME", global = true, help_heading = "S3")]
    pub region: Option<String>,
    /// The profile of ~/.aws/config (also AWS_PROFILE)
    #[arg(long, value_name = "NAME", global = true, help_heading = "S3")]
    pub profile: Option<String>,
    /// Put the bucket into the path, not the host name
    #[arg(long, global = true, help_heading = "S3")]
    pub path_style: Option<bool>,
    /// Ask without credentials, for a public bucket
    #[arg(long, global = true, help_heading = "S3")]
    pub no_sign_request: Option<bool>,

    /// The certificate authorities to trust, instead of the system's (PEM)
    #[arg(long, value_name = "FILE", global = true, help_heading = "Network")]
    pub ca_file: Option<PathBuf>,
    /// The client certificate for https, with its chain (PEM)
    #[arg(
        long,
        value_name = "FILE",
        global = true,
        help_heading = "Network",
        requires = "client_key"
    )]
    pub client_cert: Option<PathBuf>,
    /// The key of the client certificate (PEM)
    #[arg(
        long,
        value_name = "FILE",
        global = true,
        help_heading = "Network",
        requires = "client_cert"
    )]
    pub client_key: Option<PathBuf>,
    /// Bytes per range request, at least 64K [default: by size]
    #[arg(long, value_name = "SIZE", value_parser = positive_size, help_heading = "Network")]
    pub part_size: Option<u64>,
    /// Connections at once [default: by size]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=64), help_heading = "Network")]
    pub connections: Option<u64>,
    /// The most to fetch per second [default: no bound]
    #[arg(long, value_name = "SIZE", value_parser = positive_size, help_heading = "Network")]
    pub max_rate: Option<u64>,
    /// A process fetching for others slower than this is overtaken [default: 128K]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size, help_heading = "Network")]
    pub min_rate: Option<u64>,
    /// How long all of it may take [default: 1h]
    #[arg(long, value_name = "DUR", value_parser = units::parse_duration, global = true, help_heading = "Network")]
    pub timeout: Option<Duration>,
    /// How long a connection may be silent before it is tried again [default: 10s]
    #[arg(long, value_name = "DUR", value_parser = units::parse_duration, global = true, help_heading = "Network")]
    pub stall_timeout: Option<Duration>,

    /// Where the tool's own configuration file names a value of these, for errors.
    #[arg(skip)]
    pub places: BTreeMap<&'static str, String>,
}

impl FetchArgs {
    /// The flags that say how a cached copy is trusted to be current. They exclude one another.
    pub const FRESHNESS: &[&str] = &["immutable", "revalidate", "offline"];
}

/// `/etc/hostkit/s3cache.yaml`, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Raw {
    #[serde(deserialize_with = "value::text")]
    cache_dir: Option<PathBuf>,
    #[serde(deserialize_with = "value::size")]
    max_size: Option<u64>,
    #[serde(deserialize_with = "value::size")]
    total_max_size: Option<u64>,
    #[serde(deserialize_with = "value::size")]
    keep_free: Option<u64>,
    #[serde(deserialize_with = "endpoint")]
    endpoint_url: Option<String>,
    #[serde(deserialize_with = "value::text")]
    region: Option<String>,
    #[serde(deserialize_with = "value::text")]
    profile: Option<String>,
    path_style: Option<bool>,
    no_sign_request: Option<bool>,
    #[serde(deserialize_with = "value::text")]
    ca_file: Option<PathBuf>,
    #[serde(deserialize_with = "value::text")]
    client_cert: Option<PathBuf>,
    #[serde(deserialize_with = "value::text")]
    client_key: Option<PathBuf>,
    #[serde(deserialize_with = "positive")]
    part_size: Option<u64>,
    #[serde(deserialize_with = "connections")]
    connections: Option<u64>,
    #[serde(deserialize_with = "positive")]
    max_rate: Option<u64>,
    #[serde(deserialize_with = "value::size")]
    min_rate: Option<u64>,
    #[serde(deserialize_with = "value::timeout")]
    timeout: Option<Duration>,
    #[serde(deserialize_with = "value::timeout")]
    stall_timeout: Option<Duration>,
    trusted_uids: Option<Vec<u32>>,
    require_sidecar: Option<bool>,
}

/// The URL of an S3 service in a configuration file.
///
/// # Errors
/// It is not one.
pub fn endpoint<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let Some(text) = value::text::<D, String>(from)? else {
        return Ok(None);
    };
    // The failure does not show a password that stands in it.
    s3_access::check_endpoint(&text).map_err(D::Error::custom)?;
    Ok(Some(text))
}

/// A size of which 0 makes no sense.
fn positive_size(text: &str) -> Result<u64, String> {
    match units::parse_size(text)? {
        0 => Err("0 makes no sense here: leave it out for the default".to_owned()),
        size => Ok(size),
    }
}

fn positive<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    value::parsed_as(from, value::SIZE, positive_size)
}

fn connections<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    value::parsed_as(from, "a number, 1-64", |text| match text.parse() {
        Ok(number @ 1..=64) => Ok(number),
        _ => Err("expected 1-64".to_owned()),
    })
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
    /// Uids, besides root and the caller, whose entries are used without asking anybody.
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
    pub access: Access,
}

/// How the stores are reached, as our own settings say: endpoints, credentials, certificates.
#[derive(Debug, Clone, Default)]
pub struct Access {
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
    /// What [`Access::s3`] made of these and the settings of the AWS tools.
    pub(crate) s3: OnceLock<S3Access>,
}

impl Settings {
    /// Settles every value: flag and environment (both in `args`) beat the configuration file, which beats the default.
    ///
    /// # Errors
    /// The configuration file is wrong (exit 78).
    pub fn load(args: &FetchArgs) -> Result<Self, Failure> {
        let raw: Raw = hostkit::config::load("s3cache", args.config.as_deref(), None)?;
        let file = args
            .config
            .as_deref()
            .unwrap_or(Path::new("/etc/hostkit/s3cache.yaml"));
        // The command line has one of them at most ([`FetchArgs::FRESHNESS`]).
        let freshness = match args {
            _ if args.offline => Freshness::Offline,
            _ if args.revalidate => Freshness::Revalidate,
            _ if args.immutable => Freshness::Immutable,
            _ => Freshness::ByName,
        };
        let timeout = args.timeout.or(raw.timeout).unwrap_or(TIMEOUT);
        let stall_timeout = args
            .stall_timeout
            .or(raw.stall_timeout)
            .unwrap_or(STALL_TIMEOUT);
        if timeout.is_zero() || stall_timeout.is_zero() {
            return Err(
                Failure::new(Exit::CONFIG, "a timeout of 0 would give up before it began")
                    .remedy("raise it"),
            );
        }
        if raw.client_cert.is_some() != raw.client_key.is_some() {
            return Err(Failure::new(
                Exit::CONFIG,
                format!(
                    "{}: one of `client-cert` and `client-key` is missing",
                    file.display()
                ),
            )
            .remedy("give both, or neither"));
        }
        let mut places = args.places.clone();
        for (key, is_in_force) in [
            ("ca-file", args.ca_file.is_none() && raw.ca_file.is_some()),
            (
                "client-cert",
                args.client_cert.is_none() && raw.client_cert.is_some(),
            ),
            (
                "client-key",
                args.client_key.is_none() && raw.client_key.is_some(),
            ),
            ("profile", args.profile.is_none() && raw.profile.is_some()),
        ] {
            if is_in_force
                && let Some(place) =
                    hostkit::config::place("s3cache", args.config.as_deref(), None, key)
            {
                places.insert(key, place);
            }
        }
        let named = |key: &'static str, path: Option<PathBuf>| {
            let setting = places.get(key).cloned();
            path.map(|path| NamedFile::new(path, setting.unwrap_or_else(|| format!("--{key}"))))
        };
        let (client_cert, client_key) = match &args.client_cert {
            Some(_) => (args.client_cert.clone(), args.client_key.clone()),
            None => (raw.client_cert, raw.client_key),
        };
        Ok(Self {
            cache_dir: args
                .cache_dir
                .clone()
                .or(raw.cache_dir)
                .unwrap_or_else(|| CACHE_DIR.into()),
            max_size: args.max_size.or(raw.max_size).unwrap_or(MAX_SIZE),
            total_max_size: args
                .total_max_size
                .or(raw.total_max_size)
                .unwrap_or(u64::MAX),
            keep_free: args.keep_free.or(raw.keep_free).unwrap_or(KEEP_FREE),
            freshness,
            trusted_uids: raw.trusted_uids.unwrap_or_default(),
            require_sidecar: args
                .require_sidecar
                .or(raw.require_sidecar)
                .unwrap_or_default(),
            // Below 64 KiB a request costs more than the bytes it brings.
            part_size: args
                .part_size
                .or(raw.part_size)
                .map(|size| size.max(64 << 10)),
            connections: args.connections.or(raw.connections).map(|n| n.clamp(1, 64)),
            max_rate: args.max_rate.or(raw.max_rate),
            min_rate: args.min_rate.or(raw.min_rate).unwrap_or(MIN_RATE),
            timeout,
            stall_timeout,
            access: Access {
                endpoint_url: args.endpoint_url.clone().or(raw.endpoint_url),
                region: args.region.clone().or(raw.region),
                profile: args.profile.clone().or(raw.profile),
                path_style: args.path_style.or(raw.path_style).unwrap_or_default(),
                no_sign_request: args
                    .no_sign_request
                    .or(raw.no_sign_request)
                    .unwrap_or_default(),
                ca_file: named("ca-file", args.ca_file.clone().or(raw.ca_file)),
                client_cert: named("client-cert", client_cert).zip(named("client-key", client_key)),
                profile_place: places.get("profile").cloned(),
                s3: OnceLock::new(),
            },
        })
    }

    /// The end of a run that begins now, about a source.
    #[must_use]
    pub fn deadline(&self, source: &ArtifactSource) -> Deadline {
        Deadline::new(source, self.timeout)
    }

    /// Whether a cached copy lacks what these settings require: somebody named its digest when it was fetched.
    #[must_use]
    pub fn lacks_sidecar(&self, entry: &IndexEntry) -> bool {
        let vouched = matches!(entry.vouched.as_deref(), Some("sidecar" | "flag"));
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

impl Access {
    /// How S3 is reached, with the settings of the AWS tools. They are read once, when S3 is needed at all.
    ///
    /// # Errors
    /// The AWS configuration cannot be used (exit 78).
    pub fn s3(&self) -> Result<&S3Access, Failure> {
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

    fn load(yaml: &str, args: FetchArgs) -> Result<Settings, Failure> {
        let temp = tempfile::tempdir().unwrap();
        let config = temp.path().join("s3cache.yaml");
        std::fs::write(&config, yaml).unwrap();
        Settings::load(&FetchArgs {
            config: Some(config),
            ..args
        })
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        let yaml = "max-size: 1G\ntotal-max-size: 2G\ntimeout: 90\nstall-timeout: 250ms\ntrusted-uids: [1001]\n";
        let settings = load(
            yaml,
            FetchArgs {
                max_size: Some(7),
                ..FetchArgs::default()
            },
        )
        .unwrap();
        assert_eq!(settings.max_size, 7);
        assert_eq!(settings.total_max_size, 2 << 30);
        assert_eq!(settings.timeout, Duration::from_secs(90));
        assert_eq!(settings.stall_timeout, Duration::from_millis(250));
        assert_eq!(settings.keep_free, KEEP_FREE);
        assert_eq!(settings.trusted_uids, [1001]);
    }

    #[test]
    fn a_switch_that_is_turned_off_beats_the_file() {
        let yaml = "path-style: true\nno-sign-request: true\nrequire-sidecar: true\n";
        for (flag, expected) in [(None, true), (Some(false), false)] {
            let args = FetchArgs {
                path_style: flag,
                no_sign_request: flag,
                require_sidecar: flag,
                ..FetchArgs::default()
            };
            let settings = load(yaml, args).unwrap();
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
        for key in ["client-cert", "client-key"] {
            let failure = load(&format!("{key}: /x.pem\n"), FetchArgs::default()).unwrap_err();
            assert_eq!(failure.exit(), Exit::CONFIG);
            assert!(
                failure.to_string().contains("s3cache.yaml: one of"),
                "{failure}"
            );
        }
    }

    #[test]
    fn bad_value_names_file_line_key_and_remedy() {
        for (line, says) in [
            (
                "max-size: lots",
                "`max-size`: invalid value `lots`: unknown unit",
            ),
            ("timeout: 0", "`timeout`: invalid value `0`: a timeout of 0"),
            ("stall-timeout: -1", "`stall-timeout`: invalid value `-1`"),
            (
                "connections: 65",
                "`connections`: invalid value `65`: expected 1-64",
            ),
            ("endpoint-url: minio:9000", "write https://minio:9000"),
            (
                "endpoint-url: http://me:hunter2@h",
                "credentials in an endpoint",
            ),
            ("path-style: perhaps", "`path-style`"),
            ("trusted-uids: [bob]", "`trusted-uids`: invalid value"),
            ("cache-dir: ''", "`cache-dir`: invalid empty value"),
            ("endpoint-url: ''", "`endpoint-url`: invalid empty value"),
            ("region: ''", "`region`: invalid empty value"),
            ("profile: \" \"", "`profile`: invalid empty value"),
            ("ca-file: ''", "`ca-file`: invalid empty value"),
            ("client-cert: ''", "`client-cert`: invalid empty value"),
            ("client-key: ''", "`client-key`: invalid empty value"),
            ("max-size: ''", "`max-size`: invalid value ``"),
            ("timeout: ''", "`timeout`: invalid value ``"),
            ("max-size: [1]", "bytes, or a number with K, M, G or T"),
            ("max-size: {a: 1}", "bytes, or a number with K, M, G or T"),
            ("max-size: [", "bytes, or a number with K, M, G or T"),
            ("timeout: [", "seconds, or a number with ms, s, m, h or d"),
            ("connections: [2]", "a number, 1-64"),
            ("part-size: 0", "`part-size`: invalid value `0`"),
            ("max-rate: 0", "`max-rate`: invalid value `0`"),
        ] {
            let failure = load(&format!("# Ours.\n{line}\n"), FetchArgs::default()).unwrap_err();
            let text = failure.to_string();
            assert_eq!(failure.exit(), Exit::CONFIG, "{text}");
            assert!(text.contains("s3cache.yaml:2:"), "{text}");
            assert!(text.contains(says) && !text.contains("hunter2"), "{text}");
        }
    }
}
