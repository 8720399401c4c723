//! A rolling update as Aurora's scheduler does it: a batch of instances is stopped, their successors are started, and
//! the next batch follows when all of them answer.

use std::time::{Duration, Instant};

use super::{TaskLaunch, TaskPlayer, TaskSerial};
use crate::wait_limit;

/// A job that is deployed and updated in batches.
#[derive(Debug, Clone)]
pub struct RollingJob {
    pub service: String,
    pub instances: u32,
    /// How many instances are replaced at a time (`--batch-size`).
    pub batch: usize,
    /// The shortest and the longest time from announcement to listening.
    pub listen_after: (Duration, Duration),
    /// The share of tasks that die instead of being stopped.
    pub dies: f64,
    pub answer_after: Duration,
}

impl TaskPlayer {
    /// Starts all instances of a job and waits until they listen.
    pub fn deploy(&self, job: &RollingJob) -> Vec<TaskSerial> {
        let started: Vec<_> = (0..job.instances)
            .map(|shard| self.instance(job, shard))
            .collect();
        self.all_listen(job, &started);
        started
    }

    /// Replaces all instances of a job batch by batch; `old` has their serials by instance number. A batch is done when
    /// its tasks listen and `healthy` returns true for their serials.
    pub fn update(
        &self,
        job: &RollingJob,
        old: &[TaskSerial],
        mut healthy: impl FnMut(&[TaskSerial]) -> bool,
    ) -> Vec<TaskSerial> {
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
                    began.elapsed() < wait_limit(),
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

    fn instance(&self, job: &RollingJob, shard: u32) -> TaskSerial {
        let (least, most) = job.listen_after;
        let listen_after = self.draw().between(least, most);
        self.launch(TaskLaunch {
            listen_after,
            answer_after: job.answer_after,
            ..TaskLaunch::new(&job.service, shard)
        })
    }

    fn all_listen(&self, job: &RollingJob, serials: &[TaskSerial]) {
        let limit = job.listen_after.1 + wait_limit();
        for &serial in serials {
            self.wait(serial, limit, "listens", |record| {
                record.listening.is_some()
            });
        }
    }
}
