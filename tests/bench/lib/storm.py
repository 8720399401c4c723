"""Part 4: members that come and go, hundreds of them every second for a minute. Owns the storm, and what is looked at
while it blows and after it."""

import collections
import contextlib
import socket
import threading
import time

from .ensemble import Ensemble, free_port
from .followers import RELOAD, SYNAPSE, Follower, available
from .front import Front
from .measure import Failed
from .report import Section, milliseconds, number
from .world import measured

RATE = 500
# How many services the changes are spread over.
SERVICES = 20
BATCHES = "synapse_runtime_batches_total"
LIMITS = {"cpu": 0.05, "batches": 10, "converged": 0.1}


def measure(bench):
    """Part 4."""
    return {kind: measured(bench, lambda bench, kind=kind: follow(bench, kind)) for kind in (SYNAPSE, RELOAD)}


def follow(bench, kind):
    """What one follower does in the storm."""
    available(bench, kind)
    lasts = bench.pick(60, 3)
    names = [f"service{at}" for at in range(SERVICES)]
    services = {name: {"port": free_port(), "options": "", "slots": 32} for name in names}
    with Ensemble(bench) as ensemble, Front(bench) as front, contextlib.ExitStack() as stack:
        ensemble.create(services)
        # Endpoints to choose from: all of them listen, so that probing does not decide when it is over.
        pool = []
        for _ in range(8 * SERVICES):
            pool.append(stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024)))
        # Probes fill the queues of sockets that nobody accepts from.
        halt = threading.Event()
        threading.Thread(target=drain, args=(pool, halt), daemon=True).start()
        stack.callback(halt.set)
        follower = stack.enter_context(Follower(bench, kind, ensemble, front, services))
        follower.until("the first configuration", lambda: all_bound(services), pause=0.05)
        used, batches, before = follower.cpu(), follower.metric(BATCHES), front.loaded()
        began = time.monotonic()
        standing, changes = blow(bench, ensemble, names, pool, lasts)
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
    """Accepts and closes what probes open."""
    for one in pool:
        one.setblocking(False)
    while not halt.wait(0.05):
        for one in pool:
            with contextlib.suppress(OSError):
                while True:
                    one.accept()[0].close()


def blow(bench, ensemble, names, pool, lasts):
    """Makes changes at the rate; what stands afterwards, {service: [(endpoint, path)]}, and how many they were."""
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
            # Its name is known only when it was created.
            pending.append(ensemble.client.delete_async(made.get(timeout=30)))
        changes += 1
        if len(pending) > RATE:
            pending.popleft().get(timeout=30)
    for promise in pending:
        promise.get(timeout=30)
    if changes < 0.9 * RATE * lasts:
        raise Failed(f"the storm made {changes} changes instead of {RATE * lasts}: the machine is too slow for it")
    return {name: [(f"{host}:{port}", made) for (host, port), made in there] for name, there in standing.items()}, changes


def report(raw):
    """Part 4, for people."""
    section = Section("4. 500 changes a second")
    section.text(
        f"For a minute, {RATE} members a second come or go, spread over {SERVICES} services; then HAProxy is asked "
        "without a pause until it has what stands in ZooKeeper."
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
