//! The stage: a ZooKeeper, an HAProxy that is run in either way, and a synapse between the two, each of which a test can
//! stop, kill, start again and ask. What is right is asserted by the tests.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hostkit::admin::{self, AdminAddress};
use hostkit_tests::haproxy::{HaproxyInstance, HaproxyMode, send_signal};
use hostkit_tests::tasks::{TaskAnnouncement, TaskRegistry, TaskSerial};
use hostkit_tests::zookeeper::{AnnouncerSession, ServerSetMember, ZookeeperServer};
use hostkit_tests::{ChildGuard, bin, free_port, or_skip, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Where the jobs of all services are.
const ROOT: &str = "/aurora/www/prod";

/// The three of them, with a directory. Dropping it stops them all.
pub(super) struct Rig {
    // First: it is stopped first.
    synapse: Option<ChildGuard>,
    pub(super) haproxy: HaproxyInstance,
    pub(super) zookeeper: ZookeeperServer,
    /// The configuration, as JSON: YAML that everybody can change.
    pub(super) config: Value,
    mode: HaproxyMode,
    admin: u16,
}

impl Rig {
    /// ZooKeeper runs and HAProxy does not; no service yet, no synapse. `None` when one of them is not installed.
    pub(super) fn new(mode: HaproxyMode) -> Option<Self> {
        let haproxy = or_skip("haproxy", HaproxyInstance::prepare(mode))?;
        let zookeeper = or_skip("zookeeper", ZookeeperServer::start())?;
        let mut rig = Self {
            synapse: None,
            haproxy,
            zookeeper,
            config: Value::Null,
            mode,
            admin: free_port(),
        };
        rig.config = json!({
            "services": {},
            "haproxy": {
                "global": ["maxconn 1000"],
                "defaults": [
                    "mode http", "timeout connect 2s", "timeout client 10s", "timeout server 10s",
                ],
                "bind_address": "127.0.0.1",
                "config_file_path": rig.haproxy.config(),
                "socket_file_path": rig.haproxy.socket(),
                "state_file_path": rig.path("state.json"),
                "binary": rig.haproxy.binary(),
                "do_reloads": true,
                "restart_interval": "100ms",
            },
        });
        match mode {
            HaproxyMode::Master => {
                rig.config["haproxy"]["master_socket"] = json!(rig.haproxy.master_socket())
            }
            HaproxyMode::Daemon => {
                rig.config["haproxy"]["pid_file"] = json!(rig.haproxy.pid_file())
            }
        }
        Some(rig)
    }

    /// A file in the directory of all of them.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.haproxy.directory().join(name)
    }

    /// Configures a service that follows a job's ServerSet, checked by HAProxy too. Returns where its frontend will be.
    pub(super) fn service(&mut self, name: &str) -> SocketAddr {
        let port = free_port();
        self.config["services"][name] = json!({
            "discovery": {
                "method": "zookeeper",
                "hosts": [self.zookeeper.host()],
                "path": job(name),
                "decode": {"method": "serverset", "endpoint_name": "http"},
            },
            "haproxy": {"port": port, "server_options": "check inter 500ms fastinter 100ms"},
        });
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// Removes a service from the configuration.
    pub(super) fn without(&mut self, name: &str) {
        self.config["services"]
            .as_object_mut()
            .unwrap()
            .remove(name);
    }

    /// Writes the configuration and starts synapse; returns when it has told HAProxy all it found. HAProxy is started
    /// as an operator does it where it has a master, and by synapse otherwise.
    pub(super) fn start(&mut self) {
        self.launch();
        self.in_force();
        // HAProxy had it before synapse knows that it does.
        wait_until("synapse has verified it", || {
            self.status()["structure"]["loaded"].is_string()
        });
    }

    /// The same, and returns when synapse answers.
    pub(super) fn launch(&mut self) {
        if self.mode == HaproxyMode::Master && self.haproxy.processes().is_empty() {
            let first = format!(
                "{}frontend first\n    bind 127.0.0.1:{}\n",
                self.haproxy.head(),
                free_port()
            );
            self.haproxy.write(&first);
            self.haproxy.run();
        }
        self.run();
    }

    /// Starts synapse on the configuration as it is, and returns when it answers.
    pub(super) fn run(&mut self) {
        self.run_with(&[]);
    }

    /// The same with more arguments.
    pub(super) fn run_with(&mut self, arguments: &[&str]) {
        assert!(self.synapse.is_none(), "it runs already");
        self.write_config();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("synapse.log"))
            .unwrap();
        let child = Command::new(bin("synapse"))
            .arg("-c")
            .arg(self.config_file())
            .arg(format!("--admin=127.0.0.1:{}", self.admin))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.synapse = Some(ChildGuard(child));
        let mut ended = None;
        wait_until("synapse answers", || {
            ended = self
                .synapse
                .as_mut()
                .and_then(|synapse| synapse.0.try_wait().unwrap());
            ended.is_some() || self.get("/status").is_some()
        });
        assert!(ended.is_none(), "synapse ended, {ended:?}:\n{}", self.log());
    }

    /// Where its configuration is.
    pub(super) fn config_file(&self) -> PathBuf {
        self.path("synapse.yaml")
    }

    fn write_config(&self) {
        fs::write(self.config_file(), self.config.to_string()).unwrap();
    }

    /// Its pid.
    pub(super) fn pid(&self) -> i32 {
        let synapse = self.synapse.as_ref().expect("synapse runs");
        synapse.0.id().try_into().unwrap()
    }

    /// Ends it as systemd does, and returns when it has ended.
    pub(super) fn stop(&mut self) {
        self.end(&[Signal::SIGTERM]);
    }

    /// Sends it these signals, one right after the other, and returns how it ended.
    pub(super) fn end(&mut self, signals: &[Signal]) -> ExitStatus {
        for signal in signals {
            send_signal(self.pid(), *signal);
        }
        let mut synapse = self.synapse.take().expect("synapse runs");
        let mut status = None;
        wait_until("synapse ends", || {
            status = synapse.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Runs it on the configuration as it is until it ends by itself.
    pub(super) fn once(&self, arguments: &[&str]) -> Output {
        self.write_config();
        let mut command = Command::new(bin("synapse"));
        command.arg("-c").arg(self.config_file()).args(arguments);
        command.output().unwrap()
    }

    /// Kills it (SIGKILL).
    pub(super) fn kill(&mut self) {
        self.synapse = None;
    }

    /// Writes the configuration and sends SIGHUP; returns when it has been taken or refused.
    pub(super) fn hangup(&self) {
        self.write_config();
        let before = self.metric("synapse_config_reloads_total");
        send_signal(self.pid(), Signal::SIGHUP);
        wait_until("the configuration is read", || {
            self.metric("synapse_config_reloads_total") > before
        });
    }

    /// The same, and returns when HAProxy runs with it.
    pub(super) fn reconfigure(&self) {
        self.hangup();
        self.in_force();
    }

    /// Returns when every configured service has its backend in HAProxy, and no other service has one.
    pub(super) fn in_force(&self) {
        let services = self.config["services"].as_object().unwrap();
        let sections = self.config["haproxy"]["extra_sections"].as_object();
        let by_hand = sections.into_iter().flatten();
        let mut wanted: Vec<&str> = services
            .keys()
            .map(|name| self.backend(name))
            .chain(by_hand.filter_map(|(section, _)| section.strip_prefix("backend ")))
            .collect();
        wanted.sort_unstable();
        let mut found = Vec::new();
        wait_until("HAProxy has the configured services", || {
            found = self.backends();
            found == wanted
        });
    }

    /// `/status`.
    pub(super) fn status(&self) -> Value {
        let mut status = None;
        wait_until("synapse says its status", || {
            status = self.get("/status");
            status.is_some()
        });
        serde_json::from_str(&status.unwrap()).unwrap()
    }

    /// What `/status` says of a service.
    pub(super) fn of(&self, service: &str, what: &str) -> u64 {
        self.status()["services"][service][what]
            .as_u64()
            .unwrap_or_default()
    }

    /// A metric, added up over its labels; 0 while nobody answers.
    pub(super) fn metric(&self, name: &str) -> f64 {
        self.metric_of(name, "")
    }

    /// A metric, added up over those with this among their labels (`cause="start"`).
    pub(super) fn metric_of(&self, name: &str, label: &str) -> f64 {
        let text = self.get("/metrics").unwrap_or_default();
        let series = text.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with([' ', '{']))
                && line.contains(label)
        });
        series
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }

    fn get(&self, path: &str) -> Option<String> {
        let address: AdminAddress = format!("127.0.0.1:{}", self.admin).parse().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(admin::get(&address, path)).ok()
    }

    /// The backends that HAProxy has now, sorted.
    pub(super) fn backends(&self) -> Vec<String> {
        let reply = self.haproxy.ask("show backend").unwrap_or_default();
        let names = reply.lines().map(str::to_owned);
        let mut names: Vec<String> = names
            .filter(|name| !name.starts_with('#') && !name.is_empty())
            .collect();
        names.sort_unstable();
        names
    }

    /// The servers that HAProxy has now, by backend, in the order of their ids.
    pub(super) fn servers(&self) -> BTreeMap<String, Vec<Server>> {
        let mut backends: BTreeMap<String, Vec<Server>> = BTreeMap::new();
        for line in self
            .haproxy
            .ask("show servers state")
            .unwrap_or_default()
            .lines()
        {
            let fields: Vec<&str> = line.split(' ').collect();
            if let [_, backend, _, name, host, operation, admin, weight, ..] = fields[..]
                && let Some(Ok(port)) = fields.get(18).map(|port| port.parse::<u16>())
                && let (Ok(operation), Ok(admin)) = (operation.parse(), admin.parse())
            {
                backends
                    .entry(backend.to_owned())
                    .or_default()
                    .push(Server {
                        name: name.to_owned(),
                        endpoint: format!("{host}:{port}"),
                        operation,
                        admin,
                        weight: weight.parse().unwrap(),
                    });
            }
        }
        backends
    }

    /// The backend of a service.
    fn backend<'a>(&'a self, service: &'a str) -> &'a str {
        let proxy = &self.config["services"][service]["haproxy"];
        proxy["backend_name"].as_str().unwrap_or(service)
    }

    /// The endpoints of a service that get requests, sorted.
    pub(super) fn serving(&self, service: &str) -> Vec<String> {
        let servers = self
            .servers()
            .remove(self.backend(service))
            .unwrap_or_default();
        let mut serving: Vec<String> = servers
            .into_iter()
            .filter(|server| server.serves())
            .map(|server| server.endpoint)
            .collect();
        serving.sort_unstable();
        serving
    }

    /// How often HAProxy was reloaded, by its own count.
    pub(super) fn reloads(&self) -> usize {
        self.haproxy.reloads()
    }

    /// What synapse logged, in all its lives.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.path("synapse.log")).unwrap_or_default()
    }

    /// What HAProxy's file holds.
    pub(super) fn file(&self) -> String {
        fs::read_to_string(self.haproxy.config()).unwrap_or_default()
    }

    /// A registry for [`hostkit_tests::tasks`].
    pub(super) fn registry(&self) -> Arc<Members> {
        Arc::new(Members {
            announcer: Arc::new(AnnouncerSession::connect(&self.zookeeper)),
            paths: Mutex::default(),
            expiries: Mutex::default(),
        })
    }
}

