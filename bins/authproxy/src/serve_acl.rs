//! `authproxy serve-acl`: a permissions engine over an ACL file, for a site that has none.
//!
//! Owns the listener, the life of the process and what it tells of itself. What a question is answered is `answer`'s,
//! which keys there are `permissions::file`'s.

mod answer;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hostkit::admin::{self, AdminFlags, AdminListener};
use hostkit::http::Router;
use hostkit::listen::{bind_tcp, cannot_listen};
use hostkit::metrics::{Counter, MetricFamily, MetricSamples, labelled, render};
use hostkit::shutdown::{DaemonSignal, DaemonSignals, DrainFlags};
use hostkit::{Exit, Failure, stdout};
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Map, Value, json};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use crate::permissions::file::AclFile;

/// Connections at once; more wait in the backlog. An authproxy keeps a few, and a host has a hundred of those.
const CONNECTIONS: usize = 4096;
/// How long a connection may take for a head, and how long one without a question is kept.
const IDLE: Duration = Duration::from_secs(60);
/// How long a peer may leave bytes unread.
const UNREAD: Duration = Duration::from_secs(10);
/// How long nothing is accepted after the system had no more descriptors.
const RECOVERY: Duration = Duration::from_millis(50);

/// Runs a permissions engine: answers over HTTP what an ACL file says of keys.
///
/// It is what --acl-server of any number of authproxies can name. Whoever reaches the address can ask, but has to know
/// a key to learn anything: listen where only your hosts are.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeAcl {
    /// The keys: a YAML file, followed as it changes
    #[arg(long, value_name = "FILE")]
    pub acl_file: PathBuf,
    /// Where it is asked
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9402")]
    pub listen: SocketAddr,
    /// Read and validate the file, print a summary, and stop
    #[arg(long)]
    pub check: bool,
    /// How it ends.
    #[command(flatten)]
    pub drain: DrainFlags,
    /// Where it can be looked at.
    #[command(flatten)]
    pub admin: AdminFlags,
}

/// What is asked of it, and the counts of it.
#[derive(Debug)]
struct Engine {
    acl: Arc<AclFile>,
    known: Counter,
    unknown: Counter,
    /// Requests that were no questions.
    refused: Counter,
}

/// Serves until it is told to stop.
///
/// # Errors
/// The file is missing or wrong (exit 78), or the address cannot be bound (exit 73).
pub fn run(args: &ServeAcl) -> Result<Exit, Failure> {
    let acl = Arc::new(AclFile::open(&args.acl_file)?);
    if args.check {
        let keys = acl.status().entries;
        stdout::print_line(format!("{}: {keys} keys", args.acl_file.display()))?;
        return Ok(Exit::OK);
    }
    let engine = Arc::new(Engine {
        acl,
        known: Counter::default(),
        unknown: Counter::default(),
        refused: Counter::default(),
    });
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = hostkit::runtime::build(builder.enable_all())?;
    runtime.block_on(serve(args, engine))
}

async fn serve(args: &ServeAcl, engine: Arc<Engine>) -> Result<Exit, Failure> {
    let mut signals = DaemonSignals::new()
        .map_err(|error| Failure::new(Exit::FAILED, "cannot catch signals").because(error))?;
    let cannot_listen = |error| cannot_listen(args.listen, "--listen", error);
    let listener = bind_tcp(args.listen, false)
        .and_then(TcpListener::from_std)
        .map_err(cannot_listen)?;
    let address = listener.local_addr().map_err(cannot_listen)?;
    let admin = match &args.admin.admin {
        Some(address) => Some(AdminListener::bind(address).await?),
        None => None,
    };
    tracing::info!(
        version = hostkit::VERSION,
        listen = address.to_string(),
        admin = admin.as_ref().map(|admin| admin.address().to_string()),
        keys = engine.acl.status().entries,
        "started"
    );
    // Both end with the runtime.
    tokio::spawn(Arc::clone(&engine.acl).follow());
    if let Some(admin) = admin {
        tokio::spawn(admin.serve(routes(&engine)));
    }

    let (draining, drain) = watch::channel(false);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            told = signals.next() => match told {
                DaemonSignal::Terminate => break,
                DaemonSignal::Hangup => {
                    let acl = Arc::clone(&engine.acl);
                    spawn_blocking(move || acl.reread());
                }
            },
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&engine), drain.clone()));
                }
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    sleep(RECOVERY).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    tracing::info!("told to stop");
    drop(listener);
    draining.send_replace(true);
    let finished = async { while connections.join_next().await.is_some() {} };
    if timeout(args.drain.drain_timeout, finished).await.is_err() {
        tracing::warn!("ending, although not all is done: --drain-timeout is over");
    }
    Ok(Exit::OK)
}

async fn connection(stream: TcpStream, engine: Arc<Engine>, mut drain: watch::Receiver<bool>) {
    // Neither can fail on a socket that is open, and without them it still works.
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD));
    let service = service_fn(move |request| answer::answer(Arc::clone(&engine), request));
    let mut served = pin!(
        Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .max_buf_size(answer::HEAD)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        // What a connection ends of is its peer's affair.
        _ = &mut served => return,
        _ = drain.wait_for(|draining| *draining) => {}
    }
    served.as_mut().graceful_shutdown();
    let _ = served.await;
}

fn routes(engine: &Arc<Engine>) -> Router {
    let (status, metrics) = (Arc::clone(engine), Arc::clone(engine));
    admin::build_router(move || status.status(), move || render(metrics.metrics()))
}

impl Engine {
    fn status(&self) -> Map<String, Value> {
        let file = serde_json::to_value(self.acl.status()).unwrap_or_default();
        Map::from_iter([
            ("file".to_owned(), file),
            (
                "questions".to_owned(),
                json!({
                    "known": self.known.get(),
                    "unknown": self.unknown.get(),
                    "refused": self.refused.get(),
                }),
            ),
        ])
    }

    fn metrics(&self) -> Vec<MetricFamily> {
        let file = self.acl.status();
        let keys = i64::try_from(file.entries).unwrap_or(i64::MAX);
        let reloads = [(["success"], file.loaded), (["failure"], file.rejected)];
        let queries = [
            (["known"], self.known.get()),
            (["unknown"], self.unknown.get()),
            (["invalid"], self.refused.get()),
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
