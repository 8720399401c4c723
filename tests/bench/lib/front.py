"""The HAProxy under control: one in master-worker mode, and the queries over its runtime socket."""

import pathlib
import shutil
import signal
import socket
import subprocess
import time

from .measure import ProgramFailed
from .world import PATH, MeasurementSkipped

# Columns of `show servers state`, version 1 (HAProxy management guide).
BACKEND, ADDRESS, OPERATION, ADMIN, PORT = 1, 4, 5, 6, 18
RUNNING = "2"
# No forced state; 4 only records that the configuration has the server disabled.
ENABLED = ("0", "4")


def send_command(path, command, limit=10):
    """Sends HAProxy one command and returns its reply."""
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(limit)
        asked.connect(str(path))
        asked.sendall(command.encode() + b"\n")
        # The master of 2.6 does not close until it gets an empty command.
        asked.shutdown(socket.SHUT_WR)
        answer = b""
        while some := asked.recv(1 << 20):
            answer += some
    return answer.decode()


class HaproxyFront:
    """A running HAProxy; stopped when its context ends. It starts with its own sockets only."""

    def __init__(self, bench):
        self.bench = bench

    def __enter__(self):
        program = shutil.which("haproxy", path=PATH)
        if not program:
            raise MeasurementSkipped("haproxy is not installed")
        self.directory = self.bench.directory("haproxy")
        self.config, self.socket = self.directory / "haproxy.cfg", self.directory / "stats.sock"
        self.master = self.directory / "master.sock"
        self.config.write_text(self.head())
        command = [program, "-W", "-db", "-f", self.config, "-S", f"{self.master},mode,600"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        limit = time.monotonic() + 30
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > limit:
                self.__exit__()
                raise ProgramFailed("HAProxy does not start")
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def globals(self):
        """Lines of `global`."""
        return [
            "maxconn 2000",
            f"stats socket {self.socket} mode 600 level admin expose-fd listeners",
            "hard-stop-after 5s",
        ]

    def defaults(self):
        """Lines of `defaults`."""
        timeouts = ["timeout connect 1s", "timeout client 30s", "timeout server 30s"]
        return ["mode http", *timeouts, "option redispatch", "option idle-close-on-response"]

    def head(self):
        """Both sections as text."""
        return section("global", self.globals()) + section("defaults", self.defaults())

    def answers(self):
        try:
            return bool(send_command(self.socket, "show info"))
        except OSError:
            return False

    def live(self, service):
        """The endpoints of a service that get requests."""
        try:
            said = send_command(self.socket, f"show servers state {service}")
        except OSError:
            # The worker that answered is being replaced.
            return set()
        rows = (line.split() for line in said.splitlines() if line and line[0].isdigit())
        full = (row for row in rows if len(row) > PORT)
        return {f"{row[ADDRESS]}:{row[PORT]}" for row in full if row[OPERATION] == RUNNING and row[ADMIN] in ENABLED}

    def loaded(self):
        """How often it was reloaded, including a reload under way."""
        limit = time.monotonic() + 10
        while (count := reloads(self.master)) is None:
            if time.monotonic() > limit:
                raise ProgramFailed("HAProxy's master does not answer")
            time.sleep(0.01)
        return count


def reloads(master):
    """How often the master has reloaded its configuration, or None during a reload."""
    try:
        said = send_command(master, "show proc")
    except OSError:
        return None
    return next((int(line.split()[2]) for line in said.splitlines() if " master " in line), None)


def section(name, lines):
    """Extracts a section of a configuration."""
    return "\n".join([name, *(f"\t{line}" for line in lines)]) + "\n"


def alive(process):
    """Whether a started process still runs."""
    return process.poll() is None and pathlib.Path(f"/proc/{process.pid}").exists()
