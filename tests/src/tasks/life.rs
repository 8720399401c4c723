//! The lifecycle of one task in the order of Aurora's executor: the port is reserved, the task is announced, the
//! program is fetched and started, and only then does it listen. On a stop, the executor leaves ZooKeeper while the
//! program quits.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::chance::RandomSequence;
use super::serve::{ServingPhase, serve};
use super::{TaskAnnouncement, TaskJournal, TaskRegistry, TaskStart};

/// The longest time between leaving and quitting, in either order.
const APART: Duration = Duration::from_millis(20);
/// How long requests that were sent before the task quit may take.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TaskEnd {
    /// It leaves the registry and quits.
    Stop,
    /// It dies, and its announcement remains until the registry detects that.
    Die,
}

/// Runs one task from announcement to end.
pub(super) async fn live(start: TaskStart, registry: Arc<dyn TaskRegistry>) {
    let TaskStart {
        task,
        port,
        journal,
        mut chance,
        mut end,
    } = start;
    let announcement = journal.announcement.clone();
    tell(&registry, &announcement, |registry, task| {
        registry.announce(task)
    })
    .await;
    journal.note(|record, now| record.announced = Some(now));
    let early = tokio::select! {
        biased;
        end = &mut end => Some(end),
        () = tokio::time::sleep(task.listen_after) => None,
    };
    let (phase, outcome) = watch::channel(ServingPhase::Serving);
    let serving = if early.is_some() {
        // It never listened: only the port is released.
        drop(port);
        journal.closed();
        None
    } else {
        let listener = port.listen().expect("the port is its own");
        journal.note(|record, now| record.listening = Some(now));
        let mut toss = chance.fork(1);
        let resets = move || toss.happens(0.5);
        Some(tokio::spawn(serve(
            listener,
            journal.clone(),
            task.answer_after,
            outcome,
            resets,
        )))
    };
    let end = match early {
        Some(end) => end,
        None => end.await,
    };
    match end {
        Ok(TaskEnd::Stop) => {
            journal.note(|record, now| record.stopped = Some(now));
            stop(&journal, &registry, &phase, &mut chance).await;
            if let Some(serving) = serving
                && tokio::time::timeout(GRACE, serving).await.is_err()
            {
                phase.send_replace(ServingPhase::Dead);
            }
        }
        Ok(TaskEnd::Die) => {
            journal.note(|record, now| record.died = Some(now));
            phase.send_replace(ServingPhase::Dead);
            if let Some(serving) = serving {
                let _ = serving.await;
            }
            tell(&registry, &announcement, |registry, task| {
                registry.abandon(task)
            })
            .await;
        }
        // The simulation was dropped.
        Err(_) => return,
    }
    journal.note(|record, now| record.ended = Some(now));
}

/// Leaves the registry and quits, at most [`APART`] between the two.
async fn stop(
    journal: &TaskJournal,
    registry: &Arc<dyn TaskRegistry>,
    phase: &watch::Sender<ServingPhase>,
    chance: &mut RandomSequence,
) {
    let apart = chance.between(Duration::ZERO, APART);
    let (leave_after, quit_after) = if chance.happens(0.5) {
        (apart, Duration::ZERO)
    } else {
        (Duration::ZERO, apart)
    };
    let leave = async {
        tokio::time::sleep(leave_after).await;
        tell(registry, &journal.announcement, |registry, task| {
            registry.leave(task)
        })
        .await;
        journal.left();
    };
    let quit = async {
        tokio::time::sleep(quit_after).await;
        phase.send_replace(ServingPhase::Quitting);
    };
    tokio::join!(leave, quit);
}

/// Calls the registry without blocking the other tasks.
async fn tell(
    registry: &Arc<dyn TaskRegistry>,
    announcement: &TaskAnnouncement,
    what: fn(&dyn TaskRegistry, &TaskAnnouncement),
) {
    let (registry, announcement) = (registry.clone(), announcement.clone());
    let outcome = tokio::task::spawn_blocking(move || what(&*registry, &announcement)).await;
    // Cancelled when the runtime ends; a panic of the registry was printed already.
    drop(outcome);
}
