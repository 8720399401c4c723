"""The environment of a run: its directory, its variables, its cleanup, and the machine's limits (mounts, cgroups).
Owns cleaning up: whatever is created here is removed after the run, also when it is interrupted."""

import contextlib
import os
import pathlib
import platform
import random
import shutil
import signal
import subprocess
import sys

from . import machine
from .measure import ProgramFailed, ProgramLauncher

# A pyenv shim is a shell script that costs more than most measurements here.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class MeasurementSkipped(Exception):
    """This machine cannot measure it; the text has the reason."""


class BenchRun:
    """One run."""

    def __init__(self, repo, target, quick, rounds):
        self.repo, self.target, self.quick, self.rounds = repo, target, quick, rounds
        self.store = target / "bench"
        self.random = random.Random()
        self.stack = contextlib.ExitStack()
        self.counter = 0

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: sys.exit(1))
        self.store.mkdir(parents=True, exist_ok=True)
        remove_stale(self.store)
        self.work = self.store / f"work.{os.getpid()}"
        self.work.mkdir()
        self.stack.callback(shutil.rmtree, self.work, ignore_errors=True)
        self.home = self.directory("home")
        self.launcher = self.stack.enter_context(ProgramLauncher(self.directory("launcher")))
        return self

    def __exit__(self, *_):
        # A second Ctrl-C would leave a mount or a server behind.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self.stack.close()

    def pick(self, full, quick):
        """The full size of something, or that of --quick."""
        return quick if self.quick else full

    def log(self, text):
        print(text, file=sys.stderr, flush=True)

    def directory(self, name, within=None):
        """A new empty directory."""
        self.counter += 1
        path = (within or self.work) / f"{name}.{self.counter}"
        path.mkdir()
        return path

    def env(self, **more):
        """The environment of all measured programs: without the caller's configuration, proxies or credentials."""
        return {
            "PATH": PATH,
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REGION": "us-east-1",
        } | {name: str(value) for name, value in more.items()}

    def run(self, argv, cwd=None, limit=900, **env):
        """Measures one program; raises ProgramFailed when it fails."""
        return self.launcher.run(self.job(argv, cwd, limit, **env))

    def job(self, argv, cwd=None, limit=900, **env):
        """A program for the launcher."""
        argv = [str(word) for word in argv]
        argv[0] = shutil.which(argv[0], path=PATH) or argv[0]
        return {"argv": argv, "env": self.env(**env), "cwd": str(cwd or self.work), "limit": limit}

    def interleave(self, what, rounds, clients):
        """Runs every client once per round, in another order each time, and keeps their results or failures. A client
        that failed twice is skipped afterwards: its retries could take longer than everything else."""
        results = {name: {"samples": [], "failures": []} for name in clients}
        for number in range(rounds):
            if number % max(1, rounds // 10) == 0:
                self.log(f"  {what}: round {number + 1} of {rounds}")
            order = list(clients)
            self.random.shuffle(order)
            for name in order:
                if len(results[name]["failures"]) > 1:
                    continue
                try:
                    results[name]["samples"].append(clients[name](number))
                except ProgramFailed as error:
                    self.log(f"  {name} failed: {error}")
                    results[name]["failures"].append(machine.anonymous(str(error), self))
        return results

    @contextlib.contextmanager
    def xfs(self, gigabytes=1):
        """An empty xfs with reflinks in a sparse file of this disk, for the duration of the context."""
        if os.geteuid() != 0:
            raise MeasurementSkipped("mounting a filesystem needs root")
        if not shutil.which("mkfs.xfs", path=PATH):
            raise MeasurementSkipped("mkfs.xfs is not installed (xfsprogs)")
        place = self.directory("xfs")
        image, mountpoint = place / "image", place / "mnt"
        mountpoint.mkdir()
        with open(image, "wb") as file:
            file.truncate(gigabytes << 30)
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, place, ignore_errors=True)
            for command in (
                ["mkfs.xfs", "-q", "-m", "reflink=1", image],
                ["mount", "-o", "loop", image, mountpoint],
            ):
                made = subprocess.run(command, capture_output=True, text=True, env=self.env())
                if made.returncode:
                    raise MeasurementSkipped(f"{command[0]} failed: {made.stderr.strip().splitlines()[-1:]}")
            # Measurements below it have ended, so a process that still has it open does not matter.
            stack.callback(subprocess.run, ["umount", "-l", mountpoint], env=self.env())
            yield mountpoint

    @contextlib.contextmanager
    def throttled(self, percent):
        """The cgroup.procs file of a cgroup limited to so many percent of one CPU, v1 or v2."""
        name, period = f"hostkit-bench-{os.getpid()}", 100_000
        quota = period * percent // 100
        one, two = pathlib.Path("/sys/fs/cgroup/cpu"), pathlib.Path("/sys/fs/cgroup")
        if (one / "cpu.cfs_quota_us").exists() or (one / "cgroup.procs").exists():
            group, limits = one / name, {"cpu.cfs_period_us": period, "cpu.cfs_quota_us": quota}
        elif (two / "cgroup.controllers").exists():
            group, limits = two / name, {"cpu.max": f"{quota} {period}"}
        else:
            raise MeasurementSkipped("there is no cpu cgroup")
        try:
            group.mkdir()
        except OSError as error:
            raise MeasurementSkipped(f"no cgroup can be made: {error.strerror}") from error
        try:
            for file, value in limits.items():
                if not (group / file).exists():
                    raise MeasurementSkipped(f"cgroups here have no {file}")
                (group / file).write_text(str(value))
            yield group / "cgroup.procs"
        finally:
            group.rmdir()


def remove_stale(store):
    """Removes leftovers of a run that was killed."""
    for left in store.glob("work.*"):
        if pathlib.Path("/proc", left.suffix[1:]).exists():
            continue
        for file in left.glob("nginx.*/nginx.pid"):
            pid = int(file.read_text())
            command = pathlib.Path(f"/proc/{pid}/cmdline")
            # The process id may have been reused.
            if command.exists() and str(left) in command.read_text(errors="replace"):
                os.kill(pid, signal.SIGTERM)
        mounts = [line.split()[1] for line in open("/proc/self/mounts", encoding="utf-8")]
        for mount in mounts:
            if pathlib.Path(mount).is_relative_to(left):
                subprocess.run(["umount", "-l", mount])
        shutil.rmtree(left, ignore_errors=True)


def architecture():
    """hostkit's name of this machine: codename and machine."""
    release = platform.freedesktop_os_release()
    return f"{release.get('VERSION_CODENAME', release['ID'])}_{platform.machine()}"


def measured(bench, part):
    """The result of `part`, or the reason why it was skipped, for the raw results."""
    try:
        return part(bench)
    except (MeasurementSkipped, ProgramFailed) as error:
        return {"skipped": machine.anonymous(str(error), bench)}
