//! Simulates many Aurora tasks in one thread: each is announced, listens some time later, answers HTTP, and is stopped
//! or dies, in Aurora's order and with small random delays. All randomness is seeded.
//!
//! The test's [`TaskRegistry`] decides where tasks are announced.

mod chance;
mod life;
mod rolling;
mod serve;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::wait_limit;
use chance::RandomSequence;
use life::{TaskEnd, live};
pub use rolling::RollingJob;
use serve::ReservedPort;

/// How many tasks may wait for the thread to start them.
const PENDING_STARTS: usize = 1024;
/// How many threads may wait for the registry.
const REGISTRY_THREADS: usize = 8;

/// The number of a task in launch order, from 0.
pub type TaskSerial = u64;

#[derive(Debug, Clone)]
pub struct TaskLaunch {
    /// The service it is announced as, one word.
    pub service: String,
    pub shard: u32,
    /// Where it will listen; `None` selects a free port of a separate address in 127.0.0.0/8.
    pub address: Option<SocketAddr>,
    /// The time from announcement to listening.
    pub listen_after: Duration,
    /// The time to answer anything but `/health`.
    pub answer_after: Duration,
}

impl TaskLaunch {
    /// A task that listens as soon as it is announced, and answers at once.
    #[must_use]
    pub fn new(service: &str, shard: u32) -> Self {
        Self {
            service: service.to_owned(),
            shard,
            address: None,
            listen_after: Duration::ZERO,
            answer_after: Duration::ZERO,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskAnnouncement {
    pub serial: TaskSerial,
    pub service: String,
    pub shard: u32,
    /// The address on which it listens, now or later.
    pub address: SocketAddr,
}

/// A place where tasks are announced. Calls may block; calls for different tasks come from different threads, those for
/// one task in sequence.
pub trait TaskRegistry: Send + Sync + 'static {
    /// The executor announces the task; on return it is announced.
    fn announce(&self, task: &TaskAnnouncement);

    /// The executor removes the announcement; on return it is gone.
    fn leave(&self, task: &TaskAnnouncement);

    /// The executor died with its task: the announcement remains until the registry detects that.
    fn abandon(&self, task: &TaskAnnouncement);
}

/// The timeline of one task. Times are since the player started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskRecord {
    pub announced: Option<Duration>,
    pub listening: Option<Duration>,
    /// When it answered its first request other than `/health`.
    pub first_served: Option<Duration>,
    pub stopped: Option<Duration>,
    /// When it died without being stopped.
    pub died: Option<Duration>,
    /// When its announcement was removed.
    pub left: Option<Duration>,
    /// When its port was closed.
    pub closed: Option<Duration>,
    /// When its last connection was closed.
    pub ended: Option<Duration>,
    /// How many requests it answered, `/health` excluded.
    pub served: u64,
    /// How many of them after its announcement was removed.
    pub after_leaving: u64,
}

impl TaskRecord {
    #[must_use]
    pub fn listen_to_first(&self) -> Option<Duration> {
        Some(self.first_served?.saturating_sub(self.listening?))
    }
}

/// The record of a task that has not ended.
#[derive(Debug)]
struct TaskJournal {
    start: Instant,
    announcement: TaskAnnouncement,
    /// Its response body: the service and the serial.
    body: String,
    record: Mutex<TaskRecord>,
}

impl TaskJournal {
    fn note(&self, write: impl FnOnce(&mut TaskRecord, Duration)) {
        write(&mut self.record.lock().unwrap(), self.start.elapsed());
    }

    fn answering(&self) {
        self.note(|record, now| {
            record.first_served.get_or_insert(now);
            record.served += 1;
            record.after_leaving += u64::from(record.left.is_some());
        });
    }

    fn left(&self) {
        self.note(|record, now| record.left = Some(now));
    }

    fn closed(&self) {
        self.note(|record, now| record.closed = Some(now));
    }
}

struct TaskStart {
    task: TaskLaunch,
    port: ReservedPort,
    journal: Arc<TaskJournal>,
    chance: RandomSequence,
    end: oneshot::Receiver<TaskEnd>,
}

/// The simulation. Dropping it ends all tasks at once, without telling the registry.
#[derive(Debug)]
pub struct TaskPlayer {
    start: Instant,
    chance: RandomSequence,
    draws: AtomicU64,
    lives: Mutex<Vec<TaskHandle>>,
    starts: Option<mpsc::Sender<TaskStart>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct TaskHandle {
    journal: Arc<TaskJournal>,
    /// `None` once it was used.
    end: Option<oneshot::Sender<TaskEnd>>,
}

impl TaskPlayer {
    /// Starts a simulation without tasks. The same `seed` gives the same delays.
    #[must_use]
    pub fn start(seed: u64, registry: Arc<dyn TaskRegistry>) -> Self {
        let (starts, received) = mpsc::channel(PENDING_STARTS);
        let thread = std::thread::Builder::new()
            .name("tasks".to_owned())
            .spawn(move || run(registry, received))
            .expect("a thread");
        Self {
            start: Instant::now(),
            chance: RandomSequence::new(seed),
            draws: AtomicU64::new(0),
            lives: Mutex::new(Vec::new()),
            starts: Some(starts),
            thread: Some(thread),
        }
    }

