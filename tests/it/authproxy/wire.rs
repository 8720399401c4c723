//! Both ends of the proxy as raw bytes: a client that writes any bytes, and an upstream that follows a script.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use hostkit_tests::authproxy::AuthproxyProcess;
use hostkit_tests::wait_limit;

/// The key with all rights.
pub(super) const KEY: &str = "wire-key";
/// Another one.
pub(super) const OTHER: &str = "other-key";

/// authproxy in front of an upstream, with a file that has [`KEY`].
pub(super) fn proxy(server: u16, args: &[&str]) -> AuthproxyProcess {
    let server = format!("--server=http://127.0.0.1:{server}");
    with_key(&server, args)
}

/// The same with the upstream as a flag.
pub(super) fn with_key(server: &str, args: &[&str]) -> AuthproxyProcess {
    let acl = acl_file();
    let acl = format!("--acl-file={}", acl.display());
    let mut all = vec![server, "--right=all", "--access-log=off", acl.as_str()];
    all.extend(args);
    AuthproxyProcess::start(&all)
}

/// A file with [`KEY`] and [`OTHER`], shared by all tests of this run.
pub(super) fn acl_file() -> PathBuf {
    static FILE: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let file = FILE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap().keep();
        let file = directory.join("acl.yaml");
        let mut text = "keys:\n".to_owned();
        for (id, key) in [("wire", KEY), ("other", OTHER)] {
            let hash = hostkit_tests::permissions::hash_key(key);
            text.push_str(&format!(
                "  - {{id: {id}, sha256: {hash}, rights: [all]}}\n"
            ));
        }
        std::fs::write(&file, text).unwrap();
        file
    });
    file.clone()
}

/// A complete request with [`KEY`]; `lines` are headers with line endings.
pub(super) fn request(line: &str, lines: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: here\r\nX-API-Key: {KEY}\r\n{lines}\r\n")
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct WireConnection {
    pub(super) stream: TcpStream,
    /// Bytes read but not consumed yet.
    ahead: Vec<u8>,
}

/// A head, and the body without its framing.
#[derive(Debug, Clone)]
pub(super) struct WireMessage {
    pub(super) head: String,
    pub(super) body: Vec<u8>,
    /// The lines after the last chunk.
    pub(super) trailers: String,
}

impl WireMessage {
    pub(super) fn status(&self) -> u16 {
        let word = self.head.split(' ').nth(1).unwrap();
        word.parse().unwrap_or_else(|_| panic!("{self:?}"))
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(':'));
        let found = lines.find(|(own, _)| own.eq_ignore_ascii_case(name))?;
        Some(found.1.trim())
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The `error` field of a response that authproxy itself wrote.
    pub(super) fn reason(&self) -> String {
        let body: serde_json::Value =
            serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{self:?}"));
        body["error"].as_str().unwrap().to_owned()
    }
}

impl WireConnection {
    pub(super) fn connect(port: u16) -> Self {
        Self::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap())
    }

    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(wait_limit())).unwrap();
        Self {
            stream,
            ahead: Vec::new(),
        }
    }

    /// Writes; returns false when the peer is gone.
    pub(super) fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Shuts down the sending direction.
    pub(super) fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Reads more; false at the end of the stream or a reset.
    fn read_more(&mut self) -> bool {
        let mut room = [0; 64 << 10];
        match self.stream.read(&mut room) {
            Ok(0) => false,
            Ok(bytes) => {
                self.ahead.extend_from_slice(&room[..bytes]);
                true
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("{error}, after {:?}", String::from_utf8_lossy(&self.ahead)),
        }
    }

    /// Everything up to a text, and the text.
    pub(super) fn read_until(&mut self, text: &str) -> Option<String> {
        loop {
            let found = self
                .ahead
                .windows(text.len())
                .position(|window| window == text.as_bytes());
            if let Some(at) = found {
                let rest = self.ahead.split_off(at + text.len());
                let all = std::mem::replace(&mut self.ahead, rest);
                return Some(String::from_utf8_lossy(&all).into_owned());
            }
            if !self.read_more() {
                return None;
            }
        }
    }

    /// So many bytes; fewer at the end.
    pub(super) fn read_exactly(&mut self, length: usize) -> Vec<u8> {
        while self.ahead.len() < length && self.read_more() {}
        let rest = self.ahead.split_off(length.min(self.ahead.len()));
        std::mem::replace(&mut self.ahead, rest)
    }

    /// Everything up to the end of the connection.
    pub(super) fn read_rest(&mut self) -> Vec<u8> {
        while self.read_more() {}
        std::mem::take(&mut self.ahead)
    }

    /// Waits until the peer has closed, without further bytes.
    #[track_caller]
    pub(super) fn expect_close(&mut self) {
        let rest = self.read_rest();
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }

    /// The next head; `None` at the end of the connection.
    pub(super) fn head(&mut self) -> Option<String> {
        self.read_until("\r\n\r\n")
    }

    /// The next request or response; `None` when the connection ends before it is complete. A response without a length
    /// ends with the connection.
    pub(super) fn message(&mut self) -> Option<WireMessage> {
        let head = self.head()?;
        let mut message = WireMessage {
            head,
            body: Vec::new(),
            trailers: String::new(),
        };
        let is_answer = message.head.starts_with("HTTP/");
        if message.header("transfer-encoding").is_some() {
            self.chunks(&mut message)?;
        } else if let Some(length) = message.header("content-length") {
            let length = length.parse().unwrap();
            message.body = self.read_exactly(length);
            (message.body.len() == length).then_some(())?;
        } else if is_answer && ![101, 204, 304].contains(&message.status()) {
            message.body = self.read_rest();
        }
        Some(message)
    }

    fn chunks(&mut self, message: &mut WireMessage) -> Option<()> {
        loop {
            let line = self.read_until("\r\n")?;
            let length = usize::from_str_radix(line.trim(), 16).unwrap();
            if length == 0 {
                break;
            }
            let chunk = self.read_exactly(length);
            (chunk.len() == length).then_some(())?;
            message.body.extend(chunk);
            assert_eq!(self.read_until("\r\n")?, "\r\n");
        }
        loop {
            match self.read_until("\r\n")?.as_str() {
                "\r\n" => return Some(()),
                line => message.trailers.push_str(line),
            }
        }
    }

    /// Sends a request and reads the response.
    #[track_caller]
    pub(super) fn ask(&mut self, request: impl AsRef<[u8]>) -> WireMessage {
        assert!(self.send(request), "the peer does not read the request");
        self.message().expect("a whole answer")
    }

    /// Sends a request whose response has no body whatever its head announces, and reads the head.
    #[track_caller]
    pub(super) fn ask_head(&mut self, request: impl AsRef<[u8]>) -> WireMessage {
        assert!(self.send(request), "the peer does not read the request");
        WireMessage {
            head: self.head().expect("a head"),
            body: Vec::new(),
            trailers: String::new(),
        }
    }
}

