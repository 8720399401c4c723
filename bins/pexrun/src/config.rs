//! The configuration of pexrun: repositories, names of builds, the cache, how to run a jar. From flags, environment and the
//! configuration files of pexrun and, below them, of s3cache.

use std::path::PathBuf;

use hostkit::cli::{CommandLine, FileLayer, SettingTable};
use hostkit::config::{ConfigFiles, value};
use hostkit::mask::mask_url;
use hostkit::{Exit, Failure};
use nix::unistd::{AccessFlags, access};
use s3cache::{CacheShare, Freshness, HostCache, Settings};
use s3cache::{file_layer, read_files};
use serde::Deserialize;
use tracing::debug;

use crate::arch;
use crate::cli::Args;
use crate::name_template::{NameTemplate, spellings};

/// The version that means "the build that has none".
pub(crate) const STATIC: &str = "static";

/// The settings that only pexrun has.
const OWN_SETTINGS: &[&str] = &["repository", "arch"];
/// The settings of s3cache that `pexrun.yaml` may hold too.
const SHARED_SETTINGS: &[&str] = &["cache-dir", "endpoint-url", "region", "profile"];
/// The keys of [`FileOnly`].
const FILE_KEYS: &[&str] = &["pex-name", "jar-name", "java", "java-flags", "pex-root"];

/// What only `pexrun.yaml` can set.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct FileOnly {
    pex_name: Option<NameTemplate>,
    jar_name: Option<NameTemplate>,
    #[serde(deserialize_with = "value::text")]
    java: Option<String>,
    #[serde(deserialize_with = "value::texts")]
    java_flags: Option<Vec<String>>,
    pex_root: Option<PexRoot>,
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
    /// Where builds are published, in the order in which they are tried.
    pub repositories: Vec<String>,
    /// The architecture in the names of builds.
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

/// Where the configuration comes from, for `--check`.
#[derive(Debug)]
pub(crate) struct ConfigSources {
    pub(crate) table: SettingTable,
    pub(crate) s3cache_files: ConfigFiles,
}

impl Config {
    /// Reads everything, and chooses a cache that can be written.
    ///
    /// # Errors
    /// A configuration file is invalid, or there is no repository.
    pub(crate) fn load(line: &CommandLine) -> Result<Self, Failure> {
        let (mut config, _) = Self::read(line)?;
        config.readable = writable_cache(&mut config.settings, own_cache());
        Ok(config)
    }

    /// Whether the cache is the user's own one, because the shared one cannot be written.
    #[must_use]
    pub(crate) fn has_own_cache(&self) -> bool {
        own_cache().is_some_and(|own| self.settings.cache_dir.starts_with(own))
    }

    /// Reads everything, and does not look at the cache.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub(crate) fn read(line: &CommandLine) -> Result<(Self, ConfigSources), Failure> {
        let matches = line.matches();
        let path = |flag: &str| matches.get_one::<PathBuf>(flag).cloned();
        let own_files = ConfigFiles::read(
            "pexrun",
            path("config").as_deref(),
            personal_file().as_deref(),
        )?;
        let s3cache_config = path("s3cache_config")
            .or_else(|| hostkit::env::var_os("HOSTKIT_S3CACHE_CONFIG").map(PathBuf::from));
        let s3cache_files = read_files(s3cache_config.as_deref())?;
        let own_layer = FileLayer {
            files: &own_files,
            accepts: |key| OWN_SETTINGS.contains(&key) || SHARED_SETTINGS.contains(&key),
            other_keys: FILE_KEYS,
        };
        let s3cache_layer = file_layer(&s3cache_files, |key| !OWN_SETTINGS.contains(&key));
        let (args, mut table) = line.with_files::<Args>(&[own_layer, s3cache_layer])?;
        let file: FileOnly = own_files.structured()?;
        let mut settings = Settings::resolve(&args.fetch, &table, &s3cache_files)?;
        // The program may change its directory, and takes PEX_ROOT and its own path along.
        settings.cache_dir = std::path::absolute(&settings.cache_dir).unwrap_or(settings.cache_dir);
        let version = args.version().map(|(version, _)| version);
        if version.is_some_and(|version| version == STATIC)
            && settings.freshness == Freshness::ByName
        {
            // The job may be called like a version.
            settings.freshness = Freshness::Revalidate;
        }
        let offline = args.cached || settings.freshness == Freshness::Offline;
        if args.repository.is_empty() && !offline {
            return Err(Failure::new(Exit::CONFIG, "missing repository").remedy(
                "write `repository: s3://bucket/prefix` (or an https:// or file:/// URL) into /etc/hostkit/pexrun.yaml or \
                 ~/.config/hostkit/pexrun.yaml, or give --repository",
            ));
        }
        let template = |written: Option<NameTemplate>, default: &str| match written {
            Some(template) => Ok(template),
            None => NameTemplate::parse(default),
        };
        let config = Self {
            repositories: args.repository,
            arch: match args.arch {
                Some(arch) => arch,
                None => arch::host_arch()?,
            },
            pex_name: template(file.pex_name, "{job}-{version}-{arch}.pex")?,
            jar_name: template(file.jar_name, "{job}-{version}.jar")?,
            java: file.java.unwrap_or_else(|| "java".to_owned()),
            java_flags: file.java_flags.unwrap_or_default(),
            pex_root: file.pex_root.unwrap_or_default(),
            settings,
            readable: Vec::new(),
        };
        config.complete(&mut table, &own_files);
        let sources = ConfigSources {
            table,
            s3cache_files,
        };
        Ok((config, sources))
    }

    /// Adds what only the file can set, and what is derived, to the table of `--check`.
    fn complete(&self, table: &mut SettingTable, files: &ConfigFiles) {
        table.show("arch", self.arch.clone(), "this host");
        let flags = match self.java_flags.as_slice() {
            [] => "none".to_owned(),
            flags => {
                let shown: Vec<String> = flags.iter().map(|flag| mask_url(flag)).collect();
                shown.join(" ")
            }
        };
        for (key, value) in [
            ("pex-name", self.pex_name.to_string()),
            ("jar-name", self.jar_name.to_string()),
            ("java", self.java.clone()),
            ("java-flags", flags),
            ("pex-root", format!("{:?}", self.pex_root).to_lowercase()),
        ] {
            table.push(key, value, files);
        }
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
        debug!(error = why, path = %own.display(), "cannot use the shared cache; using the user's own");
        settings.cache_dir = own.join("hostkit/s3cache");
    }
    readable
}

/// The parts of the cache whose entries are used without a request: what runs is only what root, the caller or a
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
