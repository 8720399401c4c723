"""Parts 3 and 4: one check of a log of any size, and one after gigabytes of new lines. Owns the logs; compares with
check_file_age and check_log of monitoring-plugins."""

import os
import re
import shutil
import time

from .checkers import LOG, plugin, programs
from .measure import ProgramFailed, median, ratio, sample, values
from .report import ReportSection, milliseconds, spread
from .world import PATH, MeasurementSkipped, measured

EQUAL, BULK = 0.10, 1.0
NEWS = 2 << 30
FIRST, AGAIN, STALE = "no state yet", "a line since the last look", "stale"
LINE = b"2026-01-01 00:00:00 INFO a line as a library writes it, which does not begin as the pattern says, %07d\n"
MATCH = b'{"message": "a line of the program, which does", "number": 1234567}\n'
# check_log keeps a copy of the whole log and compares the two.
COPIED = 200 << 20


def block():
    """A few MiB of lines that do not match."""
    return b"".join(LINE % number for number in range(40_000))


def write(path, size, mode="wb"):
    """Writes about so many bytes of lines that do not match."""
    lines = block()
    with open(path, mode) as file:
        for _ in range(size // len(lines)):
            file.write(lines)
        file.write(lines[: size % len(lines)].rpartition(b"\n")[0] + b"\n")
    os.sync()


def format_size(size):
    """Formats a size for people."""
    return f"{size >> 30} GiB" if size >= 1 << 30 else f"{size >> 20} MiB"


class LogCheck:
    """log-healthcheck on one file, with a state file of its own."""

    def __init__(self, bench, log, name, freshness="1h"):
        self.bench, self.log, self.state = bench, log, log.with_name(f"{name}.state")
        binary = programs(bench)[0][LOG]
        self.command = [binary, "--file", log, "--line-pattern={", f"--freshness={freshness}"]
        self.command += [f"--state-file={self.state}", "--loglevel=error"]

    def run(self, expected=0):
        """Runs one check; raises ProgramFailed when its result is another."""
        (outcome,) = self.bench.launcher.batch([self.bench.job(self.command)])
        if outcome["exit"] != expected:
            said = f"{outcome['stdout'].strip()[:200]} {outcome['error']}"
            raise ProgramFailed(f"exit {outcome['exit']}, not {expected}: {said}")
        return outcome

    def bytes_read(self):
        """How many bytes of the log the next check reads."""
        if not shutil.which("strace", path=PATH):
            raise MeasurementSkipped("strace is not installed")
        trace = self.log.with_suffix(".trace")
        calls = "trace=read,pread64,readv,preadv,preadv2,mmap,sendfile,copy_file_range"
        command = ["strace", "-f", "-qq", "-y", "-e", calls, "-o", trace, *self.command]
        self.bench.launcher.batch([self.bench.job(command)])
        found = 0
        for line in trace.read_text().splitlines():
            if f"<{self.log}>" in line:
                mapped = re.search(r"mmap\([^,]+, (\d+)", line)
                found += int(mapped[1] if mapped else re.search(r"= (-?\d+)", line)[1])
        return found


def measure_looks(bench):
    """Measures part 3."""
    sizes = [1 << 20, 100 << 20, bench.pick(2 << 30, 200 << 20)] + ([20 << 30] if bench.large else [])
    place = bench.directory("logs")
    try:
        free = shutil.disk_usage(place).free
        if free < sum(sizes) + (4 << 30):
            need = format_size(sum(sizes))
            raise MeasurementSkipped(f"{need} of logs need more than the {format_size(free)} that are free")
        logs = {}
        for size in sizes:
            bench.log(f"  writing a log of {format_size(size)}")
            logs[size] = place / f"{size}.log"
            write(logs[size], size)
            with open(logs[size], "ab") as file:
                file.write(MATCH)
        return looks(bench, logs)
    finally:
        # The largest takes most of the disk.
        shutil.rmtree(place)


def looks(bench, logs):
    """Checks of logs of several sizes by all programs, in one table: {size: {name: result}}."""
    clients, bytes_read = {"bash": lambda _: sample(bench.run(["bash", "-c", "true"]))}, {}
    for size, log in logs.items():
        found = ours(bench, log)
        clients |= {f"{size} {name}": client for name, client in found.items()}
        bytes_read[str(size)] = measured(bench, lambda bench: count(bench, log))
    raw = {"ours": bench.interleave("looks", 3 * bench.rounds, clients), "bytes": bytes_read, "missing": []}
    # Separately from ours: the copy of a log keeps the disk busy for a while.
    clients = {}
    for size, log in logs.items():
        for name, make in (("check_file_age", age), ("check_log", copying)):
            try:
                clients[f"{size} {name}"] = make(bench, log, size)
            except MeasurementSkipped as error:
                raw["missing"].append(f"{name} of {format_size(size)}: {error}")
    raw["peers"] = bench.interleave("peers", bench.rounds, clients)
    return raw


def ours(bench, log):
    """The three kinds of checks of one log."""
    # Each log has its own state files.
    first, again, stale = (LogCheck(bench, log, f"{log.stem}.{name}") for name in ("first", "again", "stale"))

    def anew(_):
        first.state.unlink(missing_ok=True)
        return sample(first.run())

    def more(number):
        # As between two checks: one more line, of either kind.
        with open(log, "ab") as file:
            file.write(MATCH if number % 2 else LINE % number)
        return sample(again.run())

    def nothing(_):
        os.utime(log, (time.time() - 7200,) * 2)
        try:
            return sample(stale.run(2))
        finally:
            os.utime(log)

    again.run()
    return {FIRST: anew, AGAIN: more, STALE: nothing}


def count(bench, log):
    """How many bytes of a log each kind of check reads."""
    look = LogCheck(bench, log, f"{log.stem}.count")
    found = {FIRST: look.bytes_read()}
    with open(log, "ab") as file:
        file.write(MATCH)
    found[AGAIN] = look.bytes_read()
    os.utime(log, (time.time() - 7200,) * 2)
    found[STALE] = look.bytes_read()
    os.utime(log)
    return found


def age(bench, log, _):
    """check_file_age, which has no pattern."""
    command = [plugin(bench, "check_file_age"), "-w", "3600", "-c", "3600", "-f", log]
    return lambda _: sample(bench.run(command))


def copying(bench, log, size):
    """check_log, which counts new lines."""
    if size > COPIED:
        raise MeasurementSkipped("it copies and compares the whole log")
    command = [plugin(bench, "check_log"), "-F", log, "-O", log.with_suffix(".old"), "-q", "^{"]

    def run(_):
        (outcome,) = bench.launcher.batch([bench.job(command)])
        # It warns of lines that match.
        if outcome["exit"] not in (0, 2):
            raise ProgramFailed(outcome["error"])
        return sample(outcome)

    run(None)
    return run


def report_looks(raw):
    """Reports part 3."""
    section = ReportSection("3. One check of a log")
    section.text(
        "A process for each check, with the log in the page cache. Its last line matches when there is no state yet; "
        "later a line is written before each check, matching or not in turn. Starting `bash -c true`, which every shell "
        f"check of Aurora pays besides, takes {spread(values(raw['ours']['bash'], 'wall'), 'ms')} in the same rounds."
    )
    results = {tuple(key.split(" ", 1)): found for key, found in (raw["ours"] | raw["peers"]).items() if key != "bash"}
    sizes = sorted({size for size, _ in results}, key=int)
    rows, ways = [], []
    for name in dict.fromkeys(name for _, name in results):
        here = {size: results[size, name] for size in sizes if (size, name) in results}
        base = next(iter(here.values()))
        for size, found in here.items():
            apart = [ratio(median(values(found, what)), median(values(base, what))) for what in ("wall", "cpu")]
            rows.append(
                [
                    f"`{name}`" if name.startswith("check_") else f"`{LOG}`, {name}",
                    format_size(int(size)),
                    section.failures(found) or spread(values(found, "wall"), "ms"),
                    spread(values(found, "cpu"), "ms"),
                    ", ".join(f"{one:.2f}x" if one else "–" for one in apart),
                    raw["bytes"][size].get(name, "–"),
                ]
            )
        if not name.startswith("check_"):
            for what, one in zip(("wall", "CPU"), apart):
                # A larger log that is faster is noise.
                over = one - 1 if one else None
                verdict = section.check(f"{what} at {format_size(int(size))}, {name}", over, EQUAL, "{:.0%}".format)
                ways.append([f"{what}, {name}", "–" if over is None else f"{over:+.1%}", "<= 10 %", verdict])
    section.table(None, ["look", "log", "wall", "CPU", "wall, CPU / smallest", "bytes of the log read"], rows)
    for size, found in raw["bytes"].items():
        if not section.skipped(f"Bytes read of {format_size(int(size))}", found):
            verdict = section.check("bytes read when stale", found[STALE], 0, str)
            ways.append([f"bytes read of {format_size(int(size))}, {STALE}", found[STALE], "0", verdict])
    section.table("The largest log beside the smallest", ["what", "difference", "budget", "verdict"], ways)
    for why in raw["missing"]:
        section.text(f"Skipped: {why}.")
    return section


def measure_news(bench):
    """Measures part 4."""
    size = bench.pick(NEWS, 64 << 20)
    place = bench.directory("news")
    log, saved = place / "stderr.log", place / "saved"
    write(log, 1 << 20)
    with open(log, "ab") as file:
        file.write(MATCH)
    look = LogCheck(bench, log, "look", "2s")
    look.run()
    shutil.copy(look.state, saved)
    middle = log.stat().st_size
    write(log, size, "ab")
    # The line to find, if any, starts here.
    with open(log, "rb") as file:
        file.seek(middle + size // 2)
        file.readline()
        middle = file.tell()
    time.sleep(3)

    def one(first, expected):
        def run(_):
            with open(log, "r+b") as file:
                file.seek(middle)
                file.write(first)
            shutil.copy(saved, look.state)
            return sample(look.run(expected))

        return run

    clients = {"none matches": one(b"2", 2), "one matches, in the middle": one(b"{", 0)}
    return {"size": size, "clients": bench.interleave("news", bench.rounds, clients)}


def report_news(raw):
    """Reports part 4."""
    section = ReportSection("4. Many new lines")
    size = format_size(raw["size"])
    section.text(
        f"{size} were written since the last check, of which no line matches, or one in the middle: it is found in each "
        "round, and without it each round reports no match. From the page cache. The peak that can be seen is "
        "at least that of the program that starts them, 8 MB."
    )
    rows = []
    for name, found in raw["clients"].items():
        walls = values(found, "wall")
        verdict = section.check(f"{size}, {name}", median(walls), BULK, milliseconds)
        row = [name, section.failures(found) or spread(walls, "s"), spread(values(found, "cpu"), "s")]
        rows.append([*row, spread(values(found, "rss"), "MB"), "< 1 s", verdict])
    section.table(None, ["what", "wall", "CPU", "peak RSS", "budget", "verdict"], rows)
    return section
