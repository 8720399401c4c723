//! The daemon: starts all parts in their order, handles signals, and stops.

use std::sync::Arc;
use std::time::Duration;

use hostkit::admin::AdminListener;
use hostkit::cli::CommandLine;
use hostkit::shutdown::{DaemonSignal, DaemonSignals};
use hostkit::{Exit, Failure};
use tokio::task::spawn_blocking;

use crate::access_log::AccessLog;
use crate::admin;
use crate::authorizer::{Authorizer, GrantSource};
use crate::cache::{PermissionsCache, SharedCache};
use crate::cli::Args;
use crate::connection;
use crate::eviction_queue::EvictionQueue;
use crate::lifecycle::ProcessLifecycle;
use crate::metrics::ProxyMetrics;
use crate::permissions::RemoteBackend;
use crate::permissions::file::AclFile;
use crate::permissions::liveconf::LiveconfBackend;
use crate::permissions::server::{DEADLINE, PermissionsServers};
use crate::proxy::Proxy;
use crate::record::{FailureLog, Telemetry};
use crate::reload::ConfigReloader;
use crate::server::{self, ListenSockets};
use crate::settings::{self, BackendSettings, LiveSettings, LoadedSettings, Settings};

/// Threads for reading files and resolving names.
const BLOCKING_THREADS: usize = 4;
/// A reload builds clap's command, which takes more than 512 KiB of stack in a debug build.
const STACK_BYTES: usize = 2 << 20;
/// The time to write the last lines of the access log on exit.
const ACCESS_LOG_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs until SIGTERM.
///
/// # Errors
/// An address cannot be bound (exit 73), the ACL file is invalid (exit 78), or a thread cannot be started (exit 1).
pub(crate) fn run(
    args: Args,
    matches: &CommandLine,
    start: LoadedSettings,
) -> Result<Exit, Failure> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(STACK_BYTES);
    let runtime = hostkit::runtime::build(&mut builder)?;
    let telemetry = runtime.block_on(serve(args, matches.clone(), start));
    // Does not wait for threads that are blocked on a disk or a name server.
    runtime.shutdown_background();
    // After the runtime, with which the last requests end.
    if let Some(access) = &telemetry?.access {
        access.finish(ACCESS_LOG_TIMEOUT);
    }
    Ok(Exit::OK)
}

async fn serve(
    args: Args,
    matches: CommandLine,
    start: LoadedSettings,
) -> Result<Arc<Telemetry>, Failure> {
    let settings = start.settings.clone();
    let signals = DaemonSignals::new()
        .map_err(|error| Failure::new(Exit::FAILED, "cannot catch signals").because(error))?;
    let authorizer = open_backend(&settings)?;
    let sockets = ListenSockets::bind(&settings.listen)?;
    let admin = match &settings.admin {
        Some(address) => Some(AdminListener::bind(address).await?),
        None => None,
    };
    let tags = &args.common.logstash_tags;
    let access = settings
        .access_log
        .map(|shape| AccessLog::start(shape, tags))
        .transpose()?;
    let telemetry = Arc::new(Telemetry {
        metrics: ProxyMetrics::default(),
        access,
        failures: FailureLog::default(),
    });
    let listen: Vec<String> = sockets
        .addresses()
        .iter()
        .map(ToString::to_string)
        .collect();
    tracing::info!(
        version = hostkit::VERSION,
        listen = listen.join(" "),
        admin = admin.as_ref().map(|admin| admin.address().to_string()),
        server = settings.server.to_string(),
        "started"
    );
    let reload = Arc::new(ConfigReloader::new(args, matches, start));
    let drain_timeout = settings.drain_timeout;
    let proxy = Arc::new(Proxy {
        site: LiveSettings::new(Arc::clone(&settings.site)),
        settings,
        authorizer,
        telemetry: Arc::clone(&telemetry),
        lifecycle: ProcessLifecycle::default(),
        lingering: EvictionQueue::new(usize::MAX),
        partial_heads: EvictionQueue::new(connection::MAX_PARTIAL_HEADS),
    });
    // Both tasks end with the runtime.
    if let Some(admin) = admin {
        tokio::spawn(admin.serve(admin::build_router(&proxy, &reload)));
    }
    tokio::spawn(handle_signals(signals, Arc::clone(&proxy), reload));
    server::serve(sockets, proxy, drain_timeout).await?;
    Ok(telemetry)
}

async fn handle_signals(
    mut signals: DaemonSignals,
    proxy: Arc<Proxy>,
    reload: Arc<ConfigReloader>,
) {
    loop {
        match signals.next().await {
            DaemonSignal::Terminate => proxy.lifecycle.begin_shutdown(),
            DaemonSignal::Hangup => {
                let (proxy, reload) = (Arc::clone(&proxy), Arc::clone(&reload));
                spawn_blocking(move || {
                    reload.reload(&proxy);
                    proxy.authorizer.reread();
                });
            }
        }
    }
}

/// Opens the permissions backend, and follows its file if it has one.
fn open_backend(settings: &Settings) -> Result<Authorizer, Failure> {
    let backend = match &settings.backend {
        BackendSettings::File(path) => {
            let file = Arc::new(AclFile::open(path)?);
            tokio::spawn(Arc::clone(&file).follow());
            return Ok(Authorizer::new(GrantSource::File(file)));
        }
        BackendSettings::Servers(urls) => {
            RemoteBackend::Servers(PermissionsServers::new(urls, DEADLINE)?)
        }
        BackendSettings::Liveconf(path) => {
            let liveconf = Arc::new(LiveconfBackend::open(path));
            tokio::spawn(Arc::clone(&liveconf).follow());
            RemoteBackend::Liveconf(liveconf)
        }
    };
    let shared = settings
        .memcached
        .as_ref()
        .map(SharedCache::new)
        .transpose();
    let shared = shared.map_err(|error| Failure::new(Exit::CONFIG, error))?;
    let cache = PermissionsCache::new(backend, settings.cache, shared);
    Ok(Authorizer::new(GrantSource::Remote(cache)))
}

/// `--check`: reads all files, and binds nothing.
pub(crate) fn check(loaded: &LoadedSettings) -> Result<String, Failure> {
    let settings = &loaded.settings;
    let mut summary = format!("{}\n{}", loaded.table, settings::describe_effects(settings));
    match &settings.backend {
        BackendSettings::File(path) => {
            let keys = AclFile::open(path)?.status().entries;
            summary.push_str(&format!("keys: {keys}\n"));
        }
        // A missing or invalid file is logged; the daemon starts all the same.
        BackendSettings::Liveconf(path) => {
            for server in LiveconfBackend::open(path).status().servers {
                summary.push_str(&format!("permissions server: {}\n", server.url));
            }
        }
        BackendSettings::Servers(_) => {}
    }
    Ok(summary)
}
