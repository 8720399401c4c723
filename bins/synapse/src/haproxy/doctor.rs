//! What can be wrong around HAProxy, looked at one by one. Data only: a verb prints it.

use std::path::Path;
use std::time::Duration;

use nix::unistd::{AccessFlags, access};
use serde::Serialize;
use tokio::process::Command;

use super::bindings::{binds, is_section};
use super::files::File;
use super::info::{Info, Processes};
use super::reload::Way;
use super::version::{Features, Version};
use super::{Socket, limits, processes, spawn};
use crate::settings;

/// How long HAProxy's program may take to say its version.
const DEADLINE: Duration = Duration::from_secs(10);

/// From how many leftover workers on something keeps them.
const LEFTOVER: usize = 3;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What, in a word or two.
    pub name: &'static str,
    /// How it is.
    pub health: Health,
    /// What was found.
    pub detail: String,
    /// What to do; empty when nothing is, or `detail` says it.
    pub remedy: String,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// As it should be.
    Ok,
    /// It works, and will hurt some day.
    Warning,
    /// It does not work.
    Failed,
}

impl Health {
    /// The word, as JSON has it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(name, Health::Ok, detail, "")
    }

    fn new(
        name: &'static str,
        health: Health,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            name,
            health,
            detail: detail.into(),
            remedy: remedy.into(),
        }
    }
}

/// Looks at everything. It changes nothing.
pub async fn doctor(haproxy: &settings::Haproxy) -> Vec<Check> {
    let mut found = Vec::new();
    let mut running = None;
    for path in &haproxy.sockets {
        let (check, info) = socket(path).await;
        found.push(check);
        running = running.or(info);
    }
    let config = haproxy.config_file.as_deref();
    let text = config.and_then(|path| File::at(path).ok()?.read().ok()?);
    let text = text.map(|old| old.text);
    let way = Way::of(haproxy);

    found.extend(program(&haproxy.binary, running.as_ref(), text.as_deref()).await);
    if let (Some(text), Some(Way::Process { .. })) = (&text, &way) {
        found.push(listeners(text));
    }
    if let Some(text) = &text {
        found.push(open_files(text, running.as_ref(), way.as_ref()));
    }
    found.extend(config.map(|path| writable("config file", path)));
    if !haproxy.server_state_file.as_os_str().is_empty() {
        found.push(writable("server-state file", &haproxy.server_state_file));
    }
    found.push(match &way {
        Some(way) => reload_way(way).await,
        None if haproxy.do_reloads => Check::new(
            "reload",
            Health::Failed,
            "no way to reload HAProxy is configured",
            "set `master_socket`, `pid_file` or `reload_command`",
        ),
        None => Check::ok("reload", "reloads are switched off"),
    });
    if let (Some(way), Some(config), Some(info)) = (&way, config, &running) {
        found.push(leftover(way.leftover(config, info.pid).await.len()));
    }
    found
}

async fn socket(path: &Path) -> (Check, Option<Info>) {
    const NAME: &str = "stats socket";
    let socket = Socket::new(path);
    let info = match socket.ask("show info").await {
        Ok(text) => Info::parse(&text),
        Err(error) => {
            return (
                Check::new(NAME, Health::Failed, error.to_string(), ""),
                None,
            );
        }
    };
    let level = socket.ask("show cli level").await.unwrap_or_default();
    let level = crate::model::shown(level.trim());
    let check = if level == "admin" {
        Check::ok(NAME, format!("{}: level admin", path.display()))
    } else {
        Check::new(
            NAME,
            Health::Failed,
            format!("{}: level {level}", path.display()),
            "add `level admin` to the `stats socket` line",
        )
    };
    (check, info)
}

