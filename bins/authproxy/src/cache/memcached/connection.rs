//! The connection to one server: connecting, pipelining commands, and passing each reply to its waiter.
//!
//! A late or invalid reply closes the connection: after it, replies cannot be matched to commands.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::reply::{ExpectedReply, MemcachedReply, parse};
use super::{MemcachedCommand, MemcachedLink};

/// How long connecting may take, name resolution included. Lookups do not wait that long; a later one uses the connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Commands that are sent before the first reply.
const PIPELINE: usize = 128;

/// Serves commands until the client is dropped.
pub(super) async fn run(link: Arc<MemcachedLink>, mut commands: mpsc::Receiver<MemcachedCommand>) {
    while let Some(first) = commands.recv().await {
        if let Err(error) = run_session(&link, first, &mut commands).await {
            link.record_failure(&error);
            // Dropping a command ends the wait for its reply.
            while commands.try_recv().is_ok() {}
        }
    }
}

/// Connects for a command, and serves commands until the server closes an idle connection.
async fn run_session(
    link: &MemcachedLink,
    first: MemcachedCommand,
    commands: &mut mpsc::Receiver<MemcachedCommand>,
) -> Result<(), String> {
    link.state().connecting = Some(Instant::now());
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(&link.name)).await;
    link.state().connecting = None;
    let mut stream = match connected {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(format!("no connection within {CONNECT_TIMEOUT:?}")),
    };
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    let (mut reader, mut writer) = stream.split();
    let mut session = MemcachedSession {
        deadline: link.deadline,
        pending: VecDeque::new(),
        input: BytesMut::new(),
        output: BytesMut::new(),
    };
    session.send(first);
    loop {
        let overdue = session
            .pending
            .front()
            .map_or_else(Instant::now, |next| next.deadline);
        tokio::select! {
            // A reply that has arrived counts, even if this process had no time to read it.
            biased;
            read = reader.read_buf(&mut session.input) => match read {
                Ok(0) if session.pending.is_empty() => return Ok(()),
                Ok(0) => return Err("it closed the connection".to_owned()),
                Ok(_) => session.receive(link)?,
                Err(error) => return Err(error.to_string()),
            },
            written = writer.write_buf(&mut session.output), if session.output.has_remaining() => {
                written.map_err(|error| error.to_string())?;
            }
            command = commands.recv(), if session.pending.len() < PIPELINE => match command {
                Some(command) => session.send(command),
                None => return Ok(()),
            },
            () = sleep_until(overdue), if !session.pending.is_empty() => {
                return Err(format!("no reply within {:?}", link.deadline));
            }
        }
    }
}

/// The commands without a reply yet, and the buffers.
struct MemcachedSession {
    deadline: Duration,
    pending: VecDeque<PendingCommand>,
    input: BytesMut,
    output: BytesMut,
}

struct PendingCommand {
    deadline: Instant,
    waiter: ReplyWaiter,
}

enum ReplyWaiter {
    Get {
        name: String,
        reply: oneshot::Sender<Option<Vec<u8>>>,
    },
    Delete(oneshot::Sender<()>),
    None,
}

impl MemcachedSession {
    fn send(&mut self, command: MemcachedCommand) {
        let waiter = match command {
            // The lookup has ended without it.
            MemcachedCommand::Get { reply, .. } if reply.is_closed() => return,
            MemcachedCommand::Get { name, reply } => {
                self.output
                    .extend_from_slice(format!("get {name}\r\n").as_bytes());
                ReplyWaiter::Get { name, reply }
            }
            MemcachedCommand::Delete { name, reply } => {
                self.output
                    .extend_from_slice(format!("delete {name}\r\n").as_bytes());
                ReplyWaiter::Delete(reply)
            }
            MemcachedCommand::Change(bytes) => {
                self.output.extend_from_slice(&bytes);
                ReplyWaiter::None
            }
        };
        self.pending.push_back(PendingCommand {
            deadline: Instant::now() + self.deadline,
            waiter,
        });
    }

    /// Passes on the replies that have arrived.
    fn receive(&mut self, link: &MemcachedLink) -> Result<(), String> {
        while let Some(next) = self.pending.front() {
            let expected = match &next.waiter {
                ReplyWaiter::Get { name, .. } => ExpectedReply::Get(name),
                ReplyWaiter::Delete(_) | ReplyWaiter::None => ExpectedReply::Change,
            };
            let (value, end) = match parse(expected, &self.input) {
                MemcachedReply::Incomplete => return Ok(()),
                MemcachedReply::Invalid => return Err("invalid reply".to_owned()),
                MemcachedReply::Value { at, end } => (Some(self.input[at].to_vec()), end),
                MemcachedReply::Done { end } => (None, end),
            };
            self.input.advance(end);
            // The lookup may have ended without it.
            match self.pending.pop_front().map(|next| next.waiter) {
                Some(ReplyWaiter::Get { reply, .. }) => {
                    let count = if value.is_some() {
                        &link.hits
                    } else {
                        &link.misses
                    };
                    count.add(1);
                    let _ = reply.send(value);
                }
                Some(ReplyWaiter::Delete(reply)) => drop(reply.send(())),
                Some(ReplyWaiter::None) | None => {}
            }
        }
        if !self.input.is_empty() {
            return Err("unexpected reply".to_owned());
        }
        link.record_success();
        Ok(())
    }
}
