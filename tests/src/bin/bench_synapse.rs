//! The part of `tests/bench/synapse` that runs in process: parse and render a configuration.
//!
//! `bench_synapse CONFIG ROUNDS` prints the seconds of each round as JSON: `parse` reads the configuration, `full`
//! renders all of it, `single` renders it after a change of one member. No file is written.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "figures for a person, or for a script"
)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostkit::Failure;
use serde_json::json;
use synapse::config::{self, Sources};
use synapse::membership::Roster;
use synapse::membership::table::{Policy, Table};
use synapse::model::{Backend, Discovered};
use synapse::render::{Input, Renderer, slots_for};
use synapse::settings::{Servers, Service, Settings};
use synapse::watcher::select::select;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(rounds)) = (arguments.next(), arguments.next()) else {
        return usage();
    };
    let Ok(rounds) = rounds.parse() else {
        return usage();
    };
    match measure(&path, rounds) {
        Ok(output) => {
            println!("{output}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("bench_synapse: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: bench_synapse CONFIG ROUNDS");
    ExitCode::from(2)
}

fn measure(path: &str, rounds: usize) -> Result<serde_json::Value, Failure> {
    let sources = Sources {
        file: Some(path.into()),
        ..Sources::default()
    };
    let (mut parse, mut full, mut single) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (took, loaded) = timed(|| config::load(&sources, false));
        parse.push(took);
        let (settings, _) = loaded?;
        let rosters: Vec<Roster> = settings.services.iter().map(|one| members(one)).collect();
        let mut renderer = Renderer::new(&settings.haproxy);
        let (took, before) = timed(|| renderer.render(&inputs(&settings, &rosters, 0)));
        full.push(took);
        let mut changed = rosters;
        if let Some(server) = changed.iter_mut().flat_map(|one| &mut one.servers).next() {
            *server = None;
        }
        let (took, after) = timed(|| renderer.render(&inputs(&settings, &changed, 1)));
        single.push(took);
        assert_ne!(before.text(), after.text(), "nothing was rendered");
    }
    Ok(json!({"parse": parse, "full": full, "single": single}))
}

fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let made = work();
    (start.elapsed().as_secs_f64(), made)
}

/// The first service is at `revision`, all others are unchanged.
fn inputs<'a>(settings: &'a Settings, rosters: &'a [Roster], revision: u64) -> Vec<Input<'a>> {
    let revisions = std::iter::once(revision).chain(std::iter::repeat(0));
    let services = settings.services.iter().zip(rosters).zip(revisions);
    services
        .map(|((service, roster), revision)| Input {
            service,
            roster,
            revision,
        })
        .collect()
}

/// A roster with all members of the service, ready.
fn members(service: &Service) -> Roster {
    let found = Discovered {
        synced: Some(Duration::ZERO),
        ..Discovered::default()
    };
    let selected = select(service, false, &found, None, &[]).members;
    let resolved: Vec<_> = selected
        .into_iter()
        .filter_map(|backend: Arc<Backend>| {
            Some((Arc::clone(&backend), backend.host.parse().ok()?))
        })
        .collect();
    let slots = match service.servers {
        Servers::Slots => slots_for(resolved.len(), service.slots, 0),
        Servers::Named(_) => resolved.len(),
    };
    let policy = Policy {
        probe: false,
        panic_threshold: service.panic_threshold,
    };
    let mut table = Table::new(slots);
    table.follow(&resolved, policy, Duration::ZERO);
    table.settle(policy, Duration::ZERO);
    table.roster()
}
