"""Parts 2 and 3: the memory of a gateway, idle, with a thousand connections and after a burst of unfinished heads,
and the latency it adds to the API at 500 requests a second."""

import contextlib
import resource
import socket
import time

from .gateways import ALL, AUTH, DIRECT, OURS, OURS_LOG, PLAIN
from .measure import ProgramFailed, median, quantile, values
from .report import ReportSection, megabytes, number
from .saturation import contenders, h2load

IDLE, CROWDED = 5e6, 12e6
CROWD = 1000
# Connections with an unfinished head of so many bytes, and the time in which their memory must be freed.
BURST, HEAD, BACK = 4000, 15_000, 30
CLIENTS, RATE = 10, 50
# Connections idle for this long have released their buffers, where a program does that.
SETTLE = 4


def measure_memory(bench):
    """Measures part 2."""
    seconds = bench.pick(20, 3)
    raw = {"seconds": seconds, "kinds": {}}
    with contenders(bench) as (_, running):
        for one in running.values():
            h2load(bench, one.url(), "-n", 100, "-c", 1)
        time.sleep(SETTLE)
        idle = {kind: one.memory() for kind, one in running.items()}
        before = {kind: one.wakeups() for kind, one in running.items()}
        time.sleep(seconds)
        wakeups = {kind: one.wakeups() - before[kind] for kind, one in running.items()}
        for kind, one in running.items():
            bench.log(f"  {CROWD} connections to {kind}")
            with crowd(one):
                time.sleep(SETTLE)
                open_ = one.memory()["pss"]
            time.sleep(1)
            raw["kinds"][kind] = {
                "idle": idle[kind]["pss"],
                "rss": idle[kind]["rss"],
                "open": open_,
                "after": one.memory()["pss"],
                "wakeups": wakeups[kind],
            }
    raw["burst"] = measure_burst(bench)
    return raw


def measure_burst(bench):
    """Measures the memory of a burst of unfinished heads and what remains of it: separate processes, each after 100
    requests."""
    raw = {"kinds": {}}
    count = bench.pick(BURST, 400)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contenders(bench, (OURS, AUTH)) as (_, running):
        for kind, one in running.items():
            bench.log(f"  {count} unfinished heads to {kind}")
            h2load(bench, one.url(), "-n", 100, "-c", 1)
            time.sleep(SETTLE)
            before = one.memory()["pss"]
            with unfinished(one, count):
                time.sleep(1)
                open_ = one.memory()["pss"]
            time.sleep(BACK)
            raw["kinds"][kind] = {"before": before, "open": open_, "after": one.memory()["pss"]}
    raw["count"] = count
    return raw


