//! The demo: a sample job from build to responses on this host, with only Rust and python3.
//!
//! Each step is a function; later tools add theirs. State shared by the steps is in [`DemoContext`].
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a demo shows what it does, and stops where it cannot go on"
)]

#[path = "demo/health.rs"]
mod health;
#[path = "demo/keys.rs"]
mod keys;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hostkit_tests::haproxy::{HaproxyInstance, HaproxyMode};
use hostkit_tests::s3::S3Server;
use hostkit_tests::thermos::{ProcessState, TaskRunner, ThermosProcess, ThermosTask};
use hostkit_tests::{ChildGuard, bin, eightball, free_port, replace_file, wait_until};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

struct DemoContext {
    scratch: TempDir,
    s3: S3Server,
    arch: String,
    hash: String,
}

fn main() {
    println!("hostkit demo: everything runs on loopback and below a temporary directory\n");
    let _ = bin("pexrun");
    let mut stage = prepare();
    publish(&mut stage);
    run_by_hand(&stage, "cold", "fetched from S3, verified, cached, run");
    run_by_hand(&stage, "warm", "run from the cache without a request to S3");
    run_as_job(&stage);
    health::check(&stage);
    keys::show_keys(&stage);
    let instances = follow_with_synapse(&stage);
    route_through_haproxy(&stage, instances);
    list_cache(&stage);
    println!("\nEverything worked.");
}

fn prepare() -> DemoContext {
    print_step("Start an S3 server, which checks signatures");
    let s3 = S3Server::start();
    s3.create_bucket("builds");
    print_line(&format!("listening on {}", s3.endpoint()));
    DemoContext {
        scratch: tempfile::tempdir().unwrap(),
        s3,
        arch: pexrun::testing::host_arch().unwrap_or_else(|_| "demo_x86_64".to_owned()),
        hash: String::new(),
    }
}

impl DemoContext {
    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn build_name(&self) -> String {
        format!("eightball-{}-{}.pex", self.hash, self.arch)
    }

    fn source(&self) -> String {
        format!("s3://builds/pex/{}", self.build_name())
    }

    /// A command for a tool, with the environment that a host's configuration would give.
    fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(bin(name));
        command.envs(self.settings());
        command
    }

    fn settings(&self) -> Vec<(String, String)> {
        let mut settings = self.s3.env();
        let cache = self.path("cache").display().to_string();
        for tool in ["S3CACHE", "PEXRUN"] {
            settings.push((format!("HOSTKIT_{tool}_CACHE_DIR"), cache.clone()));
            settings.push((format!("HOSTKIT_{tool}_KEEP_FREE"), "0".to_owned()));
        }
        settings.push((
            "HOSTKIT_PEXRUN_REPOSITORY".to_owned(),
            "s3://builds/pex".to_owned(),
        ));
        settings
    }
}

fn publish(stage: &mut DemoContext) {
    print_step("Build the sample job and publish it, as a build server does");
    let build = stage.path("eightball.pex");
    eightball::build_zipapp(&build)
        .unwrap_or_else(|why| panic!("cannot build the sample job: {why}"));
    let digest = Sha256::digest(std::fs::read(&build).unwrap());
    stage.hash = hostkit::hex::encode(&digest[..20]);
    let source = stage.source();
    let before = Instant::now();
    succeed(
        stage
            .tool("s3cache")
            .arg("--loglevel=warning")
            .arg("put")
            .arg(&build)
            .arg(&source),
    );
    print_line(&format!("s3cache put eightball.pex {source}"));
    print_line(&format!(
        "published with its .sha256 in {}",
        elapsed_since(before)
    ));
}

fn run_by_hand(stage: &DemoContext, temper: &str, what: &str) {
    print_step(&format!("pexrun, {temper}: {what}"));
    let asked = stage.s3.requests().len();
    let port = free_port();
    let before = Instant::now();
    let log = stage.path("pexrun.log");
    let mut command = stage.tool("pexrun");
    command
        .args(["eightball", &stage.hash])
        .arg(format!("--port={port}"))
        .stderr(File::create(&log).unwrap());
    print_line(&format!("pexrun eightball {} --port={port}", stage.hash));
    let mut program = ChildGuard(command.spawn().unwrap());
    wait_until("the program answers", || {
        if let Some(status) = program.0.try_wait().unwrap() {
            let log = std::fs::read_to_string(&log).unwrap();
            panic!("pexrun ended with {status}\n{log}");
        }
        get(port, "/private/stats/").is_some()
    });
    let size = stage.path("eightball.pex").metadata().unwrap().len();
    match stage.s3.requests().len() - asked {
        0 => print_line(&format!(
            "cached: {size} bytes, no request to S3; answering after {}",
            elapsed_since(before)
        )),
        requests => print_line(&format!(
            "fetched: {size} bytes, {requests} requests to S3; answering after {}",
            elapsed_since(before)
        )),
    }
    print_line(&format!(
        "GET /shake/?question=ready -> {}",
        get(port, "/shake/?question=ready").unwrap_or_default()
    ));
    drop(program);
}

