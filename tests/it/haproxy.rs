//! What synapse does with a real HAProxy: its sockets, its commands, its reloads.

mod command;
mod doctor;
mod harness;
mod kills;
mod preflight;
mod quarantine;
pub(crate) mod server;
mod socket;
mod states;
mod transaction;

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use hostkit_tests::free_port;
use hostkit_tests::haproxy::{HaproxyInstance, HaproxyMode};
use synapse::haproxy::{
    Applied, ApplyError, Change, Deadlines, Info, Live, Socket, Step, Way, apply, live,
};
use synapse::settings;

/// Runs a future as synapse does: on one thread.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn socket(haproxy: &HaproxyInstance) -> Socket {
    Socket::new(haproxy.socket())
}

fn info(haproxy: &HaproxyInstance) -> Info {
    Info::parse(&block_on(socket(haproxy).ask("show info")).unwrap()).unwrap()
}

/// The server `name` of backend `b`.
fn state(haproxy: &HaproxyInstance, name: &str) -> Live {
    let text = block_on(socket(haproxy).ask("show servers state")).unwrap();
    let servers = live::servers(&text).unwrap();
    let mut found = servers
        .into_iter()
        .filter(|server| server.backend == "b" && server.server == name);
    found.next().unwrap_or_else(|| panic!("no {name}: {text}"))
}

/// The settings that drive this HAProxy.
fn settings(haproxy: &HaproxyInstance, mode: HaproxyMode) -> settings::Haproxy {
    settings::Haproxy {
        config_file: Some(haproxy.config()),
        sockets: vec![haproxy.socket()],
        master_socket: (mode == HaproxyMode::Master).then(|| haproxy.master_socket()),
        pid_file: (mode == HaproxyMode::Daemon).then(|| haproxy.pid_file()),
        binary: haproxy.binary(),
        server_state_file: haproxy.directory().join("servers.state"),
        ..settings::Haproxy::default()
    }
}

/// The head of a file that sets its structure and keeps the states of servers.
fn head(haproxy: &HaproxyInstance, structure: &str) -> String {
    let state = haproxy.directory().join("servers.state");
    haproxy
        .head()
        .replace(
            "global\n",
            &format!(
                "global\n    setenv HOSTKIT_STRUCTURE {structure}\n    server-state-file {}\n",
                state.display()
            ),
        )
        .replace(
            "defaults\n",
            "defaults\n    load-server-state-from-file global\n",
        )
}

/// A frontend on `port` before backend `b` with these lines.
fn proxies(port: u16, backend: &str) -> String {
    format!(
        "frontend f{port}\n    bind 127.0.0.1:{port}\n    default_backend b\nbackend b\n{backend}"
    )
}

/// A change of what `settings` drive, with backend `b` ours.
fn change(
    settings: &settings::Haproxy,
    text: &str,
    structure: &str,
    on_step: &mut (dyn FnMut(Step) + Send),
) -> Result<Applied, ApplyError> {
    let (way, ours) = (Way::of(settings).unwrap(), BTreeSet::from(["b".to_owned()]));
    let change = Change {
        haproxy: settings,
        way: &way,
        text,
        structure: Some(structure),
        ours: &ours,
        deadlines: Deadlines {
            verify: Duration::from_secs(3),
            ..Deadlines::default()
        },
    };
    block_on(apply(change, on_step))
}

/// The same, with nobody told of steps.
fn changed(
    settings: &settings::Haproxy,
    text: &str,
    structure: &str,
) -> Result<Applied, ApplyError> {
    change(settings, text, structure, &mut |_| {})
}

/// An HAProxy on a file with structure `one`, its frontend's port, and the settings that drive it.
fn started(mode: HaproxyMode, backend: &str) -> Option<(HaproxyInstance, u16, settings::Haproxy)> {
    let haproxy = hostkit_tests::or_skip("haproxy", HaproxyInstance::prepare(mode))?;
    let port = free_port();
    haproxy.write(&format!(
        "{}{}",
        head(&haproxy, "one"),
        proxies(port, backend)
    ));
    std::fs::write(haproxy.directory().join("servers.state"), "1\n").unwrap();
    haproxy.run();
    let settings = settings(&haproxy, mode);
    Some((haproxy, port, settings))
}
