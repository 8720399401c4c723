//! Many Aurora tasks played by one thread: each is announced, listens some time later, answers HTTP, and is stopped or
//! dies, in the order in which Aurora does it and with the small disorder that comes with it. All chance is seeded.
//!
//! It does not know where tasks are announced: that is the test's [`TaskRegistry`].

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

/// How many lives may wait for the thread to begin.
const BIRTHS: usize = 1024;
/// How many threads may wait for the registry.
const TELLERS: usize = 8;

/// A task among all that were launched, from 0.
pub type TaskSerial = u64;

/// A task to launch.
#[derive(Debug, Clone)]
pub struct TaskLaunch {
    /// The service it is announced as, one word.
    pub service: String,
    /// Its instance number.
    pub shard: u32,
    /// Where it will listen; `None` is a free port of an address of its own below 127.0.0.0/8.
    pub address: Option<SocketAddr>,
    /// How long after it was announced it begins to listen.
    pub listen_after: Duration,
    /// How long it takes to answer anything but `/health`.
    pub answer_after: Duration,
}

impl TaskLaunch {
    /// A task that listens as soon as it is announced and answers at once.
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

/// What is announced of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskAnnouncement {
    /// Which task it is.
    pub serial: TaskSerial,
    /// The service.
    pub service: String,
    /// The instance number.
    pub shard: u32,
    /// Where it listens, or will.
    pub address: SocketAddr,
}

/// Where tasks are announced. Each call may block; calls for different tasks come from different threads, those for one
/// task one after the other.
pub trait TaskRegistry: Send + Sync + 'static {
    /// The executor announces the task. When this returns it is announced.
    fn announce(&self, task: &TaskAnnouncement);

    /// The executor takes the announcement back. When this returns it is gone.
    fn leave(&self, task: &TaskAnnouncement);

    /// The executor is gone with its task: the announcement remains until the registry notices by itself.
    fn abandon(&self, task: &TaskAnnouncement);
}

/// What is known of one life. Times are since the player started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskRecord {
    /// When the registry had it.
    pub announced: Option<Duration>,
    /// When it began to listen.
    pub listening: Option<Duration>,
    /// When it answered its first request other than `/health`.
    pub first_served: Option<Duration>,
    /// When it was told to stop.
    pub stopped: Option<Duration>,
    /// When it died without being told.
    pub died: Option<Duration>,
    /// When the registry no longer had it.
    pub left: Option<Duration>,
    /// When its port was closed.
    pub closed: Option<Duration>,
    /// When its last connection was gone.
    pub ended: Option<Duration>,
    /// How many requests it answered, `/health` apart.
    pub served: u64,
    /// How many of them after the registry no longer had it.
    pub after_leaving: u64,
}

impl TaskRecord {
    /// The time from listening to the first request.
    #[must_use]
    pub fn listen_to_first(&self) -> Option<Duration> {
        Some(self.first_served?.saturating_sub(self.listening?))
    }
}

/// The record of a life that is still written.
#[derive(Debug)]
struct TaskJournal {
    start: Instant,
    announcement: TaskAnnouncement,
    /// What it answers: its service and its serial.
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

/// A life that begins.
struct TaskStart {
    task: TaskLaunch,
    port: ReservedPort,
    book: Arc<TaskJournal>,
    chance: RandomSequence,
    end: oneshot::Receiver<TaskEnd>,
}

/// The player. Dropping it ends all lives at once, without telling the registry.
#[derive(Debug)]
pub struct TaskPlayer {
    start: Instant,
    chance: RandomSequence,
    draws: AtomicU64,
    lives: Mutex<Vec<TaskHandle>>,
    births: Option<mpsc::Sender<TaskStart>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct TaskHandle {
    book: Arc<TaskJournal>,
    /// Taken when it is ended.
    end: Option<oneshot::Sender<TaskEnd>>,
}

impl TaskPlayer {
    /// A player without tasks yet. What it leaves to chance is the same for the same `seed`.
    #[must_use]
    pub fn start(seed: u64, registry: Arc<dyn TaskRegistry>) -> Self {
        let (births, born) = mpsc::channel(BIRTHS);
        let thread = std::thread::Builder::new()
            .name("tasks".to_owned())
            .spawn(move || run(registry, born))
            .expect("a thread");
        Self {
            start: Instant::now(),
            chance: RandomSequence::new(seed),
            draws: AtomicU64::new(0),
            lives: Mutex::new(Vec::new()),
            births: Some(births),
            thread: Some(thread),
        }
    }

