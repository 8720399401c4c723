//! The transaction that makes HAProxy run a new file: candidate, preflight, swap, reload, verify; or the old file is put
//! back and, if it had stopped running, made to run again.
//!
//! A kill between any two steps leaves a file in place that HAProxy starts with: the old one, or the new one after all
//! of preflight. Only one transaction may run at a time: the caller's matter.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hostkit::failure::format_chain;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

use super::bind;
use super::bindings::{Bind, binds};
use super::check::{check, check_command};
use super::files::{File, Old, beside};
use super::info::Info;
use super::outcome::{Applied, ApplyError, Cause, Clock, Outcome, Step};
use super::reload::{ReloadError, Way};
use super::verify::{self, VerifyError};
use super::{Socket, limits, processes, server_state};
use crate::settings;

/// What to make HAProxy run.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// The HAProxy that is driven; `config_file` must be set.
    pub haproxy: &'a settings::Haproxy,
    /// How it is reloaded.
    pub way: &'a Way,
    /// The whole file.
    pub text: &'a str,
    /// The hash that its [`super::STRUCTURE`] line sets; `None` when it has none.
    pub structure: Option<&'a str>,
    /// The backends whose servers are ours.
    pub ours: &'a BTreeSet<String>,
    /// How long its steps may take.
    pub deadlines: Deadlines,
}

/// How long steps may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// `haproxy -c`, and `check_command` (60 s each).
    pub check: Duration,
    /// The reload itself (60 s). One that cannot bind takes 2 s to say so.
    pub reload: Duration,
    /// Each of: the new process answers, its binds listen, `canary_url` is good (10 s).
    pub verify: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            check: super::check::DEADLINE,
            reload: Duration::from_secs(60),
            verify: Duration::from_secs(10),
        }
    }
}

/// Carries out a change. `on_step` is told of each step before it begins.
///
/// # Errors
/// [`ApplyError`]: nothing has changed then, unless its outcome is [`Outcome::Broken`].
pub async fn apply(
    change: Change<'_>,
    on_step: &mut (dyn FnMut(Step) + Send),
) -> Result<Applied, ApplyError> {
    let mut clock = Clock::new(on_step);
    let (config, stats) = (change.haproxy.config_file.clone(), stats(change.haproxy));
    let mut run = Run {
        change,
        config: config.unwrap_or_default(),
        stats,
        old: None,
        running: None,
        swapped: false,
        reloaded: false,
    };
    let result = run.forward(&mut clock).await;
    let failed = clock.step();
    match result {
        Ok(mut applied) => {
            applied.phases = clock.finish();
            Ok(applied)
        }
        Err(cause) => {
            let outcome = run.back(&mut clock).await;
            Err(ApplyError {
                config: run.config,
                step: failed,
                outcome,
                cause: Box::new(cause),
                phases: clock.finish(),
            })
        }
    }
}

/// Replaces the file without a reload, after a change that was made at run time: so that a crash, a reboot or somebody's
/// reload comes up with it. `servers` is the reply to `show servers state`, `ours` are the backends whose servers are
/// ours. The lines must be of kinds that a reload has accepted before: nothing is checked.
///
/// # Errors
/// A file cannot be read or written.
pub async fn keep_in_step(
    haproxy: &settings::Haproxy,
    text: &str,
    servers: &str,
    ours: &BTreeSet<String>,
) -> Result<(), Cause> {
    let config = haproxy.config_file.clone().ok_or(Cause::NoFile)?;
    let old = read(&config).await?;
    let before = old.as_ref().map_or(text, |old| &old.text);
    // Until the file is replaced either of them may be started with.
    let state = server_state::reconcile(servers, &[before, text], ours);
    write_state(haproxy, state).await?;
    write(&config, text, old).await?;
    let state = server_state::reconcile(servers, &[text], ours);
    write_state(haproxy, state).await
}

/// The stats socket that is asked.
fn stats(haproxy: &settings::Haproxy) -> Option<Socket> {
    haproxy.sockets.first().map(Socket::new)
}

