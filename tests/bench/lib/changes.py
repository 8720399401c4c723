"""Part 1: the time from a change in ZooKeeper until HAProxy applies it, and its cost for ZooKeeper. Owns the sockets
of the members: they listen before they are announced, so that a probe passes at once."""

import socket
import time

from .ensemble import ZookeeperEnsemble, free_port
from .followers import ALL, SYNAPSE, FollowerProcess, available
from .front import HaproxyFront
from .measure import median, quantile, ratio
from .report import ReportSection, number, spread
from .world import measured

SERVICE = "eightball"
LIMIT = {"p50": 0.005, "p99": 0.025}
# What the reference page has for Synapse 0.18.9, from another run on another day.
REFERENCE = {"add": "1.03 s (0.42..1.36)", "remove": "0.48 s (0.06..0.62)"}


def listener():
    """Opens a socket whose connections only the kernel accepts."""
    one = socket.create_server(("127.0.0.1", 0), backlog=64)
    return one, f"127.0.0.1:{one.getsockname()[1]}"


def measure(bench):
    """Measures part 1."""
    changes = bench.pick(200, 10)
    return {kind: measured(bench, lambda bench, kind=kind: follow(bench, kind, changes)) for kind in ALL}


def follow(bench, kind, changes):
    """Measures one follower: seconds for each addition and removal, and packets that ZooKeeper received."""
    available(bench, kind)
    services = {SERVICE: {"port": free_port(), "options": "", "slots": 16}}
    with ZookeeperEnsemble(bench) as ensemble, HaproxyFront(bench) as front:
        ensemble.create(services)
        if kind != SYNAPSE:
            # The peers reload more than once a second, which no supervisor would allow.
            changes = bench.pick(50, 5)
        first, endpoint = listener()
        ensemble.announce(SERVICE, *first.getsockname()).get(timeout=30)
        with first, FollowerProcess(bench, kind, ensemble, front, services) as follower:
            # One member exists before all others: services are never empty during the measurement.
            follower.until("the first member", lambda: endpoint in front.live(SERVICE), pause=0.05)
            took = {"add": [], "remove": [], "add_acknowledged": [], "remove_acknowledged": []}
            packets, loaded, began = ensemble.packets(), front.loaded(), time.monotonic()
            for at in range(changes):
                if at % max(1, changes // 5) == 0:
                    bench.log(f"  {kind}: change {at + 1} of {changes}")
                member, endpoint = listener()
                with member:
                    start = time.perf_counter()
                    made = ensemble.announce(SERVICE, *member.getsockname())
                    acknowledged = record_time(made)
                    live = follower.until(endpoint, lambda: endpoint in front.live(SERVICE))
                    path = made.get(timeout=30)
                    took["add"].append(live - start)
                    took["add_acknowledged"].append(live - acknowledged[0])
                    wait_between_changes(bench)
                    start = time.perf_counter()
                    gone = ensemble.client.delete_async(path)
                    acknowledged = record_time(gone)
                    left = follower.until(f"no {endpoint}", lambda: endpoint not in front.live(SERVICE))
                    gone.get(timeout=30)
                    took["remove"].append(left - start)
                    took["remove_acknowledged"].append(left - acknowledged[0])
                wait_between_changes(bench)
            packets, lasted = ensemble.packets() - packets, time.monotonic() - began
            return {
                "took": took,
                "changes": 2 * changes,
                # Without our own create and delete; pings of the two clients are included.
                "packets": packets - 2 * changes,
                "seconds": lasted,
                "reloads": front.loaded() - loaded,
            }


def wait_between_changes(bench):
    """Waits, so that a change is measured separately from the one before."""
    time.sleep(bench.random.uniform(0.02, 0.1))


def record_time(promise):
    """Records when a promise was kept: a list whose first entry is that time."""
    at = [float("nan")]
    promise.rawlink(lambda _: at.__setitem__(0, time.perf_counter()))
    return at


def report(raw):
    """Reports part 1."""
    section = ReportSection("1. Change to live")
    section.text(
        "One member of a service joins or leaves, 200 times each (the peers 50); HAProxy's `show servers state` is polled "
        "without a pause, from before the request is sent to ZooKeeper until the server gets requests, or no longer. "
        "`reload` writes the file and reloads on every change, without the second that Synapse sleeps between two "
        "polls; `check and reload` runs `haproxy -c` first. The column on the right is from the reference, **not this "
        "run**: Synapse 0.18.9 on another day, its median and range."
    )
    ours = raw.get(SYNAPSE) or {}
    for what, word in (("add", "A member joins"), ("remove", "A member leaves")):
        rows = []
        for kind, found in raw.items():
            if section.skipped(f"{word}, `{kind}`", found):
                continue
            took = found["took"][what]
            p50, p99 = median(took), quantile(took, 0.99)
            verdict = "–"
            if kind == SYNAPSE:
                verdict = "; ".join(
                    section.check(f"{word.lower()}: {name}", value, LIMIT[name], lambda one: number(one, "ms"), name)
                    for name, value in (("p50", p50), ("p99", p99))
                )
            base = ratio(p50, median(ours.get("took", {}).get(what, [])))
            rows.append(
                [
                    f"`{kind}` (n = {len(took)})",
                    spread(took, "ms"),
                    number(p99, "ms"),
                    "–" if base is None else f"{base:.1f}x",
                    "p50 <= 5 ms, p99 <= 25 ms" if kind == SYNAPSE else "–",
                    verdict,
                    REFERENCE[what],
                ]
            )
        columns = ["follower", "p50", "p99", "p50 / synapse", "budget", "verdict", "Synapse, from the reference"]
        section.table(word, columns, rows)
    rows = []
    for kind, found in raw.items():
        if "skipped" in found:
            continue
        changes = found["changes"]
        each = found["packets"] / changes
        rows.append([f"`{kind}`", f"{each:.2f}", f"{found['reloads'] / changes:.2f}", f"{found['seconds']:.0f} s"])
    section.table(
        "Cost of a change (requests to ZooKeeper without the two of the benchmark; pings of both sessions included)",
        ["follower", "requests per change", "reloads per change", "in"],
        rows,
    )
    return section


