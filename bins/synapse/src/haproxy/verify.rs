//! Whether what runs after a reload is what was meant: another process, the structure it was given, every new bind, and
//! the operator's `canary_url`.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout_at};

use super::bind::reachable;
use super::bindings::{At, Bind, Host};
use super::info::{Info, environment};
use super::{STRUCTURE, Socket, SocketError};

/// How often what is not there yet is looked for again.
const POLL: Duration = Duration::from_millis(20);

/// What is not as it was meant.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The process that served before still does.
    #[error("process {pid} of before still serves {after:?} after the reload")]
    SameProcess {
        /// Its pid.
        pid: i32,
        /// How long was waited.
        after: Duration,
    },
    /// Nobody answers.
    #[error("HAProxy does not answer after the reload")]
    Silent(#[source] SocketError),
    /// It runs something else.
    #[error(
        "HAProxy loaded structure {found:?} and not {wanted}: it reads another file, or somebody reloaded it meanwhile"
    )]
    Structure {
        /// What it says.
        found: Option<String>,
        /// What was written.
        wanted: String,
    },
    /// A bind does not listen.
    #[error("nobody listens at {bind} after the reload")]
    Bind {
        /// Which.
        bind: Bind,
        /// What connecting to it came to.
        source: io::Error,
    },
    /// `canary_url` does not answer as it should.
    #[error("canary_url {url}: {why}")]
    Canary {
        /// The URL, without secrets.
        url: String,
        /// What came back.
        why: String,
    },
}

/// Waits until another process than `old` answers, and sees that it loaded `structure` when one is given.
///
/// # Errors
/// [`VerifyError`].
pub async fn worker(
    stats: &Socket,
    old: Option<i32>,
    structure: Option<&str>,
    deadline: Duration,
) -> Result<Info, VerifyError> {
    let until = Instant::now() + deadline;
    let info = loop {
        let failed = match stats.ask("show info").await {
            Ok(text) => match Info::parse(&text) {
                Some(info) if Some(info.pid) != old => break info,
                Some(info) => VerifyError::SameProcess {
                    pid: info.pid,
                    after: deadline,
                },
                None => VerifyError::Silent(SocketError::Closed {
                    path: stats.path().to_owned(),
                    answered: 0,
                    asked: 1,
                }),
            },
            Err(error) => VerifyError::Silent(error),
        };
        if Instant::now() >= until {
            return Err(failed);
        }
        sleep(POLL).await;
    };
    if let Some(wanted) = structure {
        let found = loaded(stats).await.map_err(VerifyError::Silent)?;
        if found.as_deref() != Some(wanted) {
            return Err(VerifyError::Structure {
                found,
                wanted: wanted.to_owned(),
            });
        }
    }
    Ok(info)
}

/// The structure that the running HAProxy loaded; `None` when its file does not say.
///
/// # Errors
/// [`SocketError`].
pub async fn loaded(stats: &Socket) -> Result<Option<String>, SocketError> {
    let reply = stats.ask(&format!("show env {STRUCTURE}")).await?;
    Ok(environment(STRUCTURE, &reply))
}

/// Connects to every bind; what cannot be connected to from here is left out.
///
/// # Errors
/// [`VerifyError::Bind`], the first that nobody listens at when the time is over.
pub async fn listening(binds: &[Bind], deadline: Duration) -> Result<(), VerifyError> {
    let until = Instant::now() + deadline;
    for bind in binds {
        while let Err(source) = connect(&bind.at, until).await {
            if Instant::now() >= until {
                return Err(VerifyError::Bind {
                    bind: bind.clone(),
                    source,
                });
            }
            sleep(POLL).await;
        }
    }
    Ok(())
}

async fn connect(at: &At, until: Instant) -> io::Result<()> {
    let late = || io::Error::from(io::ErrorKind::TimedOut);
    match at {
        At::Other(_) => Ok(()),
        At::Unix(path) => timeout_at(until, UnixStream::connect(path))
            .await
            .map_err(|_| late())?
            .map(drop),
        // Where an address need not be ours it need not be reachable either.
        At::Tcp { foreign: true, .. } => Ok(()),
        At::Tcp { host, port, .. } => {
            let stream = match host {
                Host::Ip(ip) => {
                    let address = SocketAddr::new(reachable(*ip), *port);
                    timeout_at(until, TcpStream::connect(address)).await
                }
                Host::Both => timeout_at(until, TcpStream::connect(("127.0.0.1", *port))).await,
                Host::Name(name) => {
                    timeout_at(until, TcpStream::connect((name.as_str(), *port))).await
                }
            };
            stream.map_err(|_| late())?.map(drop)
        }
    }
}

/// Asks for `url` until it answers with 2xx or 3xx: right after a start its servers may not be up yet.
///
/// # Errors
/// [`VerifyError::Canary`] with the last answer.
pub async fn canary(url: &str, deadline: Duration) -> Result<(), VerifyError> {
    let until = Instant::now() + deadline;
    let mut last = format!("no answer within {deadline:?}");
    loop {
        match timeout_at(until, get(url)).await {
            Ok(Ok(status)) if (200..400).contains(&status) => return Ok(()),
            Ok(Ok(status)) => last = format!("answered {status}, and 2xx or 3xx was expected"),
            Ok(Err(why)) => last = why,
            // What the attempts before came to says more.
            Err(_) => {}
        }
        if Instant::now() + POLL >= until {
            return Err(VerifyError::Canary {
                url: hostkit::mask::mask_url(url),
                why: last,
            });
        }
        sleep(POLL).await;
    }
}

/// The status of one `GET`; the body is not read.
async fn get(url: &str) -> Result<u16, String> {
    let uri: Uri = url.parse().map_err(|_| "not a URL".to_owned())?;
    if uri.scheme_str() != Some("http") {
        return Err("only http:// is supported".to_owned());
    }
    let authority = uri.authority().ok_or("it names no host")?;
    let host = authority.host().trim_matches(['[', ']']);
    let port = authority.port_u16().unwrap_or(80);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(HOST, authority.as_str())
        .header(USER_AGENT, "synapse")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let (connection, answer) = (connection, sender.send_request(request));
    tokio::pin!(connection, answer);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended.map_err(|error| error.to_string())?;
            answer.await
        }
    };
    answer
        .map(|answer| answer.status().as_u16())
        .map_err(|error| error.to_string())
}
