//! The connection to one server.
//!
//! Owns connecting, sending commands one behind the other, and giving each answer to who asked. What does not answer in
//! time, or not as memcached does, loses the connection: after that nobody can know which answer is whose.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::reply::{Asked, Reply, parse};
use super::{Command, Link};

/// How long connecting may take, with asking for the address. Nobody waits that long; the next one finds it done.
pub(super) const CONNECT: Duration = Duration::from_secs(1);

/// Commands that are sent before the first one is answered.
const PIPELINE: usize = 128;

/// Serves commands until nobody can send any.
pub(super) async fn run(link: Arc<Link>, mut commands: mpsc::Receiver<Command>) {
    while let Some(first) = commands.recv().await {
        if let Err(error) = converse(&link, first, &mut commands).await {
            link.failed(&error);
            // Whoever waits is told by this.
            while commands.try_recv().is_ok() {}
        }
    }
}

/// Connects for a command, and goes on until the server closes a connection on which nothing is asked.
async fn converse(
    link: &Link,
    first: Command,
    commands: &mut mpsc::Receiver<Command>,
) -> Result<(), String> {
    link.breaker().connecting(Some(Instant::now()));
    let connected = timeout(CONNECT, TcpStream::connect(&link.name)).await;
    link.breaker().connecting(None);
    let mut stream = match connected {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(format!("no connection within {CONNECT:?}")),
    };
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    let (mut reader, mut writer) = stream.split();
    let mut talk = Talk {
        deadline: link.deadline,
        pending: VecDeque::new(),
        input: BytesMut::new(),
        output: BytesMut::new(),
    };
    talk.say(first);
    loop {
        let overdue = talk
            .pending
            .front()
            .map_or_else(Instant::now, |next| next.deadline);
        tokio::select! {
            // An answer that is here counts, even if this process had no time to look.
            biased;
            read = reader.read_buf(&mut talk.input) => match read {
                Ok(0) if talk.pending.is_empty() => return Ok(()),
                Ok(0) => return Err("it closed the connection".to_owned()),
                Ok(_) => talk.hear(link)?,
                Err(error) => return Err(error.to_string()),
            },
            written = writer.write_buf(&mut talk.output), if talk.output.has_remaining() => {
                written.map_err(|error| error.to_string())?;
            }
            command = commands.recv(), if talk.pending.len() < PIPELINE => match command {
                Some(command) => talk.say(command),
                None => return Ok(()),
            },
            () = sleep_until(overdue), if !talk.pending.is_empty() => {
                return Err(format!("no answer within {:?}", link.deadline));
            }
        }
    }
}

/// What has been asked and not yet answered.
struct Talk {
    deadline: Duration,
    pending: VecDeque<Pending>,
    input: BytesMut,
    output: BytesMut,
}

struct Pending {
    deadline: Instant,
    waiting: Waiting,
}

/// Who waits for an answer.
enum Waiting {
    Get {
        name: String,
        reply: oneshot::Sender<Option<Vec<u8>>>,
    },
    Delete(oneshot::Sender<()>),
    Nobody,
}

impl Talk {
    fn say(&mut self, command: Command) {
        let waiting = match command {
            // Who asked has gone on without an answer.
            Command::Get { reply, .. } if reply.is_closed() => return,
            Command::Get { name, reply } => {
                self.output
                    .extend_from_slice(format!("get {name}\r\n").as_bytes());
                Waiting::Get { name, reply }
            }
            Command::Delete { name, reply } => {
                self.output
                    .extend_from_slice(format!("delete {name}\r\n").as_bytes());
                Waiting::Delete(reply)
            }
            Command::Change(bytes) => {
                self.output.extend_from_slice(&bytes);
                Waiting::Nobody
            }
        };
        self.pending.push_back(Pending {
            deadline: Instant::now() + self.deadline,
            waiting,
        });
    }

    /// Gives out the answers that have come.
    fn hear(&mut self, link: &Link) -> Result<(), String> {
        while let Some(next) = self.pending.front() {
            let asked = match &next.waiting {
                Waiting::Get { name, .. } => Asked::Get(name),
                Waiting::Delete(_) | Waiting::Nobody => Asked::Change,
            };
            let (value, end) = match parse(asked, &self.input) {
                Reply::Incomplete => return Ok(()),
                Reply::Wrong => return Err("its answer is not one of memcached's".to_owned()),
                Reply::Value { at, end } => (Some(self.input[at].to_vec()), end),
                Reply::Done { end } => (None, end),
            };
            self.input.advance(end);
            // Whoever has gone on needs no answer.
            match self.pending.pop_front().map(|next| next.waiting) {
                Some(Waiting::Get { reply, .. }) => {
                    let count = if value.is_some() {
                        &link.hits
                    } else {
                        &link.misses
                    };
                    count.add(1);
                    let _ = reply.send(value);
                }
                Some(Waiting::Delete(reply)) => drop(reply.send(())),
                Some(Waiting::Nobody) | None => {}
            }
        }
        if !self.input.is_empty() {
            return Err("it says what nobody asked for".to_owned());
        }
        link.succeeded();
        Ok(())
    }
}
