"""Parts 1 and 2: a resident checker: its size, memory, threads, and idle wake-ups; and the cost of a check, with the
latency it adds to the server's."""

import contextlib
import time

from . import sizes
from .checkers import DIRECT, LOG, NGINX, PROXY, PYTHON, RunningServer, ask, checker, plugin, programs, server
from .ensemble import free_port
from .measure import ProgramFailed, median, quantile, ratio, sample, values
from .report import ReportSection, megabytes, milliseconds, number, spread
from .world import measured

SIZE, RESIDENT, CPU, ADDED = 2e6, 3.5e6, 0.0001, 0.0002
CROWD, PAIRS = 200, 300e6
KINDS = (PROXY, NGINX, PYTHON)
# Checks a second: a busy host has a hundred tasks that are checked every few seconds.
RATE = 100


def watcher(bench):
    """A resident log-healthcheck of a log that was written just now."""
    log = bench.directory("log") / "stderr"
    log.write_text('{"message": "up"}\n')
    port = free_port()
    command = [programs(bench)[0][LOG], f"--port={port}", "--file", log, "--line-pattern={", "--freshness=1h"]
    return RunningServer(bench, [*command, f"--state-file={log}.state"], port)


def measure_idle(bench):
    """Measures part 1."""
    seconds = bench.pick(20, 2)
    paths, _ = programs(bench)
    raw = {"seconds": seconds, "sizes": {name: sizes.size(path) for name, path in paths.items()}, "kinds": {}}
    with contextlib.ExitStack() as stack:
        checked = stack.enter_context(server(bench))
        running = {kind: stack.enter_context(checker(bench, kind, checked.port)) for kind in KINDS}
        running[LOG] = stack.enter_context(watcher(bench))
        for one in running.values():
            for _ in range(100):
                ask(one.port)
        time.sleep(0.5)
        before = {kind: (one.wakeups(), one.cpu()) for kind, one in running.items()}
        time.sleep(seconds)
        for kind, one in running.items():
            raw["kinds"][kind] = one.memory() | {
                "threads": len(one.tasks()),
                "wakeups": one.wakeups() - before[kind][0],
                "cpu": one.cpu() - before[kind][1],
            }
    raw["crowd"] = measured(bench, crowd)
    return raw


def crowd(bench):
    """The memory of many proxy-healthchecks on one host, each checked a few times."""
    count = bench.pick(CROWD, 10)
    with contextlib.ExitStack() as stack:
        checked = stack.enter_context(server(bench))
        running = [stack.enter_context(checker(bench, PROXY, checked.port)) for _ in range(count)]
        for one in running:
            for _ in range(3):
                ask(one.port)
        return {"count": count, "pss": sum(one.memory()["pss"] for one in running)}


def report_idle(raw):
    """Reports part 1."""
    section = ReportSection("1. A resident checker")
    rows = []
    for name, found in raw["sizes"].items():
        stripped = "" if found["stripped"] else " (with symbols)"
        verdict = section.check(f"the binary `{name}`", found["bytes"], SIZE, megabytes)
        rows.append([f"`{name}`", megabytes(found["bytes"]) + stripped, "<= 2 MB", verdict])
    section.table("Binaries", ["program", "size", "budget", "verdict"], rows)
    section.text(
        f"Each after a hundred checks, then {raw['seconds']} s without requests. Wake-ups are voluntary context "
        "switches of all its threads. nginx is a master and one worker; Python is an HTTP server with a thread for "
        "each request, as hacheck is."
    )
    rows = []
    for kind, found in raw["kinds"].items():
        ours = kind in (PROXY, LOG)
        verdicts = "–"
        if ours:
            memory = section.check(f"resident memory of `{kind}`", found["rss"], RESIDENT, megabytes, "RSS")
            threads = section.check(f"threads of `{kind}`", found["threads"], 1, str, "threads")
            idle = section.check(f"idle wake-ups of `{kind}`", found["wakeups"], 0, str, "wake-ups")
            verdicts = "; ".join([memory, threads, idle])
        row = [f"`{kind}`", megabytes(found["pss"]), megabytes(found["rss"]), found["threads"], found["wakeups"]]
        rows.append([*row, number(found["cpu"], "ms"), "RSS <= 3.5 MB, 1 thread, 0" if ours else "–", verdicts])
    columns = ["checker", "PSS", "RSS", "threads", "idle wake-ups", "idle CPU", "budget", "verdict"]
    section.table("Resident", columns, rows)
    found = raw["crowd"]
    if not section.skipped("Many on one host", found):
        section.text(
            f"{found['count']} `proxy-healthcheck`s on one host: {megabytes(found['pss'])} PSS in all, "
            f"{megabytes(found['pss'] / found['count'])} each (budget of 200 pairs with authproxy: {megabytes(PAIRS)})."
        )
    return section


