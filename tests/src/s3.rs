//! A real S3 server over a directory, with signatures checked. It knows no conditional requests: those are the
//! origin's. Objects are uploaded through its API; for one laid there by hand it hashes the file on every GET.

use std::path::Path;
use std::sync::{Arc, Mutex};

use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tempfile::TempDir;

use crate::serve::Server;

const ACCESS_KEY: &str = "AKIDHOSTKITTESTS";
const SECRET_KEY: &str = "a-secret-that-only-tests-know";

/// A running S3 server. Dropping it removes its objects.
#[derive(Debug)]
pub struct S3 {
    server: Server,
    requests: Arc<Mutex<Vec<String>>>,
    directory: TempDir,
}

impl S3 {
    /// Starts one without buckets.
    #[must_use]
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut builder = S3ServiceBuilder::new(FileSystem::new(directory.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = requests.clone();
        let server = Server::start("s3", move |tcp| {
            let (service, log) = (service.clone(), log.clone());
            let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let line = format!("{} {}", request.method(), request.uri());
                log.lock().unwrap().push(line);
                Service::call(&service, request)
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
