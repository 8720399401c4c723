//! A real S3 server over a directory, which checks signatures. It has no conditional requests: those are the origin's.
//! Objects are uploaded through its API; one placed by hand is hashed on every GET.

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
    /// Starts a server without buckets.
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
                        // A client that is still sending would not see the response.
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
                // The client may disconnect.
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

    /// Its URL without a bucket.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.server.address())
    }

    #[must_use]
    pub const fn access_key(&self) -> &'static str {
        ACCESS_KEY
    }

    #[must_use]
    pub const fn secret_key(&self) -> &'static str {
        SECRET_KEY
    }

    /// The environment variables of a client.
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

    pub fn create_bucket(&self, name: &str) {
        std::fs::create_dir(self.directory.path().join(name)).unwrap();
    }

    /// Denies listing (no `s3:ListBucket`): a missing object is 403, as on AWS.
    pub fn forbid_listing(&self) {
        self.unlistable.store(true, Ordering::Relaxed);
    }

    /// Denies reading: the client may only write.
    pub fn forbid_reading(&self) {
        self.unreadable.store(true, Ordering::Relaxed);
    }

    /// Rejects `If-None-Match` of PUT with this status, as stores without conditional writes do.
    pub fn forbid_conditions(&self, status: u16) {
        *self.refusal.lock().unwrap() = Some((status, "NotImplemented"));
    }

    /// Loses part of conditional PUTs, and answers 400 with this code.
    pub fn lose_conditional_uploads(&self, code: &'static str) {
        *self.refusal.lock().unwrap() = Some((400, code));
    }

    /// Answers the next conditional PUT with 409, as AWS does during another upload.
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

/// The refusal of a conditional PUT, if any; a conflict occurs once.
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
