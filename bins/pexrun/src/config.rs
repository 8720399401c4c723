//! What pexrun knows before it looks anywhere: repositories, names, cache, how to run a jar. From flags, environment
//! and two configuration files, the host's and the user's.

use std::path::PathBuf;

use hostkit::{Exit, Failure};
use nix::unistd::{AccessFlags, access};
use s3cache::settings::Freshness;
use s3cache::{Settings, cache};
use serde::Deserialize;
use tracing::debug;

use crate::arch;
use crate::cli::Args;
use crate::names::Template;

/// The version that means "the build that has none".
pub const STATIC: &str = "static";

/// `pexrun.yaml`, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Raw {
    repository: Option<OneOrMany>,
    cache_dir: Option<PathBuf>,
    arch: Option<String>,
    pex_name: Option<String>,
    jar_name: Option<String>,
    java: Option<String>,
    java_flags: Option<Vec<String>>,
    pex_root: Option<PexRoot>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// What happens to `PEX_ROOT` when the caller has not set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum PexRoot {
    /// It points into the cache, where what was unpacked outlives the sandbox.
    #[default]
    Cache,
    /// It is left alone.
    Keep,
}

/// Validated configuration of one run.
#[derive(Debug)]
pub struct Config {
    /// Where builds are published, in the order they are asked.
    pub repositories: Vec<String>,
    /// What builds are for.
    pub arch: String,
    /// The name of a pex.
    pub pex_name: Template,
    /// The name of a jar.
    pub jar_name: Template,
    /// The program that runs a jar.
    pub java: String,
    /// Its flags.
    pub java_flags: Vec<String>,
    /// What happens to `PEX_ROOT`.
    pub pex_root: PexRoot,
    /// How artifacts are fetched.
    pub settings: Settings,
    /// Parts of the shared cache that can be read when it cannot be written and the user's own is used.
    pub readable: Vec<cache::Share>,
}

impl Config {
    /// Settles everything.
    ///
    /// # Errors
    /// A configuration file is wrong, or nothing says where builds are published.
    pub fn load(args: &Args) -> Result<Self, Failure> {
        // A relative one is nobody's home, but whatever directory this happens to be started in.
        let absolute = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let home = absolute("HOME");
        let personal = home
            .as_ref()
            .map(|home| home.join(".config/hostkit/pexrun.yaml"));
        let raw: Raw =
            hostkit::config::load("pexrun", args.fetch.config.as_deref(), personal.as_deref())?;
        let mut fetch = args.fetch.clone();
        fetch.config = None;
        fetch.cache_dir = fetch.cache_dir.or(raw.cache_dir);
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
        let own = absolute("XDG_CACHE_HOME").or_else(|| Some(home?.join(".cache")));
        let readable = writable_cache(&mut settings, own);
        let given: Vec<String> = args
            .repository
            .iter()
            .filter(|url| !url.is_empty())
            .cloned()
            .collect();
        let repositories = match raw.repository {
            _ if !given.is_empty() => given,
            Some(OneOrMany::One(one)) => vec![one],
            Some(OneOrMany::Many(many)) => many,
            None => Vec::new(),
        };
        let offline = args.cached || settings.freshness == Freshness::Offline;
        if repositories.is_empty() && !offline {
            return Err(Failure::new(Exit::CONFIG, "nothing says where builds are published").remedy(
                "write `repository: s3://bucket/prefix` (or an https:// or file:/// URL) into /etc/hostkit/pexrun.yaml or \
                 ~/.config/hostkit/pexrun.yaml, or give --repository",
            ));
        }
        let template = |text: Option<String>, default: &str| {
            Template::parse(&text.unwrap_or_else(|| default.to_owned()))
        };
        Ok(Self {
            repositories,
            arch: match args.arch.clone().or(raw.arch) {
                Some(arch) => arch,
                None => arch::of_this_host()?,
            },
            pex_name: template(raw.pex_name, "{job}-{version}-{arch}.pex")?,
            jar_name: template(raw.jar_name, "{job}-{version}.jar")?,
            java: raw.java.unwrap_or_else(|| "java".to_owned()),
            java_flags: raw.java_flags.unwrap_or_default(),
            pex_root: raw.pex_root.unwrap_or_default(),
            settings,
            readable,
        })
    }

    /// The file names a version of a job may have, in the order they are looked for.
    #[must_use]
    pub fn names(&self, job: &str, version: &str) -> Vec<String> {
        if version == STATIC {
            return vec![
                format!("{job}-{}.pex", self.arch),
                format!("{job}.pex"),
                format!("{job}.jar"),
            ];
        }
        vec![
            self.pex_name.fill(job, version, &self.arch),
            self.jar_name.fill(job, version, &self.arch),
        ]
    }
}

/// Uses the user's own cache, below `own`, where the shared one cannot be written; what can be read of that is returned.
fn writable_cache(settings: &mut Settings, own: Option<PathBuf>) -> Vec<cache::Share> {
    let (why, readable) = match cache::Cache::open(settings) {
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
pub fn trusted(settings: &Settings) -> Vec<cache::Share> {
    let me = nix::unistd::geteuid().as_raw();
    let mut shares = s3cache::verbs::all_shares(settings).unwrap_or_default();
    shares.retain(|share| {
        share.uid == 0 || share.uid == me || settings.trusted_uids.contains(&share.uid)
    });
    shares
}