fn run_as_job(stage: &DemoContext) {
    print_step("The same build as a job, the way thermos runs it");
    let name = stage.build_name();
    let asked = stage.s3.requests().len();
    let before = Instant::now();
    let install = format!(
        "s3cache {} --copy-to={name} --console --loglevel=debug --logstash_format && chmod 700 {name}",
        stage.source()
    );
    let setup = "mkdir ./tmp && echo 'export TMPDIR=./tmp
export CB_AURORA_INSTANCE={{mesos.instance}}
export CB_AURORA_HOSTNAME={{mesos.hostname}}
export CB_AURORA_TASK_ID={{thermos.task_id}}
export CB_AURORA_STAGE=prod' > .thermos_profile; echo '{}' > service_overrides.yaml";
    let serve = format!(
        "./{name} --port={{{{thermos.ports[private]}}}} --workers=34 --console --logstash_format=True --logstash_tags=eight_ball"
    );
    let tools = bin("s3cache");
    let path = format!(
        "{}:{}",
        tools.parent().unwrap().display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let mut task = ThermosTask::new("eightball")
        .process(ThermosProcess::new("envvar_setup", setup))
        .process(ThermosProcess::new("pexinstall", &install))
        .process(ThermosProcess::new("eightball", &serve))
        .constraint("envvar_setup")
        .constraint("pexinstall < eightball")
        .env("PATH", &path);
    for (name, value) in stage.settings() {
        task = task.env(&name, &value);
    }
    let sandboxes = stage.path("sandboxes");
    std::fs::create_dir(&sandboxes).unwrap();
    let mut job = TaskRunner::start(task, &sandboxes);
    job.wait_for("pexinstall", ProcessState::Done);
    print_line(&format!(
        "pexinstall: s3cache .. --copy-to={name} && chmod 700 {name}"
    ));
    let requests = stage.s3.requests().len() - asked;
    print_line(&format!(
        "installed from the cache after {} ({requests} requests to S3)",
        elapsed_since(before)
    ));
    let port = job.port("private");
    wait_until("the job answers", || get(port, "/private/stats/").is_some());
    print_line(&format!(
        "eightball answers on its private port, {port}, after {}",
        elapsed_since(before)
    ));
    for path in [
        "/shake/?question=again",
        "/answers/",
        "/history/",
        "/private/stats/",
    ] {
        let answer = get(port, path).unwrap_or_default();
        let answer = answer
            .char_indices()
            .nth(60)
            .map_or(answer.clone(), |(end, _)| format!("{}..", &answer[..end]));
        print_line(&format!("GET {path} -> {answer}"));
    }
    job.stop();
    print_line("stopped with SIGTERM");
}

/// A running eightball and its port.
type EightballInstance = (ChildGuard, u16);

fn start_instance(stage: &DemoContext) -> EightballInstance {
    let port = free_port();
    let mut command = stage.tool("pexrun");
    command
        .args(["eightball", &stage.hash])
        .arg(format!("--port={port}"))
        .stderr(Stdio::null());
    let program = ChildGuard(command.spawn().unwrap());
    wait_until("the instance answers", || {
        get(port, "/private/stats/").is_some()
    });
    (program, port)
}

/// Atomically writes the file that synapse follows.
fn announce(stage: &DemoContext, ports: &[u16]) {
    let list: Vec<_> = ports
        .iter()
        .map(|port| json!({"host": "127.0.0.1", "port": port}))
        .collect();
    let text = json!(list).to_string();
    replace_file(&stage.path("instances.json"), text.as_bytes());
}

fn synapse(stage: &DemoContext, arguments: &[&str]) -> String {
    let mut command = stage.tool("synapse");
    command.arg("-c").arg(stage.path("synapse.yaml"));
    let output = command.args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn follow_with_synapse(stage: &DemoContext) -> [EightballInstance; 2] {
    print_step("synapse follows a file with two instances");
    let instances = [start_instance(stage), start_instance(stage)];
    let ports = [instances[0].1, instances[1].1];
    announce(stage, &ports);
    print_line(&format!("two instances answer, on ports {ports:?}"));
    write_synapse_config(stage, &stage.scratch.path().join("haproxy"), free_port());
    print_line("synapse plan");
    for line in synapse(stage, &["plan"])
        .lines()
        .take_while(|line| !line.starts_with("added"))
    {
        print_line(&format!("  {line}"));
    }
    instances
}

fn write_synapse_config(stage: &DemoContext, directory: &std::path::Path, port: u16) {
    let config = json!({
        "services": {"eightball": {
            "discovery": {"method": "file", "path": stage.path("instances.json")},
            "probe": "http /private/stats/",
            "haproxy": {"port": port, "server_options": "check inter 500ms"},
        }},
        "haproxy": {
            "global": ["maxconn 1000"],
            "defaults": ["mode http", "timeout connect 2s", "timeout client 10s", "timeout server 10s"],
            "bind_address": "127.0.0.1",
            "config_file_path": directory.join("haproxy.cfg"),
            "socket_file_path": directory.join("stats.sock"),
            "master_socket": directory.join("master.sock"),
            "state_file_path": stage.path("synapse-state/state.json"),
        },
    });
    std::fs::create_dir_all(stage.path("synapse-state")).unwrap();
    std::fs::write(stage.path("synapse.yaml"), config.to_string()).unwrap();
}

fn route_through_haproxy(stage: &DemoContext, instances: [EightballInstance; 2]) {
    print_step("Requests go through HAProxy while one instance leaves and another joins");
    let haproxy = match HaproxyInstance::prepare(HaproxyMode::Master) {
        Ok(haproxy) => haproxy,
        Err(why) => return print_line(&format!("skipped: {why}")),
    };
    let port = free_port();
    haproxy.write(&format!(
        "{}frontend empty\n    bind 127.0.0.1:{}\n",
        haproxy.head(),
        free_port()
    ));
    haproxy.run();
    write_synapse_config(stage, haproxy.directory(), port);
    let before = Instant::now();
    let log = File::create(stage.path("synapse.log")).unwrap();
    let mut command = stage.tool("synapse");
    command
        .arg("-c")
        .arg(stage.path("synapse.yaml"))
        .stderr(log);
    let _synapse = ChildGuard(command.spawn().unwrap());
    wait_until("HAProxy serves the instances", || {
        get(port, "/private/stats/").is_some()
    });
    print_line(&format!(
        "synapse has reloaded HAProxy: port {port} answers after {}",
        elapsed_since(before)
    ));

    let [(leaving, first), (_staying, second)] = instances;
    let (stop, failed, served) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let _coming = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let counter = match get(port, "/shake/?question=lost") {
                    Some(_) => &served,
                    None => &failed,
                };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        let (coming, third) = start_instance(stage);
        announce(stage, &[second, third]);
        drop(leaving);
        print_line(&format!(
            "port {first} left and was killed, port {third} joined"
        ));
        wait_until(
            "the new instance has a slot and the old one is gone",
            || {
                let servers = haproxy.ask("show servers state").unwrap_or_default();
                servers.contains(&format!(" {third} ")) && !served_by(&haproxy, first)
            },
        );
        let seen = served.load(Ordering::Relaxed);
        wait_until("more requests", || {
            served.load(Ordering::Relaxed) > seen + 50
        });
        stop.store(true, Ordering::Relaxed);
        coming
    });
    let (served, failed) = (served.into_inner(), failed.into_inner());
    print_line(&format!(
        "{served} requests answered, {failed} lost, reloads: {}",
        haproxy.reloads()
    ));
    assert_eq!(failed, 0, "every request was answered");
    print_line("synapse explain eightball");
    // `explain` reads the state file, which synapse saves within a second.
    let mut explained = String::new();
    wait_until("the state is saved", || {
        explained = synapse(stage, &["explain", "eightball"]);
        explained.matches(" ready ").count() == 2 && explained.lines().count() == 3
    });
    for line in explained.lines() {
        print_line(&format!("  {}", line.trim_end()));
    }
}

/// Whether HAProxy sends new requests to this port.
fn served_by(haproxy: &HaproxyInstance, port: u16) -> bool {
    let servers = haproxy.ask("show servers state").unwrap_or_default();
    // The seventh field is the administrative state: 1 and 8 are maintenance and drain.
    let serving = |line: &str| {
        let admin = line
            .split(' ')
            .nth(6)
            .and_then(|word| word.parse::<u32>().ok());
        line.contains(&format!(" {port} ")) && admin.is_some_and(|bits| bits & 9 == 0)
    };
    servers.lines().any(serving)
}

fn list_cache(stage: &DemoContext) {
    print_step("Contents of the cache");
    let output = stage.tool("s3cache").arg("ls").output().unwrap();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        print_line(line);
    }
}

/// The body of a response with status 200, trimmed.
fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .ok()?;
    // One write: two would wait for a delayed acknowledgement.
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.contains(" 200 ").then(|| body.trim().to_owned())
}

fn succeed(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?} ended with {status}");
}

fn print_step(title: &str) {
    println!("\n* {title}");
}

fn print_line(line: &str) {
    println!("    {line}");
}

fn elapsed_since(since: Instant) -> String {
    format!("{} ms", since.elapsed().as_millis())
}
