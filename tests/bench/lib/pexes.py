"""Part 6: what pexrun adds to the start of a pex, and what the shared PEX_ROOT saves in a fresh sandbox. Owns the
started pex: `--venv prepend --sh-boot`, the fastest layout, so that pexrun's own cost shows, and one of many files
whose program is the shell."""

import hashlib
import os
import shutil
import subprocess
import zipfile

from .measure import ProgramFailed, median, quantile, sample, values
from .origin import OriginServer
from .peers import QUIET
from .report import ReportSection, milliseconds, number, quartiles, spread
from .warm import differences
from .world import PATH, architecture

ALLOWED = 0.002
SOURCE = 'import six\n\nprint("ran with six", six.__version__)\n'
HASH = hashlib.sha1(SOURCE.encode()).hexdigest()
FILES = 30_000

WARM = {
    "pexrun": "`pexrun`",
    "exec": "the file itself, with the same `PEX_ROOT`",
    "which": "`pexrun --which`: all but becoming the program",
    "true": "`true`, the least a start can take",
}
FIRST = {
    "pexrun": "`pexrun`, fresh sandbox: the shared `PEX_ROOT`",
    "exec": "the file itself, fresh sandbox: `PEX_ROOT` in the new `HOME`",
}
MANY = {
    "pexrun": f"`pexrun`, a pex of {FILES:,} files",
    "exec": f"the file itself, {FILES:,} files",
}


def build(bench, peers):
    """The pex, built once for all runs."""
    name = f"hello-{HASH}-{architecture()}.pex"
    path = bench.store / "pex" / name
    if not path.exists():
        bench.log("  building a pex")
        place = bench.directory("pex")
        (place / "mod.py").write_text(SOURCE)
        # Building needs the caller's own settings of package index and proxy; nothing of it is measured.
        # Its interpreter is part of where a pex unpacks itself to: one that was built by another Python than the one
        # it finds when it runs never takes the fast way, and starts five times as slowly.
        python = shutil.which("python3", path=PATH)
        options = ["--python", python, "-D", place, "-m", "mod", "--venv", "prepend", "--sh-boot", "-o", place / name]
        made = subprocess.run([peers.need("pex"), "six", *options], capture_output=True, text=True, cwd=place)
        if made.returncode:
            raise ProgramFailed(f"pex cannot build: {(made.stderr or made.stdout).strip()[-300:]}")
        path.parent.mkdir(exist_ok=True)
        shutil.copy(place / name, path)
    return path


def build_many(path):
    """A pex, by its zip directory, of FILES files, run by a shell: Python's start would hide the cost of a
    directory."""
    path.write_bytes(b"#!/bin/sh\necho ran with six\nexit\n")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("PEX-INFO", "{}")
        for number in range(1, FILES):
            archive.writestr(f"package/module_{number}.py", "")


def measure(bench, peers):
    """Measures part 6."""
    pex = build(bench, peers)
    with OriginServer(bench) as origin:
        shutil.copy(pex, origin.path(pex.name))
        cache = bench.directory("cache")
        flags = [f"--repository={origin.url('')}", f"--cache-dir={cache}", *QUIET]
        command = [peers.pexrun, *flags, "hello", HASH]

        def checked(outcome, number):
            if not outcome["stdout"].startswith("ran with six"):
                raise ProgramFailed(f"the program did not run: {outcome['stdout'][:100]!r}")
            return sample(outcome, round=number)

        checked(bench.run(command), 0)
        (blob,) = cache.glob(f"{os.geteuid()}/blobs/*/*/{pex.name}")
        root = cache / str(os.geteuid()) / "pex-root"
        checked(bench.run([blob], PEX_ROOT=root), 0)
        if not any(venv.name.encode() in pex.read_bytes() for venv in root.glob("venvs/*/*/*")):
            raise ProgramFailed("the pex was built for another Python: remove pex below target/bench")
        warm = bench.interleave(
            "pexrun, warm",
            bench.pick(200, 20),
            {
                "pexrun": lambda number: checked(bench.run(command), number),
                "exec": lambda number: checked(bench.run([blob], PEX_ROOT=root), number),
                # Everything except the exec: on a noisy machine Python's start hides a few ms.
                "which": lambda number: sample(bench.run([*command[:-2], "--which", *command[-2:]]), round=number),
                "true": lambda number: sample(bench.run(["true"]), round=number),
            },
        )

        build_many(origin.path(f"many-{HASH}-{architecture()}.pex"))
        start_many = [peers.pexrun, *flags, "many", HASH]
        checked(bench.run(start_many), 0)
        (large,) = cache.glob(f"{os.geteuid()}/blobs/*/*/many-*")
        many = bench.interleave(
            "pexrun, a pex of many files",
            bench.pick(200, 20),
            {
                "pexrun": lambda number: checked(bench.run(start_many), number),
                "exec": lambda number: checked(bench.run([large], PEX_ROOT=root), number),
            },
        )

        def sandbox(shared):
            def start(number):
                place = bench.directory("sandbox")
                copy = shutil.copy(blob, place)
                os.sync()
                try:
                    return checked(bench.run(command if shared else [copy], cwd=place, HOME=place), number)
                finally:
                    shutil.rmtree(place)

            return start

        first = bench.interleave("pexrun, first start", bench.rounds, {"pexrun": sandbox(True), "exec": sandbox(False)})
    return {"warm": warm, "many": many, "first": first}


def report(raw):
    """Reports part 6."""
    section = ReportSection("6. pexrun")
    section.text(
        "`pexrun JOB HASH` of a cached pex (`pex six --venv prepend --sh-boot`, the kind that starts fastest) beside "
        "executing the same file directly. The difference is the median of the differences within each round."
    )
    rows = []
    for what, words in (("warm", WARM), ("many", MANY), ("first", FIRST)):
        if what not in raw:
            continue
        found = raw[what]
        apart = differences(found, "pexrun", "exec")
        for client, word in words.items():
            wall = values(found[client], "wall")
            budget = verdict = "–"
            if what != "first" and client == "pexrun":
                budget = "adds <= 2 ms"
                of = "" if what == "warm" else f" of a pex of {FILES:,} files"
                verdict = section.check(f"what pexrun adds to a warm start{of}", median(apart), ALLOWED, milliseconds)
            rows.append(
                [
                    f"{word} (n = {len(wall)})",
                    section.failures(found[client]) or spread(wall, "ms"),
                    number(quantile(wall, 0.99), "ms"),
                    spread(values(found[client], "cpu"), "ms"),
                    quartiles(apart, "ms") if client == "pexrun" else "–",
                    budget,
                    verdict,
                ]
            )
    section.table(None, ["start", "wall p50", "p99", "CPU", "difference", "budget", "verdict"], rows)
    return section
