"""The peer programs and ours: finds them, installs missing ones below target/, and has the command of each for one
object."""

import os
import pathlib
import shutil
import subprocess

from .measure import ProgramFailed
from .origin import BUCKET
from .world import PATH

OURS = ("s3cache", "pexrun")
COMMANDS = {"s5cmd": "s5cmd", "aws": "awscli", "pex": "pex"}
QUIET = ["--loglevel=error", "--keep-free=0"]


class PeerPrograms:
    """The path of each program. A missing peer is None."""

    def __init__(self, bench, directory):
        self.bench = bench
        self.s3cache, self.pexrun = (bench.target / "release" / name for name in OURS)
        self.outdated = build(bench, [self.s3cache, self.pexrun])
        places = [pathlib.Path(directory)] if directory else []
        # A shim selects its program on every start, and the peer would be charged with that.
        places += [pathlib.Path(place) for place in os.get_exec_path() if not place.endswith("shims")]
        places.append(bench.store / "peers" / "bin")
        self.found = {command: find(command, places) for command in COMMANDS}
        missing = [package for command, package in COMMANDS.items() if not self.found[command]]
        if missing:
            install(bench, missing)
            self.found = {command: find(command, places) for command in COMMANDS}
        self.found["curl"] = find("curl", [pathlib.Path(place) for place in PATH.split(":")])

    def need(self, command):
        """The path of a peer; raises ProgramFailed when it is unavailable."""
        if not self.found[command]:
            raise ProgramFailed(f"{command} is neither installed nor installable here")
        return self.found[command]

    def versions(self):
        """The version that each program prints."""
        asked = {
            "s3cache": [self.s3cache, "--version"],
            "pexrun": [self.pexrun, "--version"],
            "s5cmd": [self.found["s5cmd"], "version"],
            "awscli": [self.found["aws"], "--version"],
            "curl": [self.found["curl"], "--version"],
            "pex": [self.found["pex"], "--version"],
            "nginx": ["nginx", "-v"],
            "openssl": ["openssl", "version"],
            "cp": ["cp", "--version"],
        }
        versions = {name: self._version(command) for name, command in asked.items()}
        for name in self.outdated:
            versions[name] += ", older than its sources"
        return versions

    def _version(self, command):
        if not command[0]:
            return "not installed"
        try:
            said = subprocess.run(command, env=self.bench.env(), capture_output=True, text=True, timeout=60)
        except OSError:
            return "not installed"
        lines = (said.stdout + said.stderr).strip().splitlines()
        # curl names every library it is linked with.
        return lines[0].removeprefix("nginx version: ").split(" libcurl")[0] if lines else "says nothing of itself"

    def clients(self, origin, scheme, key, out, cache):
        """Every command that fetches one object to `out`: name -> (command, environment)."""
        url, endpoint = origin.url(key, scheme), origin.endpoint(scheme)
        tls = scheme == "https"
        s3 = f"s3://{BUCKET}/{key}"
        anonymous = ["--no-sign-request", "--endpoint-url", endpoint]
        ours = [self.s3cache, f"--cache-dir={cache}", *QUIET] + ([f"--ca-file={origin.ca}"] if tls else [])
        # Go and Python look for authorities in different places.
        trust = {"AWS_CA_BUNDLE": origin.ca, "SSL_CERT_FILE": origin.ca} if tls else {}
        commands = {
            "s3cache": ([*ours, url, f"--copy-to={out}"], {}),
            "s3cache, prefetch only": ([*ours, url], {}),
            "s3cache s3://": ([*ours, s3, *anonymous, f"--copy-to={out}"], {}),
            "s5cmd": ([self.found["s5cmd"], *anonymous, "cp", s3, out], trust),
            "s5cmd -p 8 -c 8": ([self.found["s5cmd"], *anonymous, "cp", "-p", "8", "-c", "8", s3, out], trust),
            "s5cmd, then sha256sum": (
                [
                    "sh" if self.found["s5cmd"] else None,
                    *("-c", '"$@" && exec sha256sum "$0"', out),
                    *(self.found["s5cmd"], *anonymous, "cp", s3, out),
                ],
                trust,
            ),
            "aws s3 cp": ([self.found["aws"], "s3", "cp", "--quiet", *anonymous, s3, out], trust),
            "curl": ([self.found["curl"], "-sSf", *(["--cacert", origin.ca] if tls else []), "-o", out, url], {}),
        }
        return commands


def build(bench, programs):
    """Builds our programs when one is missing. Returns the names of those that are older than their sources: an
    earlier state may be measured on purpose, so they are not rebuilt."""
    if not all(path.exists() for path in programs):
        names = [path.name for path in programs]
        bench.log(f"building {' and '.join(names)}")
        packages = [word for name in names for word in ("-p", name)]
        subprocess.run(["cargo", "build", "--release", *packages], cwd=bench.repo, check=True)
    sources = [bench.repo / "Cargo.toml", bench.repo / "Cargo.lock"]
    for folder in ("lib/src", *(f"bins/{path.name}/src" for path in programs)):
        sources += bench.repo.glob(f"{folder}/**/*.rs")
    newest = max(source.stat().st_mtime for source in sources)
    outdated = [path.name for path in programs if path.stat().st_mtime < newest]
    for name in outdated:
        bench.log(f"warning: {name} is older than its sources; cargo build --release -p {name}")
    return outdated


def find(command, places):
    """The first program of this name, the native one where a Python script only starts it."""
    for place in places:
        path = place / command
        if not (path.is_file() and os.access(path, os.X_OK)):
            continue
        if command == "s5cmd" and path.read_bytes()[:2] == b"#!":
            # The Python package carries the Go program; the start of Python is not a cost of s5cmd.
            natives = (place.parent / "lib").glob("python*/site-packages/s5cmd/**/s5cmd")
            path = next((native for native in natives if native.is_file()), path)
        return path
    return None


def install(bench, packages):
    """Installs peers into a virtual environment, as far as they are available."""
    venv = bench.store / "peers"
    python = shutil.which("python3", path=PATH) or "python3"
    bench.log(f"installing {', '.join(packages)} below target/")
    made = subprocess.run([python, "-m", "venv", venv], capture_output=True, text=True)
    if made.returncode:
        bench.log(f"no virtual environment: {made.stderr.strip() or made.stdout.strip()}")
        return
    for package in packages:
        command = [venv / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", package]
        if subprocess.run(command).returncode:
            bench.log(f"{package} cannot be installed: it is reported as missing")