def measure_checks(bench):
    """Measures part 2."""
    seconds = bench.pick(3, 0.5)
    with contextlib.ExitStack() as stack:
        checked = stack.enter_context(server(bench))
        running = {kind: stack.enter_context(checker(bench, kind, checked.port)) for kind in KINDS}
        running[LOG] = stack.enter_context(watcher(bench))

        def paced(kind):
            one, path = (checked, checked.path) if kind == DIRECT else (running[kind], "/health")

            def run(number):
                took, due, cpu = [], time.perf_counter(), one.cpu()
                for _ in range(max(10, int(RATE * seconds))):
                    time.sleep(max(0, due - time.perf_counter()))
                    due += 1 / RATE
                    answer, wall = ask(one.port, path)
                    if b" 200 " not in answer.split(b"\r\n")[0]:
                        raise ProgramFailed(f"answers {answer[:80]!r}")
                    took.append(wall)
                each = (one.cpu() - cpu) / len(took)
                p99 = quantile(took, 0.99)
                return {"round": number, "wall": median(took), "p99": p99, "cpu": each, "took": took}

            return run

        clients = {kind: paced(kind) for kind in (DIRECT, *running)}
        raw = {"rate": RATE, "clients": bench.interleave("checks", bench.rounds, clients)}
        for found in raw["clients"].values():
            # One p99 of all checks is more reliable than ten of a hundred each.
            found["all"] = quantile([wall for one in found["samples"] for wall in one.pop("took")], 0.99)
        raw["plugin"] = measured(bench, lambda bench: plugin_rounds(bench, checked.port))
    return raw


def plugin_rounds(bench, port):
    """A process for each check."""
    command = [plugin(bench, "check_http"), "-I", "127.0.0.1", "-p", port, "-u", "/private/stats/"]
    clients = {"check_http": lambda _: sample(bench.run(command)), "true": lambda _: sample(bench.run(["true"]))}
    return bench.interleave("check_http", 3 * bench.rounds, clients)


def added(found, kind, name):
    """What a checker adds to the server itself, round by round."""
    base = {one["round"]: one[name] for one in found[DIRECT]["samples"]}
    return [one[name] - base[one["round"]] for one in found[kind]["samples"] if one["round"] in base]


def report_checks(raw):
    """Reports part 2."""
    section = ReportSection("2. A check over HTTP")
    section.text(
        f"{raw['rate']} checks a second, each over a connection of its own, by one Python client. The server is an "
        "nginx that returns a constant, and the log one that was written to just now. CPU is that of the checker alone "
        "(the clocks of its processes). The added time is the median of the differences to the server itself within "
        "each round; the last p99 is of all rounds together."
    )
    found = raw["clients"]
    python = median(values(found[PYTHON], "cpu"))
    rows = []
    for kind in found:
        cpu, ours = values(found[kind], "cpu"), kind in (PROXY, LOG)
        verdicts = "–"
        if ours:
            late = median(added(found, kind, "p99"))
            verdicts = "; ".join(
                [
                    section.check(f"CPU of a check by `{kind}`", median(cpu), CPU, thousandths, "CPU"),
                    section.check(f"p99 that `{kind}` adds", late, ADDED, milliseconds, "p99"),
                ]
            )
        rows.append(
            [
                f"`{kind}`",
                section.failures(found[kind]) or microseconds(cpu),
                f"{ratio(median(cpu), python):.2f}x" if cpu and python else "–",
                microseconds(values(found[kind], "wall")),
                microseconds(values(found[kind], "p99")),
                "–" if kind == DIRECT else microseconds(added(found, kind, "wall")),
                "–" if kind == DIRECT else microseconds(added(found, kind, "p99")),
                microseconds([found[kind]["all"]]),
                "CPU <= 0.1 ms, p99 added <= 0.2 ms" if ours else "–",
                verdicts,
            ]
        )
    columns = ["responder", "CPU of a check", "/ Python", "p50", "p99", "p50 added", "p99 added", "p99 of all"]
    section.table(None, [*columns, "budget", "verdict"], rows)
    found = raw["plugin"]
    if not section.skipped("Nagios' check_http", found):
        rows = [
            [f"`{name}`", section.failures(one) or spread(values(one, "wall"), "ms"), spread(values(one, "cpu"), "ms")]
            for name, one in found.items()
        ]
        section.table("A process for each check", ["program", "wall", "CPU"], rows)
    return section


def thousandths(value):
    """A time shorter than a millisecond."""
    return f"{value * 1000:.3f} ms"


def microseconds(samples):
    """The median and the extremes of short times."""
    if not samples:
        return "–"
    if len(samples) == 1:
        return f"{samples[0] * 1e6:.0f} µs" if samples[0] is not None else "–"
    return f"{median(samples) * 1e6:.0f} µs ({min(samples) * 1e6:.0f}..{max(samples) * 1e6:.0f})"