/// An upstream that follows a script on every connection, each in its own thread. Dropping it closes its port.
#[derive(Debug)]
pub(super) struct ScriptedUpstream {
    port: u16,
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl ScriptedUpstream {
    /// Calls `script` with each connection and its number, from 0.
    pub(super) fn start(
        script: impl Fn(&mut WireConnection, usize) + Send + Sync + 'static,
    ) -> Self {
        Self::on(0, script)
    }

    /// The same on a given port.
    pub(super) fn on(
        port: u16,
        script: impl Fn(&mut WireConnection, usize) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = Arc::new(AtomicBool::new(false));
        let accepted = Arc::new(AtomicUsize::new(0));
        let (stopped, counted, script) = (stop.clone(), accepted.clone(), Arc::new(script));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let number = counted.fetch_add(1, Ordering::SeqCst);
                let script = script.clone();
                std::thread::spawn(move || script(&mut WireConnection::new(stream), number));
            }
        });
        Self {
            port,
            stop,
            accepted,
            thread: Some(thread),
        }
    }

    /// Answers every request with these bytes, and records the requests.
    pub(super) fn start_answering(
        bytes: impl Into<Vec<u8>>,
    ) -> (Self, Arc<Mutex<Vec<WireMessage>>>) {
        let bytes = bytes.into();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = requests.clone();
        let origin = Self::start(move |wire, _| {
            while let Some(request) = wire.message() {
                kept.lock().unwrap().push(request);
                wire.send(&bytes);
            }
        });
        (origin, requests)
    }

    pub(super) const fn port(&self) -> u16 {
        self.port
    }

    /// The number of connections accepted.
    pub(super) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for ScriptedUpstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread, which then ends.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A complete response.
pub(super) fn ok(body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}")
}
