//! A scripted server that sends the bytes of a contract row.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hostkit_tests::wait_limit;

/// Listens on a free port of 127.0.0.1 until it is dropped.
pub(super) struct ScriptedServer {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ScriptedServer {
    /// Calls `answer` with the first line of each request and the connection, each on its own thread.
    pub(super) fn start(
        answer: impl Fn(&str, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::on(0, answer)
    }

    /// The same on a given port.
    pub(super) fn on(
        port: u16,
        answer: impl Fn(&str, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let over = Arc::new(AtomicBool::new(false));
        let (seen, stop, answer) = (heads.clone(), over.clone(), Arc::new(answer));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (seen, answer, mut stream) = (seen.clone(), answer.clone(), stream.unwrap());
                std::thread::spawn(move || {
                    stream.set_nodelay(true).unwrap();
                    stream.set_read_timeout(Some(wait_limit())).unwrap();
                    let head = head(&stream);
                    let line = head.lines().next().unwrap_or_default().to_owned();
                    seen.lock().unwrap().push(head);
                    // The client may be gone.
                    let _ = answer(&line, &mut stream);
                });
            }
        });
        Self {
            port,
            heads,
            over,
            thread: Some(thread),
        }
    }

    /// Always sends the same bytes, then closes.
    pub(super) fn start_with_response(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::start(move |_, stream| stream.write_all(&bytes))
    }

    pub(super) const fn port(&self) -> u16 {
        self.port
    }

    /// The heads of the requests so far, without line endings.
    pub(super) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    pub(super) fn requests(&self) -> Vec<String> {
        let heads = self.heads();
        let lines = heads.iter().filter_map(|head| head.lines().next());
        lines
            .map(|line| line.trim_end_matches(" HTTP/1.1").to_owned())
            .collect()
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Wakes up the thread.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads the head of a request; the signaler sends no body.
fn head(stream: &TcpStream) -> String {
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    let lines: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    lines.join("\n")
}

/// A response with its length.
pub(super) fn answer(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Writes a byte at a time, with a pause before each.
pub(super) fn write_slowly(
    stream: &mut TcpStream,
    bytes: &[u8],
    pause: Duration,
) -> std::io::Result<()> {
    for byte in bytes {
        std::thread::sleep(pause);
        stream.write_all(&[*byte])?;
    }
    Ok(())
}
