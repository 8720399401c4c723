"""Part 2: the time from a task's listen to its first request. Owns the tasks: each is announced in a service of its
own, listens at a random time within 30 s, and clients request it through HAProxy from then on."""

import asyncio
import socket
import time

from .ensemble import ZookeeperEnsemble, free_port
from .followers import CHECK, RELOAD, SYNAPSE, FollowerProcess, available
from .front import HaproxyFront
from .measure import ProgramFailed, median, quantile, ratio
from .report import ReportSection, milliseconds, number, spread
from .world import measured

LIMIT = 0.1
# The period of requests, whatever the result of earlier ones, the time of all attempts, and the timeout of one.
PERIOD, PATIENCE, WAIT = 0.005, 30, 15
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"


def measure(bench):
    """Measures part 2."""
    return {kind: measured(bench, lambda bench, kind=kind: follow(bench, kind)) for kind in (SYNAPSE, RELOAD)}


def follow(bench, kind):
    """Measures one follower, in seconds, for each task."""
    available(bench, kind)
    lanes, tasks, longest = bench.pick((20, 200, 30), (4, 8, 3))
    options = "" if kind == SYNAPSE else CHECK
    services = {f"lane{lane}": {"port": free_port(), "options": options, "slots": 8} for lane in range(lanes)}
    with ZookeeperEnsemble(bench) as ensemble, HaproxyFront(bench) as front:
        ensemble.create(services)
        with FollowerProcess(bench, kind, ensemble, front, services) as follower:
            follower.until("all services", lambda: bound(services), pause=0.05)
            took, early, waits = [], [], [bench.random.uniform(0, longest) for _ in range(tasks)]
            asyncio.run(play(ensemble, services, waits, took, early))
        return {"took": took, "early": early, "longest": longest}


def bound(services):
    """Whether HAProxy listens for all services."""
    for service in services.values():
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", service["port"])):
                return False
    return True


async def play(ensemble, services, waits, took, early):
    """Runs the tasks of each service one after the other."""

    async def lane(name, port):
        while waits:
            await live(ensemble, name, port, waits.pop(), took, early)

    await asyncio.gather(*(lane(name, service["port"]) for name, service in services.items()))


async def live(ensemble, name, port, wait, took, early):
    """Runs one task. Adds the seconds from listening to its first request, and those of the request that was sent when
    it started to listen."""
    own = socket.socket()
    # Bound and not listening: the port is the task's, and connections are refused.
    own.bind(("127.0.0.1", 0))
    own.setblocking(False)
    path = await asyncio.to_thread(ensemble.announce(name, *own.getsockname()).get, True, 30)
    await asyncio.sleep(wait)
    served = asyncio.get_running_loop().create_future()

    async def answer(reader, writer):
        try:
            if await reader.readuntil(b"\r\n\r\n"):
                if not served.done():
                    served.set_result(time.perf_counter())
                writer.write(ANSWER)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            # A probe sends nothing.
            pass
        finally:
            writer.close()

    listening = time.perf_counter()
    server = await asyncio.start_server(answer, sock=own)
    clients = []
    while not served.done():
        if time.perf_counter() > listening + PATIENCE:
            raise ProgramFailed(f"no request reached a task within {PATIENCE} s of its listening")
        clients.append(asyncio.create_task(ask(port)))
        await asyncio.wait([served], timeout=PERIOD)
    took.append(served.result() - listening)
    first, *_ = await asyncio.gather(*clients)
    if first is not None:
        early.append(first)
    await asyncio.to_thread(ensemble.client.delete, path)
    server.close()


async def ask(port):
    """Sends one request through HAProxy; returns the seconds until the task answered, or None."""
    start = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return None
    try:
        writer.write(REQUEST)
        said = await asyncio.wait_for(reader.read(), timeout=WAIT)
        return time.perf_counter() - start if said.endswith(b"ok") else None
    except (OSError, TimeoutError, asyncio.TimeoutError):
        return None
    finally:
        writer.close()


def report(raw):
    """Reports part 2."""
    section = ReportSection("2. Listen to first request")
    section.text(
        "Tasks are announced first and listen some time within 30 s of it, each alone in its service, 20 services side "
        f"by side. From then on a client asks through HAProxy every {milliseconds(PERIOD)}, whatever the result of "
        "earlier requests. The service's previous task is dead by then; a request that came before HAProxy had the new one "
        "waits for the retries of HAProxy (a second apart; `option redispatch` without an interval, as here and at most sites, changes the "
        "server only with the last), and the last column is the wait of the first such request that the task answered. "
        f"The peer has its servers checked as usual with Synapse (`{CHECK}`)."
    )
    ours = median((raw.get(SYNAPSE) or {}).get("took", []))
    rows = []
    for kind, found in raw.items():
        if section.skipped(f"`{kind}`", found):
            continue
        took = found["took"]
        p99, base = quantile(took, 0.99), ratio(median(took), ours)
        verdict = "–"
        if kind == SYNAPSE:
            verdict = section.check("listen to first request: p99", p99, LIMIT, milliseconds)
        rows.append(
            [
                f"`{kind}` (n = {len(took)})",
                spread(took, "ms"),
                number(p99, "ms"),
                "–" if base is None else f"{base:.1f}x",
                "p99 <= 100 ms" if kind == SYNAPSE else "–",
                verdict,
                f"{spread(found['early'], 'ms')} ({len(found['early'])} of {len(took)})" if found["early"] else "none",
            ]
        )
    section.table(None, ["follower", "p50", "p99", "p50 / synapse", "budget", "verdict", "asked at once"], rows)
    return section