impl Drop for Rig {
    #[expect(clippy::print_stdout, reason = "shown where a test failed")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept = std::env::temp_dir().join(format!("rig-{}", self.admin));
            let servers = self.haproxy.ask("show servers state").unwrap_or_default();
            let _ = fs::write(self.path("servers"), servers);
            copy(self.haproxy.directory(), &kept);
            println!("kept: {}", kept.display());
        }
    }
}

/// Keeps what a failed test left, for whoever looks for the cause.
fn copy(from: &Path, to: &Path) {
    let _ = fs::create_dir_all(to);
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let _ = fs::copy(entry.path(), to.join(entry.file_name()));
        }
    }
}

/// A server, by `show servers state`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) endpoint: String,
    /// 0 is down, 2 is up.
    pub(super) operation: u32,
    /// Bits: 1 maintenance, 8 drain; 4 only says that its line has `disabled`.
    pub(super) admin: u32,
    pub(super) weight: u32,
}

impl Server {
    /// Whether it gets new requests.
    pub(super) fn serves(&self) -> bool {
        self.admin & !4 == 0 && self.operation == 2 && self.weight > 0
    }
}

/// The path of a service's job.
pub(super) fn job(service: &str) -> String {
    format!("{ROOT}/{service}")
}

/// The members of all services in ZooKeeper.
pub(super) struct Members {
    pub(super) announcer: Arc<AnnouncerSession>,
    paths: Mutex<BTreeMap<TaskSerial, String>>,
    /// The expiries under way.
    expiries: Mutex<Vec<JoinHandle<()>>>,
}

