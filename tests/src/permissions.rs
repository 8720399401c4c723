//! A permissions server that answers from added keys, counts queries, and misbehaves as a test sets it.
//!
//! It implements the ACL protocol with code of its own, independent of the code under test.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::tcp_server::TcpServer;
use crate::wait_until;

/// The behavior for a query. All but the first two end the connection.
#[derive(Debug, Clone)]
pub enum PermissionsBehavior {
    /// Answers from the added keys, and keeps the connection.
    Answer,
    /// The same after a delay.
    After(Duration),
    /// Answers with this status and body.
    Status(u16, String),
    /// Answers with these bytes.
    Garbage(Vec<u8>),
    /// Closes the connection.
    Close,
    /// Never answers.
    Hang,
}

#[derive(Debug, Default)]
struct PermissionsState {
    known: HashMap<String, Value>,
    /// Applied in turn, repeatedly.
    behaviors: Vec<PermissionsBehavior>,
    /// The hash of each query, in order.
    asked: Vec<String>,
    requests: Vec<String>,
}

/// A running permissions server. Dropping it closes its port and every connection.
#[derive(Debug)]
pub struct PermissionsServer {
    port: u16,
    server: Mutex<Option<TcpServer>>,
    state: Arc<Mutex<PermissionsState>>,
}

impl PermissionsServer {
    /// Starts a server without keys on a free port of 127.0.0.1.
    #[must_use]
    pub fn start() -> Self {
        let state = Arc::new(Mutex::new(PermissionsState::default()));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().unwrap().port();
        let server = Mutex::new(Some(serve_on(listener, &state)));
        Self {
            port,
            server,
            state,
        }
    }

    /// The value of `--acl-server`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/acl", self.port)
    }

    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Adds a key. `grant` has the members of the response besides `known`; `id` defaults to the key's first eight
    /// characters, `rights` to `all`.
    pub fn add_key(&self, key: &str, grant: Value) {
        let mut answer = json!({"known": true, "id": key_id(key), "rights": ["all"]});
        if let (Value::Object(answer), Value::Object(grant)) = (&mut answer, grant) {
            answer.extend(grant);
        }
        let mut state = self.state.lock().unwrap();
        state.known.insert(hash_key(key), answer);
    }

    /// Adds keys with the right `all`.
    pub fn add_keys<'k>(&self, keys: impl IntoIterator<Item = &'k str>) {
        keys.into_iter()
            .for_each(|key| self.add_key(key, json!({})));
    }

    pub fn remove_key(&self, key: &str) {
        self.state.lock().unwrap().known.remove(&hash_key(key));
    }

    /// Sets the behavior of later queries.
    pub fn set_behavior(&self, behavior: PermissionsBehavior) {
        self.set_behaviors(vec![behavior]);
    }

    /// Sets behaviors that later queries get in turn, repeatedly.
    pub fn set_behaviors(&self, behaviors: Vec<PermissionsBehavior>) {
        let mut state = self.state.lock().unwrap();
        state.behaviors = behaviors;
        state.asked.clear();
        state.requests.clear();
    }

    /// How many queries came since the behavior was set.
    #[must_use]
    pub fn request_count(&self) -> usize {
        self.state.lock().unwrap().asked.len()
    }

    /// How many of them were about this key.
    #[must_use]
    pub fn request_count_for(&self, key: &str) -> usize {
        let hash = hash_key(key);
        let state = self.state.lock().unwrap();
        state.asked.iter().filter(|asked| **asked == hash).count()
    }

    /// The queries, head and body, since the behavior was set.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    /// Closes its port and every connection.
    pub fn kill(&self) {
        drop(self.server.lock().unwrap().take());
    }

    /// Listens on the same port again, with the same keys.
    pub fn restart(&self) {
        self.kill();
        let mut listener = None;
        wait_until("the port is free", || {
            listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).ok();
            listener.is_some()
        });
        *self.server.lock().unwrap() = listener.map(|listener| serve_on(listener, &self.state));
    }
}

/// The SHA-256 of a key in hex, which files, queries and logs have in its place.
#[must_use]
pub fn hash_key(key: &str) -> String {
    hostkit::hex::encode(&Sha256::digest(key.as_bytes()))
}

/// The default id of a key.
#[must_use]
pub fn key_id(key: &str) -> String {
    key.chars().take(8).collect()
}

/// Atomically writes a file for `--acl-file`: each key with its rights.
pub fn write_acl_file(path: &Path, keys: &[(&str, &[&str])]) {
    let keys: Vec<Value> = keys
        .iter()
        .map(|(key, rights)| json!({"id": key_id(key), "sha256": hash_key(key), "rights": rights}))
        .collect();
    // JSON is YAML.
    let text = json!({ "keys": keys }).to_string();
    crate::replace_file(path, text.as_bytes());
}

