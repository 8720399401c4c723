//! `authproxy serve-acl`: a permissions backend over an ACL file, for a site that has none.
//!
//! Owns the endpoints, the life of the process, its status and its metrics. The bytes of requests and responses are
//! `permissions::protocol`'s, the keys `permissions::file`'s.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hostkit::admin::{self, AdminFlags, AdminListener};
use hostkit::http::server::{ANY_PATH, ListeningSocket, ServerLimits};
use hostkit::http::{RouteRequest, RouteResponse, Router, server};
use hostkit::listen::{bind_tcp, cannot_listen};
use hostkit::metrics::{Counter, MetricFamily, MetricSamples, labelled, render};
use hostkit::runtime::limit_connections;
use hostkit::shutdown::{DaemonSignal, DaemonSignals, DrainFlags};
use hostkit::{Exit, Failure, stdout};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;

use crate::permissions::file::AclFile;
use crate::permissions::protocol;

/// Connections at once, fewer if the limit of open files is lower; more wait in the backlog. An authproxy keeps a few, and
/// a host has a hundred of those.
const MAX_CONNECTIONS: usize = 4096;
/// How long a connection is kept open between two requests.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a permissions backend: answers queries about keys over HTTP from an ACL file.
///
/// Any number of authproxies can name it with --acl-server. Every client that reaches the address can query it, but has
/// to have a key to learn anything: listen where only your hosts are.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ServeAcl {
    /// YAML file of the keys, followed as it changes
    #[arg(long, value_name = "FILE")]
    pub acl_file: PathBuf,
    /// Address to listen on
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9402")]
    pub listen: SocketAddr,
    /// Validate the file, print a summary, and exit
    #[arg(long)]
    pub check: bool,
    /// How long requests under way may take at the end.
    #[command(flatten)]
    pub drain: DrainFlags,
    /// The admin listener.
    #[command(flatten)]
    pub admin: AdminFlags,
}

/// The keys, and the counters of queries about them.
#[derive(Debug)]
struct AclServer {
    acl: Arc<AclFile>,
    known: Counter,
    unknown: Counter,
    /// Responses other than 200.
    invalid: Counter,
}

/// Serves until it is asked to end.
///
/// # Errors
/// The file is missing or invalid (exit 78), or the address cannot be bound (exit 73).
pub(crate) fn run(args: &ServeAcl) -> Result<Exit, Failure> {
    let acl = Arc::new(AclFile::open(&args.acl_file)?);
    if args.check {
        let keys = acl.status().entries;
        stdout::print_line(format!("{}: {keys} keys", args.acl_file.display()))?;
        return Ok(Exit::OK);
    }
    let server = Arc::new(AclServer {
        acl,
        known: Counter::default(),
        unknown: Counter::default(),
        invalid: Counter::default(),
    });
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = hostkit::runtime::build(builder.enable_all())?;
    runtime.block_on(serve(args, server))
}

async fn serve(args: &ServeAcl, server: Arc<AclServer>) -> Result<Exit, Failure> {
    let signals = DaemonSignals::new()
        .map_err(|error| Failure::new(Exit::FAILED, "cannot catch signals").because(error))?;
    let cannot_listen = |error| cannot_listen(args.listen, "--listen", error);
    let socket = bind_tcp(args.listen, false)
        .and_then(TcpListener::from_std)
        .map_err(cannot_listen)?;
    let address = socket.local_addr().map_err(cannot_listen)?;
    let admin = match &args.admin.admin {
        Some(address) => Some(AdminListener::bind(address).await?),
        None => None,
    };
    tracing::info!(
        version = hostkit::VERSION,
        listen = address.to_string(),
        admin = admin.as_ref().map(|admin| admin.address().to_string()),
        keys = server.acl.status().entries,
        "started"
    );
    // Both end with the runtime.
    tokio::spawn(Arc::clone(&server.acl).follow());
    if let Some(admin) = admin {
        tokio::spawn(admin.serve(build_admin_router(&server)));
    }
    let limits = ServerLimits {
        max_connections: limit_connections(MAX_CONNECTIONS),
        max_body: protocol::MAX_REQUEST_BYTES,
        idle_timeout: Some(IDLE_TIMEOUT),
        drain_timeout: args.drain.drain_timeout,
    };
    let router = build_router(&server);
    let stop = wait_for_termination(signals, &server);
    server::serve(vec![ListeningSocket::Tcp(socket)], router, limits, stop).await;
    Ok(Exit::OK)
}

async fn wait_for_termination(mut signals: DaemonSignals, server: &AclServer) {
    while signals.next().await == DaemonSignal::Hangup {
        let acl = Arc::clone(&server.acl);
        spawn_blocking(move || acl.reread());
    }
    tracing::info!("termination signal received");
}

/// Queries are posted to any path: a reverse proxy in front may use any.
fn build_router(server: &Arc<AclServer>) -> Router {
    let (queried, counted) = (Arc::clone(server), Arc::clone(server));
    Router::default()
        .route("POST", ANY_PATH, move |request| queried.answer(request))
        .route("GET", ANY_PATH, |_| {
            RouteResponse::error(404, "not found: POST a query")
        })
        .route("GET", "/health", |_| {
            RouteResponse::json(200, &json!({ "ok": true }))
        })
        .on_response(move |status| {
            if status != 200 {
                counted.invalid.add(1);
            }
        })
}

fn build_admin_router(server: &Arc<AclServer>) -> Router {
    let (status, metrics) = (Arc::clone(server), Arc::clone(server));
    admin::build_router(move || status.status(), move || render(metrics.metrics()))
}

impl AclServer {
    fn answer(&self, request: &RouteRequest<'_>) -> RouteResponse {
        let key = match protocol::decode_request(request.body) {
            Ok(key) => key,
            Err(error) => return RouteResponse::error(400, &error),
        };
        let grant = self.acl.get(&key);
        let counter = match grant {
            Some(_) => &self.known,
            None => &self.unknown,
        };
        counter.add(1);
        let body = protocol::encode_response(grant.as_deref());
        RouteResponse::new(200, "application/json", body)
    }

    fn status(&self) -> Map<String, Value> {
        let file = serde_json::to_value(self.acl.status()).unwrap_or_default();
        let queries = json!({
            "known": self.known.get(),
            "unknown": self.unknown.get(),
            "invalid": self.invalid.get(),
        });
        Map::from_iter([("file".to_owned(), file), ("queries".to_owned(), queries)])
    }

    fn metrics(&self) -> Vec<MetricFamily> {
        let file = self.acl.status();
        let keys = i64::try_from(file.entries).unwrap_or(i64::MAX);
        let reloads = [(["success"], file.loaded), (["failure"], file.rejected)];
        let queries = [
            (["known"], self.known.get()),
            (["unknown"], self.unknown.get()),
            (["invalid"], self.invalid.get()),
        ];
        vec![
            MetricFamily {
                name: "authproxy_acl_keys",
                labels: &[],
                help: "Keys in the version of the ACL file that is in force.",
                samples: keys.into(),
            },
            MetricFamily {
                name: "authproxy_acl_file_reloads_total",
                labels: &["result"],
                help: "Changes of the ACL file: success, or failure (the previous version stays in force).",
                samples: MetricSamples::Counters(labelled(reloads)),
            },
            MetricFamily {
                name: "authproxy_acl_queries_total",
                labels: &["result"],
                help: "Queries about keys: known, unknown or invalid.",
                samples: MetricSamples::Counters(labelled(queries)),
            },
        ]
    }
}
