//! A rolling update as Aurora's scheduler does it: a batch of instances is stopped, their successors are started, and
//! the next batch is touched when all of this one answer.

use std::time::{Duration, Instant};

use super::{Serial, Task, Tasks};
use crate::patience;

/// A job that is deployed and updated in batches.
#[derive(Debug, Clone)]
pub struct Job {
    /// The service its tasks are announced as.
    pub service: String,
    /// How many instances it has.
    pub instances: u32,
    /// How many of them are replaced at a time (`--batch-size`).
    pub batch: usize,
    /// The shortest time between announcing and listening.
    pub listen_after: (Duration, Duration),
    /// The share of tasks that die without leaving instead of being stopped.
    pub dies: f64,
    /// How long a task takes to answer.
    pub answer_after: Duration,
}

impl Tasks {
    /// Starts all instances of a job and returns when they listen.
    ///
    /// # Panics
    /// When one does not within its time and [`patience`].
    pub fn deploy(&self, job: &Job) -> Vec<Serial> {
        let started: Vec<_> = (0..job.instances)
            .map(|shard| self.instance(job, shard))
            .collect();
        self.all_listen(job, &started);
        started
    }

    /// Replaces all instances of a job, batch by batch; `old` are their serials by instance number. A batch is done
    /// when its tasks listen and `healthy` says so of their serials.
    ///
    /// # Panics
    /// When a batch is not done within its time and [`patience`].
    pub fn update(
        &self,
        job: &Job,
        old: &[Serial],
        mut healthy: impl FnMut(&[Serial]) -> bool,
    ) -> Vec<Serial> {
        let mut all = Vec::with_capacity(old.len());
        for batch in old.chunks(job.batch) {
            for &serial in batch {
                if self.draw().happens(job.dies) {
                    self.kill(serial);
                } else {
                    self.stop(serial);
                }
            }
            for &serial in batch {
                self.await_end(serial);
            }
            let started: Vec<_> = (all.len()..all.len() + batch.len())
                .map(|shard| self.instance(job, shard.try_into().expect("an instance number")))
                .collect();
            self.all_listen(job, &started);
            let began = Instant::now();
            while !healthy(&started) {
                assert!(
                    began.elapsed() < patience(),
                    "waited in vain for instances {}.. of {}",
                    all.len(),
                    job.service
                );
                std::thread::sleep(Duration::from_millis(10));
            }
            all.extend(started);
        }
        all
    }

    fn instance(&self, job: &Job, shard: u32) -> Serial {
        let (least, most) = job.listen_after;
        let listen_after = self.draw().between(least, most);
        self.launch(Task {
            listen_after,
            answer_after: job.answer_after,
            ..Task::new(&job.service, shard)
        })
    }

    fn all_listen(&self, job: &Job, serials: &[Serial]) {
        let limit = job.listen_after.1 + patience();
        for &serial in serials {
            self.wait(serial, limit, "listens", |record| {
                record.listening.is_some()
            });
        }
    }
}
