//! Tasks as Aurora's thermos runs them, on this host: the task, the start order of its processes, the templates in
//! their command lines, and the health check. [`TaskRunner`] runs them. All queries to Mesos or ZooKeeper are left out.

mod executor;
mod health;
mod lifecycle;
mod run;
mod shell;
mod signaler;
mod supervise;
mod urllib;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use executor::TaskHealth;
pub use health::{AuroraRelease, HealthCheck, HealthCounters};
pub use lifecycle::{HttpLifecycle, LifecycleMessage};
pub use run::{RunningTask, TaskRunner};
pub use signaler::{HttpCheck, HttpSignaler, SignalerResponse};
pub use supervise::{ProcessState, TaskState};

#[derive(Debug, Clone)]
pub struct ThermosProcess {
    name: String,
    cmdline: String,
    max_failures: u32,
}

impl ThermosProcess {
    /// A process that fails permanently at its first failure.
    #[must_use]
    pub fn new(name: &str, cmdline: &str) -> Self {
        Self {
            name: name.to_owned(),
            cmdline: cmdline.to_owned(),
            max_failures: 1,
        }
    }

    /// Restarts the process until it has failed this often; 0 for no limit. (1)
    #[must_use]
    pub const fn max_failures(mut self, failures: u32) -> Self {
        self.max_failures = failures;
        self
    }
}

/// A task: processes, their start order, and their ports.
#[derive(Debug, Clone)]
pub struct ThermosTask {
    name: String,
    processes: Vec<ThermosProcess>,
    constraints: Vec<Vec<String>>,
    ports: BTreeMap<String, u16>,
    env: Vec<(String, String)>,
    instance: u32,
    grace: Duration,
    uid: Option<u32>,
    contract: AuroraRelease,
    health: Option<HealthCheck>,
    lifecycle: Option<HttpLifecycle>,
    second: Duration,
}

