//! The client before servers that answer as they are told to.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use super::*;

/// What answers a line; nothing is said if it is empty.
type Script = Arc<Mutex<Box<dyn FnMut(&str) -> Vec<u8> + Send>>>;

/// A server, and how many connections and lines it has had.
struct Scripted {
    address: String,
    connections: Arc<AtomicUsize>,
    lines: Arc<AtomicUsize>,
}

impl Scripted {
    async fn start(script: impl FnMut(&str) -> Vec<u8> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let script: Script = Arc::new(Mutex::new(Box::new(script)));
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

    /// A client that is patient: what is tested is not how fast this machine is.
    fn client(&self) -> Server {
        Server::timed(self.address.clone(), Duration::from_secs(20))
    }
}

/// What a server that has everything answers.
fn everything(line: &str) -> Vec<u8> {
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

/// A reading that comes to an end, whatever that is.
async fn get(client: &Server, name: &str) -> Option<Vec<u8>> {
    let reading = client.get(name.to_owned());
    timeout(Duration::from_secs(30), reading)
        .await
        .expect("nobody waits for ever")
}

/// Reads until that says what is expected, which may take the time of a breaker.
async fn eventually(
    what: &str,
    client: &Server,
    mut is_so: impl FnMut(&ServerSnapshot, Option<Vec<u8>>) -> bool,
) {
    for _ in 0..3_000 {
        let value = get(client, "k").await;
        if is_so(&client.snapshot(), value) {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain: {what}");
}

#[tokio::test]
async fn everybody_gets_the_answer_to_what_they_asked() {
    let server = Scripted::start(everything).await;
    let client = Arc::new(server.client());
    client.set("k", b"v", Duration::from_secs(60));
    let askers: Vec<_> = (0..100)
        .map(|number| {
            let client = Arc::clone(&client);
            tokio::spawn(async move { get(&client, &format!("name{number}")).await })
        })
        .collect();
    // Some go away before they are answered, and leave the others what is theirs.
    for asker in askers.iter().step_by(3) {
        asker.abort();
    }
    for (number, asker) in askers.into_iter().enumerate() {
        if let Ok(value) = asker.await {
            assert_eq!(value.unwrap(), format!("name{number}").as_bytes());
        }
    }
    client.delete("k".to_owned()).await;
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    assert!(client.snapshot().up && client.snapshot().failures == 0);
}

#[tokio::test]
async fn a_server_without_the_entry_says_so() {
    let server = Scripted::start(|_| b"END\r\n".to_vec()).await;
    let client = server.client();
    assert_eq!(get(&client, "k").await, None);
    let snapshot = client.snapshot();
    assert_eq!(
        (snapshot.hits, snapshot.misses, snapshot.failures),
        (0, 1, 0)
    );
}

#[tokio::test]
async fn a_server_that_lies_or_is_silent_is_left_alone_after_a_few_times() {
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
        let said = answer.to_owned().into_bytes();
        let server = Scripted::start(move |_| said.clone()).await;
        let client = Server::new(server.address.clone());
        let shown = &answer[..answer.len().min(30)];
        eventually(shown, &client, |snapshot, value| {
            assert_eq!(value, None, "{shown}");
            !snapshot.up
        })
        .await;
        assert_eq!(client.snapshot().failures, 3, "{shown}");
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
async fn a_dead_server_is_tried_again_and_found_alive() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = Server::timed(address.to_string(), Duration::from_secs(20));
    eventually("it is left alone", &client, |snapshot, _| !snapshot.up).await;
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
                    .write_all(&everything(line.trim_end()))
                    .await
                    .unwrap();
                line.clear();
            }
        }
    });
    eventually("it answers", &client, |snapshot, value| {
        value.is_some() && snapshot.up
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_was_closed_between_questions_is_made_anew() {
    let mut closing = false;
    let server = Scripted::start(move |line| {
        closing = !closing;
        if closing {
            everything(line)
        } else {
            b"close".to_vec()
        }
    })
    .await;
    let client = server.client();
    assert!(get(&client, "k").await.is_some());
    // Closes.
    client.delete("k".to_owned()).await;
    eventually("it is asked again", &client, |_, value| value.is_some()).await;
    assert!(client.snapshot().up);
}

#[tokio::test]
async fn what_cannot_be_stored_is_not_sent() {
    let server = Scripted::start(everything).await;
    let client = server.client();
    client.set("k", &vec![b'v'; LONGEST_VALUE + 1], Duration::from_secs(60));
    assert!(get(&client, "k").await.is_some());
    assert_eq!(server.lines.load(Ordering::SeqCst), 1);
}

#[test]
fn a_server_outlives_the_runtime_that_asked_first() {
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
                    .send(Scripted::start(everything).await.address)
                    .unwrap();
                let _ = stopped.await;
            });
        });
        let client = Server::timed(address.recv().unwrap(), Duration::from_secs(20));
        for _ in 0..2 {
            assert!(runtime().block_on(get(&client, "k")).is_some());
        }
        stop.send(()).unwrap();
    });
}