fn serve_on(listener: TcpListener, state: &Arc<Mutex<PermissionsState>>) -> TcpServer {
    let state = state.clone();
    TcpServer::on(listener, "acl", move |stream| {
        let state = state.clone();
        async move {
            // The client may disconnect.
            let _ = serve(stream, &state).await;
        }
    })
}

async fn serve(mut stream: TcpStream, state: &Mutex<PermissionsState>) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        let Some((request, body)) = question(&mut stream, &mut bytes).await? else {
            return Ok(());
        };
        let asked = serde_json::from_str::<Value>(&body).ok();
        let hash = asked.and_then(|asked| Some(asked["key_sha256"].as_str()?.to_owned()));
        let hash = hash.unwrap_or_default();
        let behavior = state.lock().unwrap().take(&hash, request);
        match behavior {
            PermissionsBehavior::Answer => {
                let answer = state.lock().unwrap().answer(&hash);
                stream
                    .write_all(&response(200, &answer, "keep-alive"))
                    .await?;
            }
            PermissionsBehavior::After(delay) => {
                tokio::time::sleep(delay).await;
                let answer = state.lock().unwrap().answer(&hash);
                stream
                    .write_all(&response(200, &answer, "keep-alive"))
                    .await?;
            }
            PermissionsBehavior::Status(status, body) => {
                return stream.write_all(&response(status, &body, "close")).await;
            }
            PermissionsBehavior::Garbage(bytes) => return stream.write_all(&bytes).await,
            PermissionsBehavior::Close => return Ok(()),
            PermissionsBehavior::Hang => {
                // The next byte would be the end of the connection.
                let _ = stream.read_u8().await;
                return Ok(());
            }
        }
    }
}

/// Reads the next query: the whole of it, and its body. Later bytes stay in `bytes`.
async fn question(
    stream: &mut TcpStream,
    bytes: &mut Vec<u8>,
) -> std::io::Result<Option<(String, String)>> {
    loop {
        if let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
            let lengths: BTreeMap<_, _> = text
                .lines()
                .filter_map(|line| line.split_once(':'))
                .collect();
            let length = lengths.get("content-length");
            let length: usize = length
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(0);
            if bytes.len() >= head + 4 + length {
                let rest = bytes.split_off(head + 4 + length);
                let whole = std::mem::replace(bytes, rest);
                let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                return Ok(Some((text(&whole), text(&whole[head + 4..]))));
            }
        }
        if stream.read_buf(bytes).await? == 0 {
            return Ok(None);
        }
    }
}

fn response(status: u16, body: &str, connection: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} As Told\r\nContent-Type: application/json\r\nConnection: {connection}\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

impl PermissionsState {
    /// Records a query and returns its behavior.
    fn take(&mut self, hash: &str, request: String) -> PermissionsBehavior {
        let turn = self.asked.len();
        self.asked.push(hash.to_owned());
        self.requests.push(request);
        let turn = turn.checked_rem(self.behaviors.len());
        turn.map_or(PermissionsBehavior::Answer, |turn| {
            self.behaviors[turn].clone()
        })
    }

    fn answer(&self, hash: &str) -> String {
        let unknown = json!({"known": false});
        self.known.get(hash).unwrap_or(&unknown).to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    fn ask(acl: &PermissionsServer, key: &str) -> std::io::Result<String> {
        let body = json!({"v": 1, "key_sha256": hash_key(key)}).to_string();
        let length = body.len();
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", acl.port()))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(
            stream,
            "POST /acl HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    #[test]
    fn server_answers_from_added_keys_and_counts_requests() {
        let acl = PermissionsServer::start();
        acl.add_key("secret-key", json!({"rights": ["a"], "ttl": 3}));
        let known = ask(&acl, "secret-key").unwrap();
        assert!(known.contains(r#""known":true"#), "{known}");
        assert!(known.contains(r#""id":"secret-k""#) && known.contains(r#""rights":["a"]"#));
        assert!(ask(&acl, "other").unwrap().contains(r#"{"known":false}"#));
        assert_eq!(
            (acl.request_count(), acl.request_count_for("other")),
            (2, 1)
        );
        acl.remove_key("secret-key");
        assert!(ask(&acl, "secret-key").unwrap().contains("false"));
    }

    #[test]
    fn server_cycles_through_behaviors_and_restarts_on_same_port() {
        let acl = PermissionsServer::start();
        acl.set_behaviors(vec![
            PermissionsBehavior::Status(500, String::new()),
            PermissionsBehavior::Close,
        ]);
        assert!(ask(&acl, "k").unwrap().starts_with("HTTP/1.1 500"));
        assert_eq!(ask(&acl, "k").unwrap(), "");
        assert!(ask(&acl, "k").unwrap().starts_with("HTTP/1.1 500"));
        acl.kill();
        assert!(ask(&acl, "k").is_err());
        acl.restart();
        acl.set_behavior(PermissionsBehavior::Answer);
        assert!(ask(&acl, "k").unwrap().contains("known"));
        assert_eq!(acl.request_count(), 1);
    }
}
