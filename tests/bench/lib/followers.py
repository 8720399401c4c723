"""Programs that keep HAProxy up to date: synapse, and the peers that reload. Owns their configuration and start."""

import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.request

from .ensemble import free_port, path_of
from .front import alive
from .measure import ProgramFailed, stop
from .peers import build
from .world import MeasurementSkipped

SYNAPSE = "synapse"
RELOAD = "reload"
CHECKED = "check and reload"
ALL = (SYNAPSE, RELOAD, CHECKED)
# The checks of a peer's servers, as in Synapse's examples; synapse probes by itself.
CHECK = "check inter 2s rise 1 fall 2"


def program(bench):
    """Our release build; built when missing."""
    path = bench.target / "release" / SYNAPSE
    return path, build(bench, [path])


def config(ensemble, front, services, state, **haproxy):
    """synapse's configuration: `services` are {name: {port, ..}}; further keys of a service are copied, except
    `options` (server options)."""

    def service(name, found):
        own = {key: value for key, value in found.items() if key not in ("port", "options")}
        proxy = {"port": found["port"]} if found["port"] else {}
        if found["options"]:
            proxy["server_options"] = found["options"]
        decode = {"method": "serverset", "endpoint_name": "http"}
        discovery = {"method": "zookeeper", "path": path_of(name), "hosts": [ensemble.hosts], "decode": decode}
        discovery["generator_config_path"] = "disabled"
        return own | {"discovery": discovery, "haproxy": proxy}

    return {
        "services": {name: service(name, found) for name, found in services.items()},
        "haproxy": {
            "global": front.globals(),
            "defaults": front.defaults(),
            "bind_address": "127.0.0.1",
            "config_file_path": str(front.config),
            "socket_file_path": str(front.socket),
            "master_socket": str(front.master),
            "state_file_path": str(state / "state.json"),
            "restart_interval": 1,
        }
        | haproxy,
    }


class FollowerProcess:
    """A running follower; stopped when its context ends."""

    def __init__(self, bench, kind, ensemble, front, services, **haproxy):
        self.bench, self.kind = bench, kind
        self.ensemble, self.front, self.services, self.haproxy = ensemble, front, services, haproxy
        self.admin = None

    def __enter__(self):
        self.directory = self.bench.directory("follower")
        order = self.directory / "order.json"
        if self.kind == SYNAPSE:
            binary, _ = program(self.bench)
            self.admin = free_port()
            found = config(self.ensemble, self.front, self.services, self.directory, **self.haproxy)
            command = [binary, "-c", order, "--loglevel=warning", "--admin", f"127.0.0.1:{self.admin}"]
        else:
            services = {name: found | {"path": path_of(name)} for name, found in self.services.items()}
            found = {
                "hosts": self.ensemble.hosts,
                "services": services,
                "head": self.front.head(),
                "config": str(self.front.config),
                "master": str(self.front.master),
                "check": self.kind == CHECKED,
            }
            command = [sys.executable, pathlib.Path(__file__).with_name("follow.py"), order]
        order.write_text(json.dumps(found, indent=1))
        with open(self.directory / "log", "wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.bench.env(PYTHONDONTWRITEBYTECODE=1)
            )
        return self

    def __exit__(self, *_):
        stop(self.process)

    def until(self, what, holds, limit=30, pause=0.0):
        """Polls a condition, without a pause unless one is given. Returns the time when it held (perf_counter)."""
        end = time.perf_counter() + limit
        while not holds():
            if time.perf_counter() > end:
                raise ProgramFailed(f"{self.kind}: waited {limit} s in vain: {what}")
            # If every poll asked, a dead follower would cost the others time.
            if pause and not alive(self.process):
                raise ProgramFailed(f"{self.kind} ended: {self.log()}")
            time.sleep(pause)
        return time.perf_counter()

    def log(self):
        """The end of its log."""
        return " ".join((self.directory / "log").read_text(errors="replace").split())[-400:]

    def cpu(self):
        """Seconds of CPU so far."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self):
        """Resident bytes: now, and the maximum."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        found = dict(line.split(":", 1) for line in status.splitlines())
        return {name: int(found[key].split()[0]) * 1024 for name, key in (("now", "VmRSS"), ("most", "VmHWM"))}

    def metric(self, name):
        """The sum of a metric over its labels, or None when it is unavailable."""
        if not self.admin:
            return None
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return None
        found = [float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(found) if found else None


def available(bench, kind):
    """Raises when a follower is unavailable."""
    if kind == SYNAPSE:
        binary, _ = program(bench)
        if not os.access(binary, os.X_OK):
            raise MeasurementSkipped("synapse cannot be built here")

