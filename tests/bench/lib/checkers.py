"""Programs that answer `GET /health` for a server without a health endpoint: proxy-healthcheck and its peers, and the
server itself. Owns their configuration, their start, and their process statistics."""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

from .ensemble import free_port
from .measure import ProgramFailed, stop
from .peers import build
from .world import PATH, MeasurementSkipped

PROXY, LOG = "proxy-healthcheck", "log-healthcheck"
NGINX, PYTHON = "nginx", "python"
DIRECT = "direct"
PLUGINS = pathlib.Path("/usr/lib/nagios/plugins")
PACKAGES = ["monitoring-plugins-basic", "monitoring-plugins-standard"]

# CPUCLOCK_SCHED of the kernel's posix-timers.h.
SCHEDULED = 2

NGINX_CONF = """
daemon off;
pid nginx.pid;
error_log error.log;
worker_processes 1;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    server {{ listen 127.0.0.1:{port}; {location} }}
}}
"""
SERVER = 'location / { default_type application/json; return 200 "{\\"uptime_seconds\\": 1}"; }'
# A common configuration without a health checker: the status of the server is forwarded.
FORWARD = "location = /health {{ proxy_pass http://127.0.0.1:{port}/private/stats/; }}"


def programs(bench):
    """Our builds: release, built when missing, unless others are given. Also returns which are outdated."""
    if bench.bins:
        return {name: bench.bins / name for name in (PROXY, LOG)}, []
    paths = {name: bench.target / "release" / name for name in (PROXY, LOG)}
    return paths, build(bench, list(paths.values()))


def plugin(bench, name):
    """A program of monitoring-plugins; raises MeasurementSkipped when it is unavailable."""
    if not (PLUGINS / name).exists() and os.geteuid() == 0:
        bench.log(f"  installing {' and '.join(PACKAGES)}")
        command = ["apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES]
        subprocess.run(command, env=bench.env(DEBIAN_FRONTEND="noninteractive"), capture_output=True)
    if not (PLUGINS / name).exists():
        raise MeasurementSkipped(f"{name} is not installed (Debian: {' '.join(PACKAGES)})")
    return PLUGINS / name


def ask(port, path="/health"):
    """Sends one check as Aurora does: a new connection, the whole response. Returns the response and the seconds."""
    begun = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=5) as one:
        one.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path.encode())
        answer = b""
        while part := one.recv(65536):
            answer += part
    return answer, time.perf_counter() - begun


class RunningServer:
    """A program that serves on a port; stopped when its context ends."""

    def __init__(self, bench, command, port, path="/health"):
        self.bench, self.command, self.port, self.path = bench, [str(word) for word in command], port, path

    def __enter__(self):
        directory = self.bench.directory("checker")
        self.log = directory / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                self.command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.bench.env()
            )
        try:
            self._ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _ready(self):
        end = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                answer, _ = ask(self.port, self.path)
                if b" 200 " in answer.split(b"\r\n")[0]:
                    return
            if self.process.poll() is not None or time.monotonic() > end:
                raise ProgramFailed(f"{self.command[0]} does not serve: {self.log.read_text(errors='replace')[-300:]}")
            time.sleep(0.01)

    def __exit__(self, *_):
        stop(self.process)

    def pids(self):
        """Its process and that process's children."""
        pid = self.process.pid
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def tasks(self):
        """The /proc directories of all its threads."""
        return [task for pid in self.pids() for task in pathlib.Path(f"/proc/{pid}/task").iterdir()]

    def cpu(self):
        """Seconds of CPU so far, including ended threads (CPU clocks of other processes are in
        clock_getcpuclockid(3))."""
        return sum(time.clock_gettime((~pid << 3) | SCHEDULED) for pid in self.pids())

    def wakeups(self):
        """How often its threads have slept so far."""
        lines = [line for task in self.tasks() for line in (task / "status").read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))

    def memory(self):
        """Proportional share and resident size of its memory in bytes."""
        found = {"Pss": 0, "Rss": 0}
        for pid in self.pids():
            for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                name, _, rest = line.partition(":")
                if name in found:
                    found[name] += int(rest.split()[0]) * 1024
        return {name.lower(): value for name, value in found.items()}


def nginx(bench, port, location):
    """An nginx with one location."""
    if not (binary := shutil.which("nginx", path=PATH)):
        raise MeasurementSkipped("nginx is not installed (Debian: nginx-light)")
    prefix = bench.directory("nginx")
    (prefix / "nginx.conf").write_text(NGINX_CONF.format(port=port, location=location))
    return [binary, "-p", prefix, "-c", prefix / "nginx.conf", "-e", "error.log"]


def server(bench):
    """The checked server, as cheap as possible."""
    port = free_port()
    return RunningServer(bench, nginx(bench, port, SERVER), port, "/private/stats/")


def checker(bench, kind, server_port):
    """A program that answers `/health` for the server."""
    port = free_port()
    if kind == PROXY:
        binary = programs(bench)[0][PROXY]
        command = [binary, f"--port={port}", "--url=/private/stats/", f"--test_port={server_port}"]
        return RunningServer(bench, command, port)
    if kind == NGINX:
        return RunningServer(bench, nginx(bench, port, FORWARD.format(port=server_port)), port)
    script = pathlib.Path(__file__).with_name("hacheck.py")
    return RunningServer(bench, [sys.executable, "-I", "-S", script, str(port), str(server_port)], port)