/// How long a session outlives its executor.
const SESSION: Duration = Duration::from_secs(2);

impl Members {
    fn take(&self, serial: TaskSerial) -> Option<String> {
        self.paths.lock().unwrap().remove(&serial)
    }
}

impl TaskRegistry for Members {
    fn announce(&self, task: &TaskAnnouncement) {
        let host = task.address.ip().to_string();
        let ports = [("http", task.address.port())];
        let member = ServerSetMember {
            host: &host,
            shard: task.shard,
            ports: &ports,
        };
        let path = self.announcer.announce(&job(&task.service), &member);
        self.paths.lock().unwrap().insert(task.serial, path);
    }

    fn leave(&self, task: &TaskAnnouncement) {
        if let Some(path) = self.take(task.serial) {
            self.announcer.remove(&path);
        }
    }

    fn abandon(&self, task: &TaskAnnouncement) {
        if let Some(path) = self.take(task.serial) {
            let announcer = Arc::clone(&self.announcer);
            let expiry = std::thread::spawn(move || {
                std::thread::sleep(SESSION);
                announcer.remove(&path);
            });
            self.expiries.lock().unwrap().push(expiry);
        }
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        // ZooKeeper must not be stopped before.
        for expiry in self.expiries.get_mut().unwrap().drain(..) {
            let _ = expiry.join();
        }
    }
}
