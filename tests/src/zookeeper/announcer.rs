//! Registers tasks in ZooKeeper as Aurora's executor and Nerve do, and in invalid ways.

use std::future::Future;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use zookeeper_client::{Acls, Client, CreateMode, Error};

use super::{ZookeeperRelease, ZookeeperServer};

/// The requested session timeout; the server grants at least two of its ticks.
const SESSION: Duration = Duration::from_secs(4);

/// The timeout of a request.
const DEADLINE: Duration = Duration::from_secs(20);

/// How many registrations [`AnnouncerSession::register_all`] has under way at once.
const IN_FLIGHT: usize = 128;

/// One session that announces any number of tasks. Dropping it closes the session, which removes all of them.
#[derive(Debug)]
pub struct AnnouncerSession {
    handle: Handle,
    client: Option<Client>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The announcement of Aurora's executor for a task: all ports on one host.
#[derive(Debug, Clone)]
pub struct ServerSetMember<'a> {
    pub host: &'a str,
    pub shard: u32,
    /// Named ports; the first is the primary one.
    pub ports: &'a [(&'a str, u16)],
}

impl ServerSetMember<'_> {
    /// The data of its member node.
    ///
    /// # Panics
    /// It has no port.
    #[must_use]
    pub fn payload(&self) -> Vec<u8> {
        let endpoint = |port: u16| serde_json::json!({"host": self.host, "port": port});
        let primary = self.ports.first().expect("a primary port").1;
        let mut additional: serde_json::Map<_, _> = self
            .ports
            .iter()
            .map(|(name, port)| ((*name).to_owned(), endpoint(*port)))
            .collect();
        additional.insert("aurora".to_owned(), endpoint(primary));
        let payload = serde_json::json!({
            "status": "ALIVE",
            "shard": self.shard,
            "serviceEndpoint": endpoint(primary),
            "additionalEndpoints": additional,
        });
        payload.to_string().into_bytes()
    }
}

impl AnnouncerSession {
    /// Opens a session.
    #[must_use]
    pub fn connect(server: &ZookeeperServer) -> Self {
        Self::connect_as(server, None)
    }