impl ThermosTask {
    /// A task without processes: instance 0, five seconds of grace, no health check and no lifecycle.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            processes: Vec::new(),
            constraints: Vec::new(),
            ports: BTreeMap::new(),
            env: Vec::new(),
            instance: 0,
            grace: Duration::from_secs(5),
            uid: None,
            contract: AuroraRelease::Last,
            health: None,
            lifecycle: None,
            second: Duration::from_secs(1),
        }
    }

    /// Adds a process. The ports that its command line names are allocated.
    #[must_use]
    pub fn process(mut self, process: ThermosProcess) -> Self {
        for rest in process.cmdline.split("{{thermos.ports[").skip(1) {
            let name = rest.split("]}}").next().unwrap_or_default();
            self = self.port(name);
        }
        self.processes.push(process);
        self
    }

    /// Adds a start order as thermos prints it: `pexinstall < eightball`. A single name goes before every process that
    /// has no other predecessor.
    #[must_use]
    pub fn constraint(mut self, line: &str) -> Self {
        self.constraints
            .push(line.split('<').map(|name| name.trim().to_owned()).collect());
        self
    }

    /// Allocates a free port under this name, unless one is set.
    #[must_use]
    pub fn port(mut self, name: &str) -> Self {
        self.ports
            .entry(name.to_owned())
            .or_insert_with(crate::free_port);
        self
    }

    /// Sets the port under a name, possibly one of another process.
    #[must_use]
    pub fn port_at(mut self, name: &str, port: u16) -> Self {
        self.ports.insert(name.to_owned(), port);
        self
    }

    /// Gives every process an environment variable that thermos would not set.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the instance number. (0)
    #[must_use]
    pub const fn instance(mut self, instance: u32) -> Self {
        self.instance = instance;
        self
    }

    /// Sets the time between SIGTERM and SIGKILL. (5 s)
    #[must_use]
    pub const fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Runs the processes as this user, which owns the sandbox; needs root. (the user of the test)
    #[must_use]
    pub const fn user(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// Selects the release of the executor. (the latest)
    #[must_use]
    pub const fn contract(mut self, contract: AuroraRelease) -> Self {
        self.contract = contract;
        self
    }

    /// Checks the health, and stops the task when it is unhealthy.
    #[must_use]
    pub fn health(mut self, check: HealthCheck) -> Self {
        self.health = Some(check);
        self
    }

    /// Asks the task to quit over HTTP before it is signalled, if it has the port.
    #[must_use]
    pub fn lifecycle(mut self, lifecycle: HttpLifecycle) -> Self {
        self.lifecycle = Some(lifecycle);
        self
    }

    /// Scales the times of the health check and of the lifecycle: the length of their second. (1 s)
    #[must_use]
    pub const fn second(mut self, second: Duration) -> Self {
        self.second = second;
        self
    }

    fn scaled(&self, time: Duration) -> Duration {
        time.mul_f64(self.second.as_secs_f64())
    }

    fn id(&self) -> String {
        format!("1700000000000-{}-{}", self.name, self.instance)
    }

    /// The processes that must succeed before `name` starts.
    fn predecessors(&self, name: &str) -> BTreeSet<String> {
        let pairs = self.constraints.iter().flat_map(|chain| chain.windows(2));
        let before: BTreeSet<String> = pairs
            .filter(|pair| pair[1] == name)
            .map(|pair| pair[0].clone())
            .collect();
        let mut first = self
            .constraints
            .iter()
            .filter(|chain| chain.len() == 1)
            .flatten();
        if !before.is_empty() || first.clone().any(|alone| alone == name) {
            return before;
        }
        first.by_ref().cloned().collect()
    }

    /// A command line with its templates filled in.
    fn fill(&self, cmdline: &str) -> String {
        let mut text = cmdline
            .replace("{{thermos.task_id}}", &self.id())
            .replace("{{mesos.instance}}", &self.instance.to_string())
            .replace("{{mesos.hostname}}", "localhost");
        for (name, port) in &self.ports {
            text = text.replace(&format!("{{{{thermos.ports[{name}]}}}}"), &port.to_string());
        }
        let unbound = ["{{thermos.", "{{mesos."]
            .iter()
            .find(|start| text.contains(**start));
        assert!(
            unbound.is_none(),
            "thermos refuses what is unbound in: {text}"
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blog() -> ThermosTask {
        ThermosTask::new("eightball")
            .instance(7)
            .process(ThermosProcess::new("envvar_setup", "true"))
            .process(ThermosProcess::new("pexinstall", "true"))
            .process(ThermosProcess::new(
                "eightball",
                "./e --port={{thermos.ports[private]}}",
            ))
            .process(ThermosProcess::new(
                "check",
                "c {{thermos.ports[health]}} {{thermos.ports[private]}}",
            ))
            .constraint("envvar_setup")
            .constraint("pexinstall < eightball < check")
    }

    #[test]
    fn chains_order_processes_and_single_name_goes_first() {
        let task = blog();
        let before = |name| task.predecessors(name).into_iter().collect::<Vec<_>>();
        assert!(before("envvar_setup").is_empty());
        assert_eq!(before("pexinstall"), ["envvar_setup"]);
        assert_eq!(before("eightball"), ["pexinstall"]);
        assert_eq!(before("check"), ["eightball"]);
    }

    #[test]
    fn templates_have_same_values_in_every_process() {
        let task = blog();
        let private = task.ports["private"];
        assert_eq!(
            task.fill(&task.processes[2].cmdline),
            format!("./e --port={private}")
        );
        assert_eq!(
            task.fill(&task.processes[3].cmdline),
            format!("c {} {private}", task.ports["health"])
        );
        assert_eq!(
            task.fill("{{mesos.instance}} {{mesos.hostname}} {{thermos.task_id}}"),
            "7 localhost 1700000000000-eightball-7"
        );
    }

    #[test]
    #[should_panic(expected = "unbound")]
    fn unbound_template_panics() {
        blog().fill("{{thermos.ports[other]}}");
    }
}
