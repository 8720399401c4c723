//! What pexrun knows before it looks anywhere: repositories, names, cache, how to run a jar. From flags, environment
//! and two configuration files, the host's and the user's.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use hostkit::config::value::{self, Text};
use hostkit::{Exit, Failure};
use nix::unistd::{AccessFlags, access};
use s3cache::{CacheShare, FetchArgs, Freshness, HostCache, Settings};
use serde::Deserialize;
use serde::de::{self, Deserializer, Error as _, IntoDeserializer as _, SeqAccess, Visitor};
use tracing::debug;

use crate::arch;
use crate::build_lookup;
use crate::cli::Args;
use crate::name_template::{NameTemplate, spellings};

/// The version that means "the build that has none".
pub(crate) const STATIC: &str = "static";

/// `pexrun.yaml`, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Raw {
    #[serde(deserialize_with = "repositories")]
    repository: Option<Vec<String>>,
    #[serde(deserialize_with = "value::text")]
    cache_dir: Option<PathBuf>,
    #[serde(deserialize_with = "value::text")]
    arch: Option<String>,
    pex_name: Option<NameTemplate>,
    jar_name: Option<NameTemplate>,
    #[serde(deserialize_with = "value::text")]
    java: Option<String>,
    #[serde(deserialize_with = "value::texts")]
    java_flags: Option<Vec<String>>,
    pex_root: Option<PexRoot>,
    #[serde(deserialize_with = "s3cache::settings::endpoint")]
    endpoint_url: Option<String>,
    #[serde(deserialize_with = "value::text")]
    region: Option<String>,
    #[serde(deserialize_with = "value::text")]
    profile: Option<String>,
}

/// One repository or a list of them.
fn repositories<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    struct OneOrMany;
    impl<'de> Visitor<'de> for OneOrMany {
        type Value = Option<Vec<String>>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a URL or a list of them")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let Repository(url) = Repository::deserialize(text.into_deserializer())?;
            Ok(Some(vec![url]))
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut urls = Vec::new();
            while let Some(Repository(url)) = list.next_element()? {
                urls.push(url);
            }
            Ok(Some(urls))
        }
        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }
    from.deserialize_any(OneOrMany)
}

/// A place where builds are published.
struct Repository(String);

impl<'de> Deserialize<'de> for Repository {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let Text(url) = Text::deserialize(from)?;
        build_lookup::source(&url, "JOB").map_err(D::Error::custom)?;
        Ok(Self(url))
    }
}

/// What happens to `PEX_ROOT` when the caller has not set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PexRoot {
    /// It points into the cache, where what was unpacked outlives the sandbox.
    #[default]
    Cache,
    /// It is left alone.
    Keep,
}

/// Validated configuration of one run.
#[derive(Debug)]
pub(crate) struct Config {
    /// Where builds are published, in the order they are asked.
    pub repositories: Vec<String>,
    /// What builds are for.
    pub arch: String,
    /// The name of a pex.
    pub pex_name: NameTemplate,
    /// The name of a jar.
    pub jar_name: NameTemplate,
    /// The program that runs a jar.
    pub java: String,
    /// Its flags.
    pub java_flags: Vec<String>,
    /// What happens to `PEX_ROOT`.
    pub pex_root: PexRoot,
    /// How artifacts are fetched.
    pub settings: Settings,
    /// Parts of the shared cache that can be read when it cannot be written and the user's own is used.
    pub readable: Vec<CacheShare>,
}

/// What was read besides, for `--check`.
#[derive(Debug)]
pub(crate) struct Layers {
    /// The settings of s3cache that `pexrun.yaml` makes.
    pub own_file: FetchArgs,
    /// The same below those of flags and environment.
    pub merged: FetchArgs,
    /// The keys of its own that `pexrun.yaml` has.
    pub written: Vec<&'static str>,
}

impl Config {
    /// Settles everything.
    ///
    /// # Errors
    /// A configuration file is wrong, or nothing says where builds are published.
    pub(crate) fn load(args: &Args) -> Result<Self, Failure> {
        let (mut config, _) = Self::read(args)?;
        config.readable = writable_cache(&mut config.settings, own_cache());
        Ok(config)
    }

    /// Whether the cache is the user's own one, because the shared one cannot be written.
    #[must_use]
    pub(crate) fn has_own_cache(&self) -> bool {
        own_cache().is_some_and(|own| self.settings.cache_dir.starts_with(own))
    }