async fn program(binary: &Path, running: Option<&Info>, text: Option<&str>) -> Vec<Check> {
    let mut command = Command::new(binary);
    command.arg("-vv");
    let output = match spawn::run(command, DEADLINE).await {
        Ok(ended) if ended.success() => ended.output,
        Ok(ended) => {
            let detail = format!("{} -vv: {}", binary.display(), ended.shown());
            return vec![Check::new("program", Health::Failed, detail, "")];
        }
        Err(error) => {
            return vec![Check::new(
                "program",
                Health::Failed,
                format!("cannot run {}: {error}", binary.display()),
                "install haproxy, or correct `binary`",
            )];
        }
    };
    vec![
        version(&output, running),
        build(&output, text.unwrap_or_default()),
    ]
}

/// The first line of `haproxy -vv` is `HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/`.
fn version(output: &str, running: Option<&Info>) -> Check {
    const NAME: &str = "version";
    let installed = output.lines().next().and_then(|line| {
        let mut words = line.split_ascii_whitespace();
        words.find_map(Version::parse)
    });
    let Some(installed) = installed else {
        return Check::new(
            NAME,
            Health::Failed,
            "`-vv` names no version",
            "correct `binary`",
        );
    };
    let runs = running.map_or(installed, |info| info.version);
    if !Features::of(runs).supported || !Features::of(installed).supported {
        let detail = format!("{runs} runs, {installed} is installed");
        return Check::new(
            NAME,
            Health::Failed,
            detail,
            "install a version from 2.4 to 3.x",
        );
    }
    if runs != installed {
        let detail = format!("{runs} runs and {installed} is installed");
        let remedy = "restart HAProxy at a quiet time: the next reload would change its version";
        return Check::new(NAME, Health::Warning, detail, remedy);
    }
    Check::ok(NAME, runs.to_string())
}

fn build(output: &str, text: &str) -> Check {
    const NAME: &str = "build options";
    let line = output
        .lines()
        .find_map(|line| line.strip_prefix("Feature list :"))
        .unwrap_or_default();
    let has = |feature: &str| line.split_ascii_whitespace().any(|word| word == feature);
    let wants_tls = text.lines().any(|line| {
        let mut words = line.split_ascii_whitespace();
        matches!(words.next(), Some("bind" | "server" | "default-server"))
            && words.any(|word| word == "ssl")
    });
    if wants_tls && has("-OPENSSL") {
        let remedy = "install a build with OpenSSL";
        return Check::new(
            NAME,
            Health::Failed,
            "the file uses `ssl`, and HAProxy has none",
            remedy,
        );
    }
    if has("-THREAD") {
        return Check::new(
            NAME,
            Health::Warning,
            "built without threads: it uses one core",
            "",
        );
    }
    Check::ok(NAME, "what the file needs is there")
}

fn listeners(text: &str) -> Check {
    const NAME: &str = "listeners";
    let mut global = false;
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if words.first().is_some_and(|word| is_section(word)) {
            global = words[0] == "global";
        }
        if global
            && words.starts_with(&["stats", "socket"])
            && words
                .windows(2)
                .any(|pair| pair == ["expose-fd", "listeners"])
        {
            return Check::ok(NAME, "a new process is handed the listeners of the old one");
        }
    }
    Check::new(
        NAME,
        Health::Failed,
        "no `stats socket` line has `expose-fd listeners`: a reload loses connections",
        "add it, or leave `inject` on",
    )
}

fn open_files(text: &str, running: Option<&Info>, way: Option<&Way>) -> Check {
    const NAME: &str = "open files";
    let ours = matches!(way, Some(Way::Process { .. }));
    let worker = running
        .filter(|_| !ours)
        .and_then(|info| u32::try_from(info.pid).ok());
    let Some(limit) = limits::of_process(worker.unwrap_or_else(std::process::id)) else {
        return Check::new(NAME, Health::Warning, "/proc does not say the limit", "");
    };
    match limits::check(text, binds(text).len(), running, limit) {
        Ok(()) => Check::ok(NAME, format!("the limit is {}", limit.reach)),
        Err(error) => Check::new(NAME, Health::Failed, error.to_string(), ""),
    }
}

