//! A server that says its name, and a client that keeps its connection: what shows who answers whom.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// How many requests are held, and whether they still are.
type Gate = Arc<(Mutex<(usize, bool)>, Condvar)>;

/// A server that answers every request with its name; one for `/hold` only after [`Named::release`].
#[derive(Debug)]
pub(crate) struct Named {
    port: u16,
    gate: Gate,
}

impl Named {
    pub(crate) fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let gate = Gate::default();
        let held = Arc::clone(&gate);
        // The thread ends with the test's process: it holds nothing but its port.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let held = Arc::clone(&held);
                std::thread::spawn(move || answer(stream, name, &held));
            }
        });
        Self { port, gate }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// How many requests are held now.
    pub(crate) fn held(&self) -> usize {
        self.gate.0.lock().unwrap().0
    }

    /// Lets held requests, and later ones, be answered.
    pub(crate) fn release(&self) {
        self.gate.0.lock().unwrap().1 = true;
        self.gate.1.notify_all();
    }
}

fn answer(mut stream: TcpStream, name: &str, gate: &Gate) {
    while let Some(head) = head(&mut stream) {
        if head.starts_with("GET /hold ") {
            let mut state = gate.0.lock().unwrap();
            state.0 += 1;
            while !state.1 {
                state = gate.1.wait(state).unwrap();
            }
            state.0 -= 1;
        }
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}",
            name.len()
        );
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// A message's head; `None` when the connection ends.
fn head(stream: &mut TcpStream) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// One connection to a frontend.
#[derive(Debug)]
pub(crate) struct Client(TcpStream);

impl Client {
    pub(crate) fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let patience = Some(Duration::from_secs(20));
        stream.set_read_timeout(patience).unwrap();
        Self(stream)
    }

    /// The status and body of one request.
    pub(crate) fn get(&mut self, path: &str) -> String {
        self.ask(path);
        self.answer()
    }

    pub(crate) fn ask(&mut self, path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
        self.0.write_all(request.as_bytes()).unwrap();
    }

    pub(crate) fn answer(&mut self) -> String {
        let Some(head) = head(&mut self.0) else {
            return "closed".to_owned();
        };
        let status = head.split(' ').nth(1).unwrap().to_owned();
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let found = name.eq_ignore_ascii_case("content-length");
            found.then(|| value.trim().parse().unwrap())
        });
        let mut body = vec![0; length.unwrap_or_default()];
        self.0.read_exact(&mut body).unwrap();
        format!("{status} {}", String::from_utf8_lossy(&body))
    }
}
