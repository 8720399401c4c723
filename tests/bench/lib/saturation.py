"""Part 1: the cost of a request with a known key for each gateway at full load: CPU, requests per second, system
calls, allocations."""

import contextlib
import re
import shutil
import subprocess
import time

from .checkers import ask
from .ensemble import free_port
from .gateways import ALL, AUTH, AUTH_LOG, AUTHPROXY, KEY, OTHERS, OURS, OURS_LOG, PLAIN
from .gateways import api, flags, gateway, memcached, need, programs
from .measure import ProgramFailed, median, ratio, stop, values
from .report import ReportSection
from .world import PATH, MeasurementSkipped, measured

CPU, CPU_LOG, CALLS, ALLOCATIONS = 0.80, 0.90, 4.3, 12
CONNECTIONS = 64


def h2load(bench, url, *more):
    """Runs h2load on the other core; raises ProgramFailed unless every response is 2xx."""
    command = ["taskset", "-c", OTHERS, need("h2load"), "--h1", "-t", "1", *map(str, more), url]
    said = subprocess.run(command, env=bench.env(), capture_output=True, text=True, timeout=900).stdout
    counts = re.search(r"requests: (\d+) total, .* (\d+) succeeded", said)
    good = re.search(r"status codes: (\d+) 2xx", said)
    wall = re.search(r"finished in ([\d.]+)(us|ms|s),", said)
    if not (counts and good and wall and counts[1] == counts[2] == good[1]):
        raise ProgramFailed(f"h2load: {' '.join(said.split())[-300:]}")
    return {"requests": int(counts[1]), "wall": float(wall[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1}[wall[2]]}


@contextlib.contextmanager
def contenders(bench, kinds=ALL):
    """All gateways in front of one API, each of which has denied a request without a key, unless it checks none."""
    with contextlib.ExitStack() as stack:
        server, cache = stack.enter_context(api(bench)), stack.enter_context(memcached(bench))
        running = {kind: stack.enter_context(gateway(bench, kind, server.port, cache)) for kind in kinds}
        for kind, one in running.items():
            if kind != PLAIN:
                one.refuses()
        yield server, running


def measure(bench):
    """Measures part 1."""
    count = bench.pick(30_000, 2_000)
    with contenders(bench) as (_, running):

        def saturated(one):
            def run(number):
                h2load(bench, one.url(), "-n", count // 10, "-c", CONNECTIONS)
                cpu = one.cpu()
                done = h2load(bench, one.url(), "-n", count, "-c", CONNECTIONS)
                return {
                    "round": number,
                    "wall": done["wall"],
                    "cpu": (one.cpu() - cpu) / count,
                    "rate": count / done["wall"],
                }

            return run

        raw = {"count": count}
        raw["clients"] = bench.interleave("saturated", bench.rounds, {kind: saturated(one) for kind, one in running.items()})
        raw["calls"] = {kind: measured(bench, lambda bench, one=one: calls(bench, one)) for kind, one in running.items()}
    raw["allocations"] = measured(bench, allocations)
    return raw


def calls(bench, one):
    """System calls of one request, including those of connecting."""
    strace, count = need("strace"), bench.pick(20_000, 2_000)
    out = bench.directory("calls") / "calls"
    pids = [word for pid in one.pids() for word in ("-p", str(pid))]
    tracer = subprocess.Popen([strace, "-f", "-c", "-o", out, *pids], stderr=subprocess.PIPE, text=True)
    try:
        # It reports each process once, and counts from then on.
        for _ in one.pids():
            tracer.stderr.readline()
        h2load(bench, one.url(), "-n", count, "-c", CONNECTIONS)
    finally:
        # An interrupted tracer writes its counts, and detaches.
        tracer.send_signal(2)
        tracer.wait(timeout=20)
    total = re.search(r"^100\.00\s+\S+\s+\S*?\s+(\d+)\s+(?:\d+\s+)?total$", out.read_text(), re.M)
    if not total:
        raise ProgramFailed(f"strace: {out.read_text()[-200:]}")
    rows = re.findall(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", out.read_text(), re.M)
    most = {name: int(number) / count for number, name in rows if int(number) > count / 100 and name != "total"}
    return {"each": int(total[1]) / count, "most": most}


def allocations(bench):
    """Allocations of one request: valgrind counts those of a whole process, and a longer run has that many more."""
    few, many = 500, 2_500
    with contextlib.ExitStack() as stack:
        server, cache = stack.enter_context(api(bench)), stack.enter_context(memcached(bench))
        lives = [count_allocations(bench, server.port, cache, count) for count in (few, many)]
    if lives[0] == lives[1]:
        raise MeasurementSkipped("valgrind does not see those of jemalloc")
    return {"each": (lives[1] - lives[0]) / (many - few)}


def count_allocations(bench, api_port, cache_port, count):
    """How often authproxy allocates from start to exit, with so many requests over one connection."""
    if not (valgrind := shutil.which("valgrind", path=PATH)):
        raise MeasurementSkipped("valgrind is not installed (Debian: valgrind)")
    port = free_port()
    log = bench.directory("valgrind") / "log"
    command = [valgrind, "--leak-check=no", f"--log-file={log}", programs(bench)[0][AUTHPROXY]]
    command += flags(bench, port, api_port, cache_port, "off") + ["--lame-duck=0"]
    process = subprocess.Popen([str(word) for word in command], env=bench.env(), stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                if b" 200 " in ask(port, f"/toppages/?apikey={KEY}")[0].split(b"\r\n")[0]:
                    break
            if process.poll() is not None or time.monotonic() > end:
                raise ProgramFailed("authproxy does not serve under valgrind")
            time.sleep(0.05)
        h2load(bench, f"http://127.0.0.1:{port}/toppages/?apikey={KEY}", "-n", count, "-c", 1)
    finally:
        stop(process)
    total = re.search(r"total heap usage: ([\d,]+) allocs", log.read_text())
    if not total:
        raise ProgramFailed(f"valgrind: {log.read_text()[-200:]}")
    return int(total[1].replace(",", ""))


def compared(found, ours, theirs):
    """The median of the CPU ratios within each round: a disturbance of a round affects both."""
    peer = {one["round"]: one["cpu"] for one in found[theirs]["samples"]}
    return median([one["cpu"] / peer[one["round"]] for one in found[ours]["samples"] if one["round"] in peer])


def micros(samples):
    """The median and the extremes, in microseconds with one digit."""
    if not samples:
        return "–"
    return f"{median(samples) * 1e6:.1f} µs ({min(samples) * 1e6:.1f}..{max(samples) * 1e6:.1f})"


def share(value):
    """Formats a ratio."""
    return "–" if value is None else f"{value:.2f}x"


def report(raw):
    """Reports part 1."""
    section = ReportSection("1. A request with a known key")
    section.text(
        f"{raw['count']:,} requests a round over {CONNECTIONS} keep-alive connections, by h2load; a response is 200 bytes of "
        "JSON from an nginx. The measured gateway has a core of its own, h2load and the nginx behind share the other. The key "
        "is one of 1,000, in the query; every gateway has its decision cached. `authproxy` has everything on: a right, "
        "memcached as the second level, trusted proxies, metrics, request validation; the nginx that checks keys does so "
        "with `auth_request` and `proxy_cache`. CPU is the time of all threads on a processor; its ratios are medians "
        "of the ratios within each round."
    )
    found, rows = raw["clients"], []
    for kind in ALL:
        base = AUTH_LOG if kind in (OURS_LOG, AUTH_LOG) else AUTH
        cost = compared(found, kind, base)
        verdict, budget = "–", "–"
        if kind == OURS:
            budget, verdict = f"<= {CPU:.2f}x", section.check("CPU of a request", cost, CPU, share)
        if kind == OURS_LOG:
            budget, verdict = f"<= {CPU_LOG:.2f}x", section.check("CPU of a request, with a log", cost, CPU_LOG, share)
        rate = values(found[kind], "rate")
        rows.append(
            [
                f"`{kind}`",
                section.failures(found[kind]) or micros(values(found[kind], "cpu")),
                f"{share(cost)} of `{base}`",
                f"{median(rate):,.0f}" if rate else "–",
                share(ratio(median(rate), median(values(found[base], "rate")))),
                budget,
                verdict,
            ]
        )
    section.table(None, ["gateway", "CPU of a request", "ratio", "requests/s", "ratio", "budget", "verdict"], rows)
    rows = []
    for kind in ALL:
        one = raw["calls"][kind]
        if section.skipped(f"System calls of `{kind}`", one):
            continue
        verdict = section.check("system calls", one["each"], CALLS, lambda value: f"{value:.2f}") if kind == OURS else "–"
        most = sorted(one["most"].items(), key=lambda pair: -pair[1])
        most = ", ".join(f"{name} {each:.2f}" for name, each in most)
        rows.append([f"`{kind}`", f"{one['each']:.2f}", most, f"<= {CALLS}" if kind == OURS else "–", verdict])
    section.table("System calls of a request (strace)", ["gateway", "all", "which", "budget", "verdict"], rows)
    one = raw["allocations"]
    if not section.skipped("Allocations", one):
        verdict = section.check("allocations", one["each"], ALLOCATIONS, lambda value: f"{value:.1f}")
        section.text(
            f"`authproxy` allocates {one['each']:.1f} times for a request (valgrind, a long life less a short one); the "
            f"goal is <= {ALLOCATIONS}: {verdict}."
        )
    return section
