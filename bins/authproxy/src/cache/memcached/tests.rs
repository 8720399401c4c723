//! The client against scripted servers.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use super::*;

/// The reply to a line; an empty one is not sent.
type ReplyScript = Arc<Mutex<Box<dyn FnMut(&str) -> Vec<u8> + Send>>>;

/// A server, and how many connections and lines it has received.
struct ScriptedServer {
    address: String,
    connections: Arc<AtomicUsize>,
    lines: Arc<AtomicUsize>,
}

impl ScriptedServer {
    async fn start(script: impl FnMut(&str) -> Vec<u8> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let script: ReplyScript = Arc::new(Mutex::new(Box::new(script)));
        let [connections, lines] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
        let (accepted, read) = (Arc::clone(&connections), Arc::clone(&lines));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                accepted.fetch_add(1, Ordering::SeqCst);
                let (script, read) = (Arc::clone(&script), Arc::clone(&read));
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let mut line = String::new();
                    while stream
                        .read_line(&mut line)
                        .await
                        .is_ok_and(|length| length > 0)
                    {
                        read.fetch_add(1, Ordering::SeqCst);
                        let answer = (script.lock().unwrap())(line.trim_end());
                        if answer == b"close" {
                            return;
                        }
                        if stream.write_all(&answer).await.is_err() {
                            return;
                        }
                        line.clear();
                    }
                });
            }
        });
        Self {
            address,
            connections,
            lines,
        }
    }

    /// A client with a long deadline: the speed of this machine is not tested.
    fn client(&self) -> MemcachedClient {
        MemcachedClient::with_deadline(self.address.clone(), Duration::from_secs(20))
    }
}

/// The replies of a server that has every entry.
fn reply_with_entry(line: &str) -> Vec<u8> {
    match line.split_once(' ') {
        Some(("get", name)) => {
            format!("VALUE {name} 0 {}\r\n{name}\r\nEND\r\n", name.len()).into_bytes()
        }
        Some(("delete", _)) => b"DELETED\r\n".to_vec(),
        Some(("set", _)) => Vec::new(),
        // The line of data of a set.
        _ => b"STORED\r\n".to_vec(),
    }
}

/// A lookup, which has to end.
async fn get(client: &MemcachedClient, name: &str) -> Option<Vec<u8>> {
    let reading = client.get(name.to_owned());
    timeout(Duration::from_secs(30), reading)
        .await
        .expect("lookups end")
}