@contextlib.contextmanager
def unfinished(one, count):
    """Opens that many connections, each with an unfinished head."""
    with contextlib.ExitStack() as stack:
        line = b"X-Filler: " + b"x" * 180 + b"\r\n"
        head = (f"GET {one.path} HTTP/1.1\r\nHost: localhost\r\n".encode() + line * (HEAD // len(line) + 1))[:HEAD]
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", one.port), timeout=20))
            connection.sendall(head)
        yield


@contextlib.contextmanager
def crowd(one):
    """Opens that many connections, each with one response, and keeps them."""
    with contextlib.ExitStack() as stack:
        request = f"GET {one.path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        made = []
        for _ in range(CROWD):
            made.append(stack.enter_context(socket.create_connection(("127.0.0.1", one.port), timeout=20)))
        for connection in made:
            connection.sendall(request)
        for connection in made:
            if not connection.recv(65536).startswith(b"HTTP/1.1 200 "):
                raise ProgramFailed(f"{one.command[3]} does not answer {CROWD} connections")
        yield


def report_memory(raw):
    """Reports part 2."""
    section = ReportSection("2. Memory")
    section.text(
        f"The proportional share (PSS) of all processes: {SETTLE} s after 100 requests; with {CROWD:,} connections that had "
        f"one request each, all at once, {SETTLE} s before; and after those are closed. Wake-ups are voluntary context "
        f"switches in {raw['seconds']} s without requests."
    )
    rows = []
    for kind, found in raw["kinds"].items():
        ours, verdict = kind == OURS, "–"
        if ours:
            verdict = "; ".join(
                [
                    section.check("memory, idle", found["idle"], IDLE, megabytes, "idle"),
                    section.check(f"memory after {CROWD} connections", found["after"], CROWDED, megabytes, "after"),
                    section.check("idle wake-ups", found["wakeups"], 0, str, "wake-ups"),
                ]
            )
        row = [f"`{kind}`", *(megabytes(found[name]) for name in ("idle", "rss", "open", "after")), found["wakeups"]]
        rows.append([*row, "<= 5 MB, <= 12 MB, 0" if ours else "–", verdict])
    columns = ["gateway", "idle", "RSS, idle", f"{CROWD:,} open", "after", "idle wake-ups", "budget", "verdict"]
    section.table(None, columns, rows)
    if "burst" in raw:
        report_burst(section, raw["burst"])
    return section


def report_burst(section, raw):
    """Reports the memory of a burst."""
    section.text(
        f"A burst of unfinished heads: {raw['count']:,} connections, each with {HEAD:,} bytes of a head and no key, 1 s after the "
        f"last; and {BACK} s after they are closed."
    )
    rows = []
    for kind, found in raw["kinds"].items():
        name, verdict = "memory after a burst of unfinished heads", "–"
        if kind == OURS:
            verdict = section.check(name, found["after"], CROWDED, megabytes)
        row = [f"`{kind}`", *(megabytes(found[name]) for name in ("before", "open", "after"))]
        rows.append([*row, "<= 12 MB" if kind == OURS else "–", verdict])
    columns = ["gateway", "before", f"{raw['count']:,} open", f"after {BACK} s", "budget", "verdict"]
    section.table("Memory after a burst of unfinished heads", columns, rows)


def measure_latency(bench):
    """Measures part 3."""
    seconds = bench.pick(4, 1)
    with contenders(bench) as (server, running):
        log = bench.directory("latency") / "log"

        def paced(one):
            def run(number):
                log.unlink(missing_ok=True)
                cpu, count = one.cpu(), CLIENTS * RATE * seconds
                more = ["-n", count, "-c", CLIENTS, "--rps", RATE, "--log-file", log]
                wall = h2load(bench, one.url(), *more)["wall"]
                took = [int(line.split("\t")[2]) / 1e6 for line in log.read_text().splitlines()]
                each = (one.cpu() - cpu) / count
                return {
                    "round": number,
                    "wall": wall,
                    "cpu": each,
                    "p50": median(took),
                    "p90": quantile(took, 0.9),
                    "p99": quantile(took, 0.99),
                }

            return run

        clients = {kind: paced(one) for kind, one in {DIRECT: server, **running}.items()}
        return {"clients": bench.interleave("500 a second", bench.rounds, clients)}


def added(found, kind, name):
    """What a gateway adds to the API itself, round by round."""
    base = {one["round"]: one[name] for one in found[DIRECT]["samples"]}
    return [one[name] - base[one["round"]] for one in found[kind]["samples"] if one["round"] in base]


def micros(samples):
    """The median and the extremes, in microseconds."""
    if not samples:
        return "–"
    return f"{median(samples) * 1e6:.0f} µs ({min(samples) * 1e6:.0f}..{max(samples) * 1e6:.0f})"


def report_latency(raw):
    """Reports part 3."""
    section = ReportSection("3. 500 requests a second")
    section.text(
        f"{CLIENTS} clients with {RATE} requests a second each (`h2load --rps`), timed by h2load. The added time is the median "
        "of the differences to the API itself within each round. The goal is the p99 that the plain nginx adds."
    )
    found, rows = raw["clients"], []
    limit = median(added(found, PLAIN, "p99"))
    for kind in (DIRECT, *ALL):
        verdict = "–"
        if kind in (OURS, OURS_LOG) and limit is not None:
            late = median(added(found, kind, "p99"))
            verdict = section.check(f"p99 that `{kind}` adds", late, limit, lambda value: number(value, "ms"))
        more = ["–"] * 3 if kind == DIRECT else [micros(added(found, kind, name)) for name in ("p50", "p90", "p99")]
        rows.append(
            [
                f"`{kind}`",
                section.failures(found[kind]) or micros(values(found[kind], "p50")),
                micros(values(found[kind], "p99")),
                *more,
                micros(values(found[kind], "cpu")),
                verdict,
            ]
        )
    columns = ["gateway", "p50", "p99", "p50 added", "p90 added", "p99 added", "CPU of a request", "verdict"]
    section.table(None, columns, rows)
    return section