    /// Begins a life: the task has its port from now on, is announced, and listens later.
    ///
    /// # Panics
    /// When somebody else has the port that was given.
    pub fn launch(&self, task: TaskLaunch) -> TaskSerial {
        let mut lives = self.lives.lock().unwrap();
        let serial = lives.len() as TaskSerial;
        let wanted = task.address.unwrap_or_else(|| own_address(serial));
        let port = ReservedPort::take(wanted).unwrap_or_else(|error| panic!("{wanted}: {error}"));
        let book = Arc::new(TaskJournal {
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
            book: book.clone(),
            end: Some(end),
        });
        drop(lives);
        let birth = TaskStart {
            task,
            port,
            book,
            chance: self.chance.fork(serial),
            end: ended,
        };
        let births = self.births.as_ref().expect("open until it is dropped");
        births.blocking_send(birth).expect("the thread runs");
        serial
    }

    /// Stops a task as Aurora does: it leaves the registry and quits at the same time, give or take 20 ms.
    pub fn stop(&self, serial: TaskSerial) {
        self.end(serial, TaskEnd::Stop);
    }

    /// Ends a task without leaving: its port and its connections are gone, its announcement is not.
    pub fn kill(&self, serial: TaskSerial) {
        self.end(serial, TaskEnd::Die);
    }

    fn end(&self, serial: TaskSerial, how: TaskEnd) {
        let end = self.lives.lock().unwrap()[serial as usize].end.take();
        // One that has been ended already stays so.
        let _ = end.map(|end| end.send(how));
    }

    /// What is announced of a task.
    #[must_use]
    pub fn announcement(&self, serial: TaskSerial) -> TaskAnnouncement {
        self.book(serial).announcement.clone()
    }

    /// What is known of a life.
    #[must_use]
    pub fn record(&self, serial: TaskSerial) -> TaskRecord {
        self.book(serial).record.lock().unwrap().clone()
    }

    /// What is known of all lives, by serial.
    #[must_use]
    pub fn records(&self) -> Vec<TaskRecord> {
        let count = self.lives.lock().unwrap().len() as TaskSerial;
        (0..count).map(|serial| self.record(serial)).collect()
    }

    /// Returns when a task listens.
    ///
    /// # Panics
    /// When it does not within [`wait_limit`].
    pub fn await_listening(&self, serial: TaskSerial) {
        self.wait(serial, wait_limit(), "listens", |record| {
            record.listening.is_some()
        });
    }

    /// Returns when a task that was stopped or killed is gone: its connections, and its announcement if it left.
    ///
    /// # Panics
    /// When it is not within [`wait_limit`].
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
        let book = self.book(serial);
        let began = Instant::now();
        while !holds(&book.record.lock().unwrap()) {
            let task = &book.announcement;
            assert!(
                began.elapsed() < limit,
                "waited {limit:?} in vain: {task:?} {what}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn book(&self, serial: TaskSerial) -> Arc<TaskJournal> {
        self.lives.lock().unwrap()[serial as usize].book.clone()
    }

    /// The next of the numbers that the caller's own decisions are made by.
    fn draw(&self) -> RandomSequence {
        let number = self.draws.fetch_add(1, Ordering::Relaxed);
        self.chance.fork(number | 1 << 63)
    }
}

impl Drop for TaskPlayer {
    fn drop(&mut self) {
        drop(self.births.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed there; a second one here would hide the test's own.
            let _ = thread.join();
        }
    }
}

/// A free port of an address that no other life has, so that no endpoint ever comes back.
fn own_address(serial: TaskSerial) -> SocketAddr {
    let [.., high, middle, low] = serial.to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, 64 + high % 64, middle, low), 0))
}

fn run(registry: Arc<dyn TaskRegistry>, mut born: mpsc::Receiver<TaskStart>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(TELLERS)
        .build()
        .unwrap();
    runtime.block_on(async {
        while let Some(birth) = born.recv().await {
            tokio::spawn(live(birth, registry.clone()));
        }
    });
    runtime.shutdown_background();
}