/// One transaction under way.
struct Run<'a> {
    change: Change<'a>,
    config: PathBuf,
    stats: Option<Socket>,
    /// The file that was there.
    old: Option<Old>,
    /// What ran when it began.
    running: Option<Info>,
    /// Whether the new file is in place.
    swapped: bool,
    /// Whether HAProxy was reloaded with it.
    reloaded: bool,
}

impl Run<'_> {
    async fn forward(&mut self, clock: &mut Clock<'_>) -> Result<Applied, Cause> {
        let Change { haproxy, text, .. } = self.change;
        if haproxy.config_file.is_none() {
            return Err(Cause::NoFile);
        }
        clock.begin(Step::Candidate);
        self.old = read(&self.config).await?;
        self.running = self.info().await;
        let candidate = haproxy
            .candidate_file
            .clone()
            .unwrap_or_else(|| beside(&self.config, "tmp"));
        write(&candidate, text, self.old.clone()).await?;

        clock.begin(Step::Check);
        let warnings = check(&haproxy.binary, &candidate, self.change.deadlines.check).await?;
        let new = binds(text);
        self.limits(new.len())?;

        clock.begin(Step::Binds);
        let added = self.probe(new).await?;

        if let Some(command) = haproxy.check_command.as_ref().filter(|_| haproxy.do_checks) {
            clock.begin(Step::CheckCommand);
            check_command(command, self.change.deadlines.check).await?;
        }

        clock.begin(Step::Keep);
        if let Some(old) = self.old.clone() {
            let text = old.text.clone();
            write(&beside(&self.config, "old"), &text, Some(old)).await?;
        }
        self.keep_states(text).await?;

        clock.begin(Step::Swap);
        self.swapped = true;
        write(&self.config, text, self.old.clone()).await?;
        // What is not needed any more is not worth a failure.
        let _ = std::fs::remove_file(&candidate);

        clock.begin(Step::Reload);
        self.reload().await?;
        self.reloaded = true;

        clock.begin(Step::Verify);
        let info = self.verify(&added).await?;
        let pid = info.as_ref().map_or(0, |info| info.pid);
        let leftover = self.change.way.leftover(&self.config, pid).await.len();
        Ok(Applied {
            info,
            phases: Vec::new(),
            warnings,
            leftover,
        })
    }

    async fn back(&mut self, clock: &mut Clock<'_>) -> Outcome {
        if !self.swapped {
            return Outcome::Untouched;
        }
        let Some(old) = self.old.clone() else {
            return Outcome::NothingBefore;
        };
        clock.begin(Step::RollBack);
        let text = old.text.clone();
        if let Err(cause) = write(&self.config, &text, Some(old.clone())).await {
            return Outcome::Broken(format_chain(&cause));
        }
        let before = self.running.as_ref().map(|info| info.pid);
        let now = self.answering(before).await;
        let unseen = self.stats.is_none() && self.reloaded;
        if now == before && !unseen {
            return Outcome::PutBack;
        }
        if let Err(cause) = self.keep_states(&old.text).await {
            return Outcome::Broken(format_chain(&cause));
        }
        if let Err(error) = self.reload().await {
            return Outcome::Broken(format_chain(&error));
        }
        if let Some(stats) = &self.stats {
            let deadline = self.change.deadlines.verify;
            if let Err(error) = verify::worker(stats, now, None, deadline).await {
                return Outcome::Broken(format_chain(&error));
            }
        }
        Outcome::Reloaded
    }

    /// Who serves, given a moment to answer if somebody did `before`: a process that refused the new file made the old
    /// one let go of its sockets.
    async fn answering(&self, before: Option<i32>) -> Option<i32> {
        let until = Instant::now() + self.change.deadlines.verify;
        loop {
            let now = self.info().await.map(|info| info.pid);
            if now.is_some() || before.is_none() || Instant::now() >= until {
                return now;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn info(&self) -> Option<Info> {
        let reply = self.stats.as_ref()?.ask("show info").await.ok()?;
        Info::parse(&reply)
    }

    /// The limit of whoever will start the new process: ourselves, or what HAProxy was started by.
    fn limits(&self, listeners: usize) -> Result<(), Cause> {
        let worker = self.running.as_ref().map(|info| info.pid);
        let starter = match self.change.way {
            Way::Process { .. } => None,
            _ => worker.and_then(|pid| u32::try_from(pid).ok()),
        };
        let starter = starter.unwrap_or_else(std::process::id);
        match limits::of_process(starter) {
            Some(limit) => Ok(limits::check(
                self.change.text,
                listeners,
                self.running.as_ref(),
                limit,
            )?),
            None => Ok(()),
        }
    }

    /// Tries the new binds, and returns them.
    async fn probe(&self, new: Vec<Bind>) -> Result<Vec<Bind>, Cause> {
        // Without a running HAProxy nothing is held by it. One that does not answer may run all the same.
        let runs = self.running.is_some() || !processes::on_file(&self.config).is_empty();
        let old = match &self.old {
            Some(old) if runs => binds(&old.text),
            _ => Vec::new(),
        };
        let as_us = matches!(self.change.way, Way::Process { .. });
        let added = bind::added(&old, &new);
        let tried = spawn_blocking(move || bind::probe(&old, &new, as_us));
        match timeout(bind::DEADLINE, tried).await {
            Ok(Ok(conflicts)) if conflicts.is_empty() => Ok(added),
            Ok(Ok(conflicts)) => Err(Cause::Binds { conflicts }),
            Ok(Err(_)) | Err(_) => Err(Cause::Resolve(bind::DEADLINE)),
        }
    }

    /// Writes the state of servers for `text`, and for what is in place until it is.
    async fn keep_states(&self, text: &str) -> Result<(), Cause> {
        let Some(stats) = &self.stats else {
            return Ok(());
        };
        // Nobody to ask: then what was kept before is all there is, as far as it fits.
        let servers = match stats.ask("show servers state").await {
            Ok(reply) => reply,
            Err(_) => kept(&self.change.haproxy.server_state_file).await,
        };
        let before = self.old.as_ref().map_or(text, |old| old.text.as_str());
        let state = server_state::reconcile(&servers, &[before, text], self.change.ours);
        write_state(self.change.haproxy, state).await
    }

    async fn reload(&self) -> Result<(), ReloadError> {
        let deadline = self.change.deadlines.reload;
        let reloaded = self
            .change
            .way
            .reload(&self.config, self.stats.as_ref(), deadline);
        reloaded.await
    }

    async fn verify(&self, added: &[Bind]) -> Result<Option<Info>, VerifyError> {
        let deadline = self.change.deadlines.verify;
        let mut info = None;
        if let Some(stats) = &self.stats {
            let before = self.running.as_ref().map(|info| info.pid);
            let structure = self.change.structure;
            info = Some(verify::worker(stats, before, structure, deadline).await?);
        }
        verify::listening(added, deadline).await?;
        if let Some(url) = &self.change.haproxy.canary_url {
            verify::canary(url, deadline).await?;
        }
        Ok(info)
    }
}

async fn read(path: &Path) -> Result<Option<Old>, Cause> {
    on_file(path, "read", |file| file.read()).await
}

async fn write(path: &Path, text: &str, like: Option<Old>) -> Result<(), Cause> {
    let text = text.to_owned();
    on_file(path, "write", move |file| file.write(&text, like.as_ref())).await
}

async fn write_state(haproxy: &settings::Haproxy, state: String) -> Result<(), Cause> {
    if haproxy.server_state_file.as_os_str().is_empty() {
        return Ok(());
    }
    write(&haproxy.server_state_file, &state, None).await
}

async fn kept(path: &Path) -> String {
    match read(path).await {
        Ok(Some(old)) => old.text,
        _ => String::new(),
    }
}

/// Does something with a file where it may stall: an fsync waits for the disk.
async fn on_file<T: Send + 'static>(
    path: &Path,
    action: &'static str,
    work: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
) -> Result<T, Cause> {
    let opened = path.to_owned();
    let done = spawn_blocking(move || File::at(&opened).and_then(|file| work(&file)));
    let done = done
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)));
    done.map_err(|source| Cause::File {
        action,
        path: path.to_owned(),
        source,
    })
}