    /// Opens a session that authenticates with `user:password` (scheme `digest`).
    #[must_use]
    pub fn connect_as(server: &ZookeeperServer, digest: Option<&str>) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let (give, take) = sync_channel(1);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            give.send(runtime.handle().clone()).unwrap();
            runtime.block_on(async {
                let _ = stopped.await;
            });
        });
        let mut announcer = Self {
            handle: take.recv().unwrap(),
            client: None,
            stop: Some(stop),
            thread: Some(thread),
        };
        let mut connector = Client::connector().with_session_timeout(SESSION);
        if server.release() == ZookeeperRelease::Old {
            connector = connector.with_server_version(3, 4, 6);
        }
        if let Some(digest) = digest {
            connector = connector.with_auth("digest", digest.as_bytes());
        }
        let host = server.host();
        let client = announcer.wait(async move { connector.connect(&host).await });
        announcer.client = Some(client.unwrap());
        announcer
    }

    /// Runs a future in the announcer's thread.
    fn wait<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        let (give, take) = sync_channel(1);
        self.handle.spawn(async move {
            let _ = give.send(tokio::time::timeout(DEADLINE, future).await);
        });
        let answer = take.recv().expect("the announcer's thread lives");
        answer.expect("ZooKeeper answers the announcer in time")
    }

    /// The session, for requests that this type does not offer. Its futures run on any runtime.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone().expect("a connected announcer")
    }

    /// Creates a node and its parents.
    pub fn make(&self, path: &str) {
        let (client, path) = (self.client(), path.to_owned());
        self.wait(async move { make(&client, &path).await });
    }

    /// Replaces the data of an existing node.
    pub fn set(&self, path: &str, data: &[u8]) {
        let (client, path, data) = (self.client(), path.to_owned(), data.to_vec());
        let done = self.wait(async move { client.set_data(&path, &data, None).await });
        done.unwrap();
    }

    /// Creates a node that only sessions with the same digest may access.
    ///
    /// # Panics
    /// This session has no digest.
    pub fn make_private(&self, path: &str) {
        let (client, path) = (self.client(), path.to_owned());
        let done = self.wait(async move {
            let options = CreateMode::Persistent.with_acls(Acls::creator_all());
            client.create(&path, b"", &options).await
        });
        done.unwrap();
    }

    /// Announces a task as Aurora's executor does: ephemeral `member_<sequence>` below the job's path, which is created
    /// if missing. Returns the member's path.
    pub fn announce(&self, job: &str, task: &ServerSetMember<'_>) -> String {
        self.register(job, "member_", &task.payload())
    }

    /// Announces an instance as Nerve does: ephemeral `<instance>_<sequence>`. Returns the child's path.
    pub fn announce_nerve(
        &self,
        path: &str,
        instance: &str,
        payload: &serde_json::Value,
    ) -> String {
        self.register(
            path,
            &format!("{instance}_"),
            payload.to_string().as_bytes(),
        )
    }

    /// Registers any bytes below `path` as an ephemeral sequential child. Returns the child's path.
    pub fn register(&self, path: &str, prefix: &str, payload: &[u8]) -> String {
        let (client, path) = (self.client(), path.to_owned());
        let (prefix, payload) = (prefix.to_owned(), payload.to_vec());
        self.wait(async move { register(&client, &path, &prefix, &payload).await })
    }

    /// Registers many children concurrently: `(path, prefix, payload)`. Returns their paths in the given order.
    pub fn register_all(&self, all: Vec<(String, String, Vec<u8>)>) -> Vec<String> {
        let client = self.client();
        self.each(all, move |(path, prefix, payload)| {
            let client = client.clone();
            async move { register(&client, &path, &prefix, &payload).await }
        })
    }

    /// Removes many nodes concurrently.
    pub fn remove_all(&self, paths: Vec<String>) {
        let client = self.client();
        self.each(paths, move |path| {
            let client = client.clone();
            async move { client.delete(&path, None).await.unwrap() }
        });
    }

    fn each<T, U, F>(&self, items: Vec<T>, ask: impl Fn(T) -> F + Send + 'static) -> Vec<U>
    where
        T: Send + 'static,
        U: Send + 'static,
        F: Future<Output = U> + Send + 'static,
    {
        self.wait(async move {
            let mut answers: Vec<Option<U>> = items.iter().map(|_| None).collect();
            let mut running = JoinSet::new();
            let mut take = |done: Result<(usize, U), _>| {
                let (index, answer) = done.unwrap();
                answers[index] = Some(answer);
            };
            for (index, item) in items.into_iter().enumerate() {
                if running.len() >= IN_FLIGHT {
                    take(running.join_next().await.unwrap());
                }
                let asking = ask(item);
                running.spawn(async move { (index, asking.await) });
            }
            while let Some(done) = running.join_next().await {
                take(done);
            }
            answers.into_iter().map(Option::unwrap).collect()
        })
    }

    /// Removes a node without children, such as that of a member.
    pub fn remove(&self, path: &str) {
        let (client, path) = (self.client(), path.to_owned());
        self.wait(async move { client.delete(&path, None).await })
            .unwrap();
    }
}

impl Drop for AnnouncerSession {
    fn drop(&mut self) {
        let client = self.client.take();
        if let Some(client) = client {
            let mut state = client.state_watcher();
            drop(client);
            // The session closes in the background, without waiting for an unreachable server.
            let (give, take) = sync_channel(1);
            self.handle.spawn(async move {
                let closed = async { while !state.changed().await.is_terminated() {} };
                let _ = tokio::time::timeout(Duration::from_secs(2), closed).await;
                let _ = give.send(());
            });
            let _ = take.recv();
        }
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn make(client: &Client, path: &str) {
    let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.mkdir(path, &options).await.unwrap();
}

async fn register(client: &Client, path: &str, prefix: &str, payload: &[u8]) -> String {
    let options = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
    let start = format!("{path}/{prefix}");
    let made = match client.create(&start, payload, &options).await {
        Err(Error::NoNode) => {
            make(client, path).await;
            client.create(&start, payload, &options).await
        }
        other => other,
    };
    let (_, sequence) = made.unwrap();
    format!("{start}{sequence}")
}
