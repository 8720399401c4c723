"""Part 4: members that join and leave, hundreds a second for a minute. Owns the storm, and the observations during
and after it."""

import collections
import contextlib
import socket
import threading
import time

from .ensemble import ZookeeperEnsemble, free_port
from .followers import RELOAD, SYNAPSE, FollowerProcess, available
from .front import HaproxyFront
from .measure import ProgramFailed
from .report import ReportSection, milliseconds, number
from .world import measured

RATE = 500
# How many services the changes are spread over.
SERVICES = 20
BATCHES = "synapse_runtime_batches_total"
LIMITS = {"cpu": 0.05, "batches": 10, "converged": 0.1}


def measure(bench):
    """Measures part 4."""
    return {kind: measured(bench, lambda bench, kind=kind: follow(bench, kind)) for kind in (SYNAPSE, RELOAD)}


def follow(bench, kind):
    """Measures one follower in the storm."""
    available(bench, kind)
    lasts = bench.pick(60, 3)
    names = [f"service{at}" for at in range(SERVICES)]
    services = {name: {"port": free_port(), "options": "", "slots": 32} for name in names}
    with ZookeeperEnsemble(bench) as ensemble, HaproxyFront(bench) as front, contextlib.ExitStack() as stack:
        ensemble.create(services)
        # Endpoints to choose from: all of them listen, so that probing does not decide when it is over.
        pool = []
        for _ in range(8 * SERVICES):
            pool.append(stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024)))
        # Probes fill the backlogs of sockets that never accept.
        halt = threading.Event()
        threading.Thread(target=drain, args=(pool, halt), daemon=True).start()
        stack.callback(halt.set)
        follower = stack.enter_context(FollowerProcess(bench, kind, ensemble, front, services))
        follower.until("the first configuration", lambda: all_bound(services), pause=0.05)
        used, batches, before = follower.cpu(), follower.metric(BATCHES), front.loaded()
        began = time.monotonic()
        standing, changes = make_changes(bench, ensemble, names, pool, lasts)
        quiet, lasted = time.perf_counter(), time.monotonic() - began
        used = follower.cpu() - used
        after, loaded = follower.metric(BATCHES), front.loaded()
        wanted = {name: {endpoint for endpoint, _ in members} for name, members in standing.items()}
        converged = follower.until(
            "what stands after the storm",
            lambda: all(front.live(name) == members for name, members in wanted.items()),
            limit=120,
        )
        return {
            "changes": changes,
            "lasted": lasted,
            "cpu": used / lasted,
            "batches": None if None in (batches, after) else (after - batches) / lasted,
            "reloads": loaded - before,
            "converged": converged - quiet,
        }


def all_bound(services):
    """Whether HAProxy listens for all services."""
    return all(socket_open(service["port"]) for service in services.values())


def socket_open(port):
    with socket.socket() as probe:
        return not probe.connect_ex(("127.0.0.1", port))


def drain(pool, halt):
    """Accepts and closes the connections of probes."""
    for one in pool:
        one.setblocking(False)
    while not halt.wait(0.05):
        for one in pool:
            with contextlib.suppress(OSError):
                while True:
                    one.accept()[0].close()


def make_changes(bench, ensemble, names, pool, lasts):
    """Makes changes at the rate; returns the final state, {service: [(endpoint, path)]}, and the number of
    changes."""
    standing, free = collections.defaultdict(list), {name: [] for name in names}
    for at, one in enumerate(pool):
        free[names[at % len(names)]].append(one.getsockname())
    pending, changes, start = collections.deque(), 0, time.monotonic()
    while (now := time.monotonic() - start) < lasts:
        due = int(now * RATE) - changes
        if due <= 0:
            time.sleep(1 / RATE)
            continue
        name = bench.random.choice(names)
        there, rest = standing[name], free[name]
        if rest and (len(there) < 2 or bench.random.random() < 0.5):
            address = rest.pop(bench.random.randrange(len(rest)))
            there.append((address, ensemble.announce(name, *address)))
            pending.append(there[-1][1])
        else:
            address, made = there.pop(bench.random.randrange(len(there)))
            rest.append(address)
            # Its name is known only after creation.
            pending.append(ensemble.client.delete_async(made.get(timeout=30)))
        changes += 1
        if len(pending) > RATE:
            pending.popleft().get(timeout=30)
    for promise in pending:
        promise.get(timeout=30)
    if changes < 0.9 * RATE * lasts:
        raise ProgramFailed(f"the storm made {changes} changes instead of {RATE * lasts}: the machine is too slow for it")
    return {name: [(f"{host}:{port}", made) for (host, port), made in there] for name, there in standing.items()}, changes


def report(raw):
    """Reports part 4."""
    section = ReportSection("4. 500 changes a second")
    section.text(
        f"For a minute, {RATE} members a second join or leave, spread over {SERVICES} services; then HAProxy is polled "
        "without a pause until it matches ZooKeeper."
    )
    rows = []
    for kind, found in raw.items():
        if section.skipped(f"`{kind}`", found):
            continue
        share, batches = found["cpu"], found["batches"]
        verdict, budget = "–", "–"
        if kind == SYNAPSE:
            budget = "<= 5 % of a core, <= 10 batches/s, <= 100 ms"
            checks = (
                section.check("storm: CPU", share, LIMITS["cpu"], percent, "CPU"),
                section.check("storm: batches a second", batches, LIMITS["batches"], lambda one: f"{one:.1f}", "batches"),
                section.check("storm: converged", found["converged"], LIMITS["converged"], milliseconds, "converged"),
            )
            verdict = "; ".join(checks)
        rows.append(
            [
                f"`{kind}`",
                f"{found['changes']:,} in {found['lasted']:.0f} s",
                percent(share),
                "–" if batches is None else f"{batches:.1f}",
                found["reloads"],
                number(found["converged"], "ms"),
                budget,
                verdict,
            ]
        )
    columns = ["follower", "changes", "CPU of a core", "batches/s", "reloads", "converged after", "budget", "verdict"]
    section.table(None, columns, rows)
    return section


def percent(share):
    return f"{share * 100:.1f} %"