    /// The same without looking at the cache, which makes its directories.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub(crate) fn read(args: &Args) -> Result<(Self, Layers), Failure> {
        let personal = personal_file();
        let raw: Raw =
            hostkit::config::load("pexrun", args.fetch.config.as_deref(), personal.as_deref())?;
        let written = [
            ("repository", raw.repository.is_some()),
            ("arch", raw.arch.is_some()),
            ("pex-name", raw.pex_name.is_some()),
            ("jar-name", raw.jar_name.is_some()),
            ("java", raw.java.is_some()),
            ("java-flags", raw.java_flags.is_some()),
            ("pex-root", raw.pex_root.is_some()),
        ];
        let written = written.into_iter().filter(|(_, is_written)| *is_written);
        let written = written.map(|(key, _)| key).collect();
        let mut places = BTreeMap::new();
        if raw.profile.is_some() && args.fetch.profile.is_none() {
            let explicit = args.fetch.config.as_deref();
            let place = hostkit::config::place("pexrun", explicit, personal.as_deref(), "profile");
            places.extend(place.map(|place| ("profile", place)));
        }
        let own_file = FetchArgs {
            cache_dir: raw.cache_dir,
            endpoint_url: raw.endpoint_url,
            region: raw.region,
            profile: raw.profile,
            ..FetchArgs::default()
        };
        let s3cache_config = || hostkit::env::var_os("HOSTKIT_S3CACHE_CONFIG").map(PathBuf::from);
        let fetch = FetchArgs {
            config: args.s3cache_config.clone().or_else(s3cache_config),
            cache_dir: args
                .fetch
                .cache_dir
                .clone()
                .or_else(|| own_file.cache_dir.clone()),
            endpoint_url: args
                .fetch
                .endpoint_url
                .clone()
                .or_else(|| own_file.endpoint_url.clone()),
            region: args
                .fetch
                .region
                .clone()
                .or_else(|| own_file.region.clone()),
            profile: args
                .fetch
                .profile
                .clone()
                .or_else(|| own_file.profile.clone()),
            places,
            ..args.fetch.clone()
        };
        let mut settings = Settings::load(&fetch)?;
        // The program may go elsewhere, and takes PEX_ROOT and its own path along.
        settings.cache_dir = std::path::absolute(&settings.cache_dir).unwrap_or(settings.cache_dir);
        let version = args.version().map(|(version, _)| version);
        if version.is_some_and(|version| version == STATIC)
            && settings.freshness == Freshness::ByName
        {
            // The job may be called like a version.
            settings.freshness = Freshness::Revalidate;
        }
        let given: Vec<String> = args
            .repository
            .iter()
            .filter(|url| !url.is_empty())
            .cloned()
            .collect();
        let repositories = match raw.repository {
            _ if !given.is_empty() => given,
            written => written.unwrap_or_default(),
        };
        let offline = args.cached || settings.freshness == Freshness::Offline;
        if repositories.is_empty() && !offline {
            return Err(Failure::new(Exit::CONFIG, "nothing says where builds are published").remedy(
                "write `repository: s3://bucket/prefix` (or an https:// or file:/// URL) into /etc/hostkit/pexrun.yaml or \
                 ~/.config/hostkit/pexrun.yaml, or give --repository",
            ));
        }
        let template = |written: Option<NameTemplate>, default: &str| match written {
            Some(template) => Ok(template),
            None => NameTemplate::parse(default),
        };
        let config = Self {
            repositories,
            arch: match args.arch.clone().or(raw.arch) {
                Some(arch) => arch,
                None => arch::host_arch()?,
            },
            pex_name: template(raw.pex_name, "{job}-{version}-{arch}.pex")?,
            jar_name: template(raw.jar_name, "{job}-{version}.jar")?,
            java: raw.java.unwrap_or_else(|| "java".to_owned()),
            java_flags: raw.java_flags.unwrap_or_default(),
            pex_root: raw.pex_root.unwrap_or_default(),
            settings,
            readable: Vec::new(),
        };
        let layers = Layers {
            own_file,
            merged: fetch,
            written,
        };
        Ok((config, layers))
    }

    /// The file names a version of a job may have, in the order they are looked for.
    #[must_use]
    pub(crate) fn names(&self, job: &str, version: &str) -> Vec<String> {
        if version == STATIC {
            return vec![
                format!("{job}-{}.pex", self.arch),
                format!("{job}.pex"),
                format!("{job}.jar"),
            ];
        }
        let of = |version: String| {
            [&self.pex_name, &self.jar_name].map(|name| name.fill(job, &version, &self.arch))
        };
        spellings(version).into_iter().flat_map(of).collect()
    }
}

/// The configuration file that decides, for each key of `pexrun.yaml`.
///
/// # Errors
/// As [`Config::load`].
pub(crate) fn deciding_files(args: &Args) -> Result<BTreeMap<String, PathBuf>, Failure> {
    let explicit = args.fetch.config.as_deref();
    hostkit::config::deciding_files("pexrun", explicit, personal_file().as_deref())
}

/// The user's own configuration file.
fn personal_file() -> Option<PathBuf> {
    Some(absolute_variable("HOME")?.join(".config/hostkit/pexrun.yaml"))
}

/// Where a user's own caches are.
fn own_cache() -> Option<PathBuf> {
    absolute_variable("XDG_CACHE_HOME").or_else(|| Some(absolute_variable("HOME")?.join(".cache")))
}

/// The directory that a variable names. A relative one would be below whatever directory this happens to be started in.
fn absolute_variable(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os(name)?);
    path.is_absolute().then_some(path)
}

/// Uses the user's own cache, below `own`, where the shared one cannot be written; what can be read of that is returned.
fn writable_cache(settings: &mut Settings, own: Option<PathBuf>) -> Vec<CacheShare> {
    let (why, readable) = match HostCache::open(settings) {
        Err(unusable) => (unusable.to_string(), unusable.readable),
        Ok(cache) => match access(cache.own.dir().path(), AccessFlags::W_OK) {
            Ok(()) => return Vec::new(),
            Err(error) => (
                format!(
                    "cannot write to {}: {error}",
                    cache.own.dir().path().display()
                ),
                trusted(settings),
            ),
        },
    };
    if let Some(own) = own {
        debug!("{why}: using a cache of one's own below {}", own.display());
        settings.cache_dir = own.join("hostkit/s3cache");
    }
    readable
}

/// The parts of the cache whose entries are used without asking anybody: what runs is only what root, the caller or a
/// uid named in the configuration fetched.
#[must_use]
pub(crate) fn trusted(settings: &Settings) -> Vec<CacheShare> {
    let me = nix::unistd::geteuid().as_raw();
    let mut shares = s3cache::readable_shares(settings).unwrap_or_default();
    shares.retain(|share| {
        share.uid == 0 || share.uid == me || settings.trusted_uids.contains(&share.uid)
    });
    shares
}