    /// Launches a task: it holds its port from now on, is announced, and listens later.
    ///
    /// # Panics
    /// The given port is in use.
    pub fn launch(&self, task: TaskLaunch) -> TaskSerial {
        let mut lives = self.lives.lock().unwrap();
        let serial = lives.len() as TaskSerial;
        let wanted = task.address.unwrap_or_else(|| own_address(serial));
        let port = ReservedPort::take(wanted).unwrap_or_else(|error| panic!("{wanted}: {error}"));
        let journal = Arc::new(TaskJournal {
            start: self.start,
            announcement: TaskAnnouncement {
                serial,
                service: task.service.clone(),
                shard: task.shard,
                address: port.address(),
            },
            body: format!("{} {serial}\n", task.service),
            record: Mutex::default(),
        });
        let (end, ended) = oneshot::channel();
        lives.push(TaskHandle {
            journal: journal.clone(),
            end: Some(end),
        });
        drop(lives);
        let start = TaskStart {
            task,
            port,
            journal,
            chance: self.chance.fork(serial),
            end: ended,
        };
        let starts = self.starts.as_ref().expect("open until it is dropped");
        starts.blocking_send(start).expect("the thread runs");
        serial
    }

    /// Stops a task as Aurora does: its announcement is removed and it quits at the same time, within 20 ms.
    pub fn stop(&self, serial: TaskSerial) {
        self.end(serial, TaskEnd::Stop);
    }

    /// Kills a task: its port and connections are closed, its announcement remains.
    pub fn kill(&self, serial: TaskSerial) {
        self.end(serial, TaskEnd::Die);
    }

    fn end(&self, serial: TaskSerial, how: TaskEnd) {
        let end = self.lives.lock().unwrap()[serial as usize].end.take();
        // The first end counts.
        let _ = end.map(|end| end.send(how));
    }

    #[must_use]
    pub fn announcement(&self, serial: TaskSerial) -> TaskAnnouncement {
        self.journal(serial).announcement.clone()
    }

    #[must_use]
    pub fn record(&self, serial: TaskSerial) -> TaskRecord {
        self.journal(serial).record.lock().unwrap().clone()
    }

    /// The records of all tasks, by serial.
    #[must_use]
    pub fn records(&self) -> Vec<TaskRecord> {
        let count = self.lives.lock().unwrap().len() as TaskSerial;
        (0..count).map(|serial| self.record(serial)).collect()
    }

    /// Waits until a task listens.
    pub fn await_listening(&self, serial: TaskSerial) {
        self.wait(serial, wait_limit(), "listens", |record| {
            record.listening.is_some()
        });
    }

    /// Waits until a task that was stopped or killed has ended, with its connections, and its announcement if it was
    /// stopped.
    pub fn await_end(&self, serial: TaskSerial) {
        self.wait(serial, wait_limit(), "ends", |record| {
            record.ended.is_some()
        });
    }

    fn wait(
        &self,
        serial: TaskSerial,
        limit: Duration,
        what: &str,
        holds: impl Fn(&TaskRecord) -> bool,
    ) {
        let journal = self.journal(serial);
        let began = Instant::now();
        while !holds(&journal.record.lock().unwrap()) {
            let task = &journal.announcement;
            assert!(
                began.elapsed() < limit,
                "waited {limit:?} in vain: {task:?} {what}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn journal(&self, serial: TaskSerial) -> Arc<TaskJournal> {
        self.lives.lock().unwrap()[serial as usize].journal.clone()
    }

    /// The next random sequence for decisions of the caller.
    fn draw(&self) -> RandomSequence {
        let number = self.draws.fetch_add(1, Ordering::Relaxed);
        self.chance.fork(number | 1 << 63)
    }
}

impl Drop for TaskPlayer {
    fn drop(&mut self) {
        drop(self.starts.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed already; a second one here would hide the test's own.
            let _ = thread.join();
        }
    }
}

/// A free port of an address that no other task has, so that no endpoint is reused.
fn own_address(serial: TaskSerial) -> SocketAddr {
    let [.., high, middle, low] = serial.to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, 64 + high % 64, middle, low), 0))
}

fn run(registry: Arc<dyn TaskRegistry>, mut received: mpsc::Receiver<TaskStart>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(REGISTRY_THREADS)
        .build()
        .unwrap();
    runtime.block_on(async {
        while let Some(start) = received.recv().await {
            tokio::spawn(live(start, registry.clone()));
        }
    });
    runtime.shutdown_background();
}
