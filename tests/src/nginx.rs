//! Debian's nginx over a directory, plain and with TLS: an origin for comparison, independent of this code base.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::tls::CertificateAuthority;
use crate::{ChildGuard, find_program, free_port, wait_until};

/// How often another pair of ports is tried when another process took one meanwhile.
const ATTEMPTS: u32 = 5;

/// A running nginx, stopped on drop.
#[derive(Debug)]
pub struct NginxServer {
    _process: ChildGuard,
    prefix: TempDir,
    http: u16,
    https: u16,
}

impl NginxServer {
    /// Serves the files below `root`, over TLS with the leaf of `authority`.
    ///
    /// # Errors
    /// nginx is not installed.
    pub fn start(authority: &CertificateAuthority, root: &Path) -> Result<Self, String> {
        Self::start_with(authority, root, "")
    }

    /// The same with `limit_rate` on each connection, in the units of nginx (`40m` is 40 MiB/s).
    ///
    /// # Errors
    /// nginx is not installed.
    pub fn start_limited(
        authority: &CertificateAuthority,
        root: &Path,
        rate: &str,
    ) -> Result<Self, String> {
        Self::start_with(authority, root, &format!("limit_rate {rate};"))
    }

    /// The same with further directives in its `server` block.
    ///
    /// # Errors
    /// nginx is not installed.
    pub fn start_with(
        authority: &CertificateAuthority,
        root: &Path,
        extra: &str,
    ) -> Result<Self, String> {
        let nginx = find_program("nginx")?;
        let prefix = tempfile::tempdir().unwrap();
        for _ in 0..ATTEMPTS {
            let (http, https) = (free_port(), free_port());
            let conf = prefix.path().join("nginx.conf");
            std::fs::write(&conf, configuration(authority, root, extra, http, https)).unwrap();
            let child = Command::new(&nginx)
                .arg("-p")
                .arg(prefix.path())
                .arg("-c")
                .arg(&conf)
                .args(["-e", "error.log"])
                .stdin(Stdio::null())
                .spawn()
                .unwrap();
            let mut process = ChildGuard(child);
            let mut ended = false;
            wait_until("nginx accepts connections", || {
                ended = process.0.try_wait().unwrap().is_some();
                ended || std::net::TcpStream::connect(("127.0.0.1", https)).is_ok()
            });
            if !ended {
                return Ok(Self {
                    _process: process,
                    prefix,
                    http,
                    https,
                });
            }
        }
        let log = std::fs::read_to_string(prefix.path().join("error.log")).unwrap_or_default();
        panic!("nginx does not start: {log}");
    }

    #[must_use]
    pub const fn port(&self) -> u16 {
        self.http
    }

    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.http)
    }

    #[must_use]
    pub fn tls_url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.https)
    }

    /// The access log: `METHOD URI STATUS BODY-BYTES RANGE`, with `-` for no range.
    #[must_use]
    pub fn access_log(&self) -> PathBuf {
        self.prefix.path().join("access.log")
    }

    /// The lines of the access log so far. nginx writes one at the end of a response.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.access_log()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

fn configuration(
    authority: &CertificateAuthority,
    root: &Path,
    extra: &str,
    http: u16,
    https: u16,
) -> String {
    let scratch: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|what| format!("    {what}_temp_path {what};\n"))
        .collect();
    format!(
        r#"daemon off;
master_process off;
pid nginx.pid;
events {{ worker_connections 1024; }}
http {{
{scratch}    map $http_range $range {{ "" "-"; default $http_range; }}
    log_format ranges '$request_method $request_uri $status $body_bytes_sent $range';
    access_log access.log ranges;
    default_type application/octet-stream;
    sendfile on;
    keepalive_requests 1000000;
    server {{
        listen 127.0.0.1:{http};
        listen 127.0.0.1:{https} ssl;
        ssl_certificate {leaf};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.3;
        root {root};
        {extra}
    }}
}}
"#,
        leaf = authority.leaf().display(),
        key = authority.leaf_key().display(),
        root = root.display(),
    )
}