fn writable(name: &'static str, path: &Path) -> Check {
    let directory = path.parent().filter(|parent| *parent != Path::new(""));
    let directory = directory.unwrap_or(Path::new("."));
    // Files are replaced, not written to: the directory is what must be writable.
    match access(directory, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) => Check::ok(name, format!("{} can be replaced", path.display())),
        Err(error) => Check::new(
            name,
            Health::Failed,
            format!("cannot write in {}: {error}", directory.display()),
            "make the directory, and give it to synapse's user",
        ),
    }
}

async fn reload_way(way: &Way) -> Check {
    const NAME: &str = "reload";
    match way {
        Way::Master(socket) => match socket.ask("show proc").await {
            Ok(text) => match Processes::parse(&text) {
                Some(found) => Check::ok(NAME, format!("master {} answers", found.master)),
                None => Check::new(
                    NAME,
                    Health::Failed,
                    format!("{} is no master's socket", socket.path().display()),
                    "name the one of `haproxy -W -S PATH`",
                ),
            },
            Err(error) => Check::new(NAME, Health::Failed, error.to_string(), ""),
        },
        Way::Process { pid_file, .. } => match processes::pids(pid_file) {
            Ok(pids) if pids.iter().any(|pid| processes::is_haproxy(*pid)) => Check::ok(
                NAME,
                format!("{} names a running HAProxy", pid_file.display()),
            ),
            Ok(_) => Check::new(
                NAME,
                Health::Warning,
                format!("{} names no running HAProxy", pid_file.display()),
                "the first reload starts one; if one runs, start it with `-p` and this file",
            ),
            Err(error) => Check::new(
                NAME,
                Health::Failed,
                format!("cannot read {}: {error}", pid_file.display()),
                "correct `pid_file`",
            ),
        },
        Way::Command(line) => {
            let program = line.split_ascii_whitespace().next().unwrap_or_default();
            let known = spawn::shell_knows(program).await;
            if known {
                Check::ok(NAME, format!("reload_command runs {program}"))
            } else {
                let detail = format!("reload_command: there is no program `{program}`");
                Check::new(NAME, Health::Failed, detail, "correct `reload_command`")
            }
        }
    }
}

fn leftover(count: usize) -> Check {
    const NAME: &str = "leftover workers";
    if count < LEFTOVER {
        return Check::ok(NAME, count.to_string());
    }
    Check::new(
        NAME,
        Health::Warning,
        format!("{count} workers of before still run: connections keep them"),
        "set `hard-stop-after` in global, or leave `inject` on",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared() {
        let first = "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/\n";
        assert_eq!(version(first, None), Check::ok("version", "2.6.12"));
        let running = Info {
            version: Version(2, 6, 11),
            ..Info::default()
        };
        assert_eq!(version(first, Some(&running)).health, Health::Warning);
        assert_eq!(
            version("HA-Proxy version 1.8.0 2017\n", None).health,
            Health::Failed
        );
        assert_eq!(version("what\n", None).health, Health::Failed);
    }

    #[test]
    fn tls_needs_openssl() {
        let without = "Feature list : +EPOLL -OPENSSL +THREAD\n";
        let with = "Feature list : +EPOLL +OPENSSL +THREAD\n";
        let text = "frontend f\n bind :443 ssl crt /x\n";
        assert_eq!(build(without, text).health, Health::Failed);
        assert_eq!(build(without, "frontend f\n bind :80\n").health, Health::Ok);
        assert_eq!(build(with, text).health, Health::Ok);
    }

    #[test]
    fn listeners_must_be_handed_over() {
        let line = "global\n stats socket /x level admin expose-fd listeners\n";
        assert_eq!(listeners(line).health, Health::Ok);
        assert_eq!(
            listeners("global\n stats socket /x level admin\n").health,
            Health::Failed
        );
        assert_eq!(leftover(2).health, Health::Ok);
        assert_eq!(leftover(3).health, Health::Warning);
    }
}