/// Looks up until the result is as expected, which may take the open time of the breaker.
async fn wait_until(
    what: &str,
    client: &MemcachedClient,
    mut is_so: impl FnMut(&MemcachedStatus, Option<Vec<u8>>) -> bool,
) {
    for _ in 0..3_000 {
        let value = get(client, "k").await;
        if is_so(&client.status(), value) {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("timeout: {what}");
}

#[tokio::test]
async fn pipelined_lookups_get_their_own_replies() {
    let server = ScriptedServer::start(reply_with_entry).await;
    let client = Arc::new(server.client());
    client.set("k", b"v", Duration::from_secs(60));
    let lookups: Vec<_> = (0..100)
        .map(|number| {
            let client = Arc::clone(&client);
            tokio::spawn(async move { get(&client, &format!("name{number}")).await })
        })
        .collect();
    // Cancelled lookups do not shift the replies of others.
    for lookup in lookups.iter().step_by(3) {
        lookup.abort();
    }
    for (number, lookup) in lookups.into_iter().enumerate() {
        if let Ok(value) = lookup.await {
            assert_eq!(value.unwrap(), format!("name{number}").as_bytes());
        }
    }
    client.delete("k".to_owned()).await;
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    assert!(client.status().up && client.status().failures == 0);
}

#[tokio::test]
async fn missing_entry_is_counted_as_miss() {
    let server = ScriptedServer::start(|_| b"END\r\n".to_vec()).await;
    let client = server.client();
    assert_eq!(get(&client, "k").await, None);
    let status = client.status();
    assert_eq!((status.hits, status.misses, status.failures), (0, 1, 0));
}

#[tokio::test]
async fn server_with_invalid_or_no_replies_is_skipped_after_three_failures() {
    let huge = format!("VALUE k 0 {}\r\n", usize::MAX);
    for answer in [
        "VALUE other 0 1\r\nx\r\nEND\r\n",
        &huge,
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "STORED\r\n",
        &"x".repeat(100_000),
        "END\r\nEND\r\n",
        "close",
        // A black hole.
        "",
        // Never whole.
        "VALUE k 0 10\r\nx",
    ] {
        let reply = answer.to_owned().into_bytes();
        let server = ScriptedServer::start(move |_| reply.clone()).await;
        let client = MemcachedClient::new(server.address.clone());
        let shown = &answer[..answer.len().min(30)];
        wait_until(shown, &client, |status, value| {
            assert_eq!(value, None, "{shown}");
            !status.up
        })
        .await;
        assert_eq!(client.status().failures, 3, "{shown}");
        // Each on a connection of its own; then nothing is sent.
        assert_eq!(server.connections.load(Ordering::SeqCst), 3, "{shown}");
        let lines = server.lines.load(Ordering::SeqCst);
        for _ in 0..100 {
            assert_eq!(get(&client, "k").await, None);
            client.set("k", b"v", Duration::from_secs(60));
        }
        assert_eq!(server.lines.load(Ordering::SeqCst), lines, "{shown}");
    }
}

#[tokio::test]
async fn dead_server_is_used_again_after_it_starts() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = MemcachedClient::with_deadline(address.to_string(), Duration::from_secs(20));
    wait_until("it is skipped", &client, |status, _| !status.up).await;
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            while stream
                .read_line(&mut line)
                .await
                .is_ok_and(|length| length > 0)
            {
                stream
                    .write_all(&reply_with_entry(line.trim_end()))
                    .await
                    .unwrap();
                line.clear();
            }
        }
    });
    wait_until("it is used", &client, |status, value| {
        value.is_some() && status.up
    })
    .await;
}

#[tokio::test]
async fn connection_that_was_closed_while_idle_is_replaced() {
    let mut closing = false;
    let server = ScriptedServer::start(move |line| {
        closing = !closing;
        if closing {
            reply_with_entry(line)
        } else {
            b"close".to_vec()
        }
    })
    .await;
    let client = server.client();
    assert!(get(&client, "k").await.is_some());
    // Closes.
    client.delete("k".to_owned()).await;
    wait_until("it is used again", &client, |_, value| value.is_some()).await;
    assert!(client.status().up);
}

#[tokio::test]
async fn value_over_the_limit_is_not_sent() {
    let server = ScriptedServer::start(reply_with_entry).await;
    let client = server.client();
    client.set(
        "k",
        &vec![b'v'; MAX_VALUE_BYTES + 1],
        Duration::from_secs(60),
    );
    assert!(get(&client, "k").await.is_some());
    assert_eq!(server.lines.load(Ordering::SeqCst), 1);
}

#[test]
fn client_outlives_the_runtime_of_its_first_lookup() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    };
    let (started, address) = std::sync::mpsc::sync_channel(1);
    let (stop, stopped) = oneshot::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            runtime().block_on(async {
                started
                    .send(ScriptedServer::start(reply_with_entry).await.address)
                    .unwrap();
                let _ = stopped.await;
            });
        });
        let client =
            MemcachedClient::with_deadline(address.recv().unwrap(), Duration::from_secs(20));
        for _ in 0..2 {
            assert!(runtime().block_on(get(&client, "k")).is_some());
        }
        stop.send(()).unwrap();
    });
}

#[test]
fn lookups_share_the_deadline_of_a_connection_being_made() {
    let now = Instant::now();
    let link = MemcachedClient::new("h:1".to_owned()).link;
    link.state().connecting = Some(now);
    assert_eq!(link.admit(now + DEADLINE / 2), Some(now + DEADLINE));
    assert_eq!(link.admit(now + DEADLINE), None);
    link.state().connecting = None;
    assert!(link.admit(now + DEADLINE).is_some());
}
