//! Web servers that users put behind authproxy, each with the same application: it answers `METHOD AREA HOST ID` as it
//! has read the request. `AREA` is `admin` or `open` below those paths, else `other`; `ID` is the X-Auth-Id, or `-`.

use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::nginx::NginxServer;
use crate::tls::CertificateAuthority;
use crate::{ChildGuard, find_program, free_port, tools, wait_until, workspace};

/// How often another port is tried when another process took it meanwhile.
const ATTEMPTS: u32 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebServerKind {
    Node,
    /// Express with `trust proxy` and method-override.
    Express,
    Hypercorn,
    /// gunicorn with options that make it as lenient as its earlier releases.
    Gunicorn,
    /// Debian's nginx with case-insensitive locations, and headers with underscores.
    Nginx,
}

impl WebServerKind {
    pub const ALL: [Self; 5] = [
        Self::Node,
        Self::Express,
        Self::Hypercorn,
        Self::Gunicorn,
        Self::Nginx,
    ];

    /// The product name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Express => "Express",
            Self::Hypercorn => "hypercorn",
            Self::Gunicorn => "gunicorn",
            Self::Nginx => "nginx",
        }
    }

    /// The command line with `PORT`; `None` for nginx, which has a kit of its own.
    const fn command_line(self) -> Option<&'static str> {
        Some(match self {
            Self::Node => "node node.js PORT",
            Self::Express => "node express.js PORT",
            // In the process that is stopped at the end, not in one of its children.
            Self::Hypercorn => "hypercorn --workers 0 --bind 127.0.0.1:PORT applications:asgi",
            // A worker detects within its timeout that its parent is gone.
            Self::Gunicorn => {
                "gunicorn --timeout 2 --permit-unconventional-http-method --casefold-http-method \
                 --header-map dangerous --bind 127.0.0.1:PORT applications:wsgi"
            }
            Self::Nginx => return None,
        })
    }
}

/// A running server, stopped on drop.
#[derive(Debug)]
pub struct WebServer {
    port: u16,
    _server: WebProcess,
}

#[derive(Debug)]
enum WebProcess {
    Process { _process: ChildGuard },
    Nginx { _nginx: NginxServer, _root: TempDir },
}

impl WebServer {
    /// Starts a server on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// It is not installed.
    pub fn start(kind: WebServerKind) -> Result<Self, String> {
        let Some(line) = kind.command_line() else {
            return nginx();
        };
        for _ in 0..ATTEMPTS {
            let port = free_port();
            let child = command(&line.replace("PORT", &port.to_string()))?
                .spawn()
                .unwrap();
            let mut process = ChildGuard(child);
            let mut ended = false;
            wait_until("the server accepts connections", || {
                ended = process.0.try_wait().unwrap().is_some();
                ended || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
            if !ended {
                return Ok(Self {
                    port,
                    _server: WebProcess::Process { _process: process },
                });
            }
        }
        panic!("{kind:?} does not start");
    }

    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }
}

/// A command of what `tests/run` installs, in the directory of the applications.
fn command(line: &str) -> Result<Command, String> {
    let web = tools().join("web");
    if !web.join("versions").is_file() {
        return Err(format!(
            "{} is not there: tests/run installs it",
            web.display()
        ));
    }
    let mut words = line.split(' ');
    let program = match words.next() {
        Some("node") => find_program("node")?,
        program => web.join("venv/bin").join(program.unwrap_or_default()),
    };
    let mut command = Command::new(program);
    command
        .args(words)
        .current_dir(workspace().join("tests/fixtures/web"))
        .env("NODE_PATH", web.join("node_modules"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(command)
}

fn nginx() -> Result<WebServer, String> {
    let answer =
        |what: &str| format!("return 200 \"$request_method {what} $host ${{http_x_auth_id}}\";");
    let extra = format!(
        "underscores_in_headers on; location ~* ^/admin(/|$) {{ {} }} location ~* ^/open(/|$) {{ {} }} location / {{ {} }}",
        answer("admin"),
        answer("open"),
        answer("other")
    );
    let root = tempfile::tempdir().unwrap();
    let nginx = NginxServer::start_with(&CertificateAuthority::new(), root.path(), &extra)?;
    Ok(WebServer {
        port: nginx.port(),
        _server: WebProcess::Nginx {
            _nginx: nginx,
            _root: root,
        },
    })
}
