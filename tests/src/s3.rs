//! A real S3 server over a directory, with signatures checked. It knows no conditional requests: those are the
//! origin's. Objects are uploaded through its API; for one laid there by hand it hashes the file on every GET.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tempfile::TempDir;

use crate::tcp_server::TcpServer;

const ACCESS_KEY: &str = "AKIDHOSTKITTESTS";
const CONFLICT: &str = "ConditionalRequestConflict";
const SECRET_KEY: &str = "a-secret-that-only-tests-know";

/// A running S3 server. Dropping it removes its objects.
#[derive(Debug)]
pub struct S3Server {
    server: TcpServer,
    requests: Arc<Mutex<Vec<String>>>,
    unlistable: Arc<AtomicBool>,
    unreadable: Arc<AtomicBool>,
    refusal: Arc<Mutex<Option<(u16, &'static str)>>>,
    directory: TempDir,
}

impl S3Server {
    /// Starts one without buckets.
    #[must_use]
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut builder = S3ServiceBuilder::new(FileSystem::new(directory.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let unlistable = Arc::new(AtomicBool::new(false));
        let (log, hides) = (requests.clone(), unlistable.clone());
        let unreadable = Arc::new(AtomicBool::new(false));
        let denies_reading = unreadable.clone();
        let refusal = Arc::new(Mutex::new(None));
        let refuses = refusal.clone();
        let server = TcpServer::start("s3", move |tcp| {
            let (service, log, hides) = (service.clone(), log.clone(), hides.clone());
            let (refuses, denies_reading) = (refuses.clone(), denies_reading.clone());
            let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let line = format!("{} {}", request.method(), request.uri());
                log.lock().unwrap().push(line);
                let lists = request.method() == "GET"
                    && request.uri().query().unwrap_or("").contains("list-type");
                let hides = hides.load(Ordering::Relaxed);
                let is_conditional =
                    request.method() == "PUT" && request.headers().contains_key("if-none-match");
                let refuses = is_conditional.then(|| refusal_for(&refuses)).flatten();
                let service = service.clone();
                let is_denied = request.method() != "PUT" && denies_reading.load(Ordering::Relaxed);
                async move {
                    if is_denied {
                        return Ok(error(403, "AccessDenied"));
                    }
                    if let Some((status, code)) = refuses {
                        // A client that still sends would not see the answer.
                        let _ = http_body_util::BodyExt::collect(request.into_body()).await;
                        return Ok(error(status, code));
                    }
                    let response = Service::call(&service, request).await?;
                    let denies = hides && (lists || response.status() == 404);
                    Ok::<_, s3s::HttpError>(if denies {
                        error(403, "AccessDenied")
                    } else {
                        response
                    })
                }
            });
            async move {
                // A client that hangs up is its own affair.
                let _ = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(tcp), service)
                    .await;
            }
        });
        Self {
            server,
            requests,
            unlistable,
            unreadable,
            refusal,
            directory,
        }
    }

    /// Its URL, without a bucket.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// The access key it knows.
    #[must_use]
    pub const fn access_key(&self) -> &'static str {
        ACCESS_KEY
    }

    /// The secret of that key.
    #[must_use]
    pub const fn secret_key(&self) -> &'static str {
        SECRET_KEY
    }

    /// The environment of a client of it.
    #[must_use]
    pub fn env(&self) -> Vec<(String, String)> {
        [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", &self.endpoint()),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// Makes an empty bucket.
    pub fn create_bucket(&self, name: &str) {
        std::fs::create_dir(self.directory.path().join(name)).unwrap();
    }

    /// From now on its client may get objects and not list buckets (no `s3:ListBucket`): it is told 403 for an object
    /// that is absent, as by AWS.
    pub fn forbid_listing(&self) {
        self.unlistable.store(true, Ordering::Relaxed);
    }

    /// From now on its client may only write.
    pub fn forbid_reading(&self) {
        self.unreadable.store(true, Ordering::Relaxed);
    }

    /// From now on it does not know `If-None-Match` of PUT, as some stores do not: it answers this status.
    pub fn forbid_conditions(&self, status: u16) {
        *self.refusal.lock().unwrap() = Some((status, "NotImplemented"));
    }

    /// From now on a conditional PUT does not arrive whole, and is answered 400 with this code.
    pub fn lose_conditional_uploads(&self, code: &'static str) {
        *self.refusal.lock().unwrap() = Some((400, code));
    }

    /// The next conditional PUT meets another one under way: it is answered 409, as by AWS.
    pub fn conflict_once(&self) {
        *self.refusal.lock().unwrap() = Some((409, CONFLICT));
    }

    /// The directory that holds a sub-directory per bucket.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.directory.path()
    }

    /// The requests so far, each as `METHOD /bucket/key?query`.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// How a conditional PUT is refused, if it is; a conflict is over afterwards.
fn refusal_for(refusal: &Mutex<Option<(u16, &'static str)>>) -> Option<(u16, &'static str)> {
    let mut refusal = refusal.lock().unwrap();
    match *refusal {
        Some((_, CONFLICT)) => refusal.take(),
        other => other,
    }
}

fn error(status: u16, code: &str) -> s3s::HttpResponse {
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{code}</Message></Error>"
    );
    let mut response = s3s::HttpResponse::new(s3s::Body::from(xml));
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap();
    response
}
