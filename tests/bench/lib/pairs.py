"""Part 4: a realistic host: 200 pairs of authproxy and proxy-healthcheck, with 20 requests a second each. Owns the
client, which keeps one connection to each."""

import contextlib
import select
import socket
import time

from .checkers import RunningServer
from .ensemble import free_port
from .gateways import AUTH, CHECKER, MEASURED, OURS, api, gateway, memcached, programs
from .measure import ProgramFailed, median, ratio, values
from .report import ReportSection, megabytes
from .saturation import micros, share

PAIRS, MEMORY = 200, 300e6
RATE = 20


def checker(bench, server_port):
    """A proxy-healthcheck of a server, on the measured core."""
    port = free_port()
    command = ["taskset", "-c", MEASURED, programs(bench)[0][CHECKER], f"--port={port}", "--url=/private/stats/"]
    return RunningServer(bench, [*command, f"--test_port={server_port}"], port)


def measure(bench):
    """Measures part 4."""
    count, seconds = bench.pick(PAIRS, 10), bench.pick(10, 2)
    raw = {"count": count, "seconds": seconds}
    with contextlib.ExitStack() as stack:
        server, cache = stack.enter_context(api(bench)), stack.enter_context(memcached(bench))
        bench.log(f"  starting {count} pairs and as many nginx")
        kinds = {
            kind: [stack.enter_context(gateway(bench, kind, server.port, cache)) for _ in range(count)]
            for kind in (OURS, AUTH)
        }
        checkers = [stack.enter_context(checker(bench, server.port)) for _ in range(count)]
        kinds[OURS][0].refuses()
        for proxies in kinds.values():
            drive_clients(proxies, 1)
        pairs = kinds[OURS] + checkers
        time.sleep(4)
        before = [one.wakeups() for one in pairs]
        time.sleep(seconds)
        woken = sum(one.wakeups() for one in pairs) - sum(before)

        def paced(kind):
            def run(number):
                cpu = sum(one.cpu() for one in kinds[kind])
                done, wall, late = drive_clients(kinds[kind], seconds)
                cpu = sum(one.cpu() for one in kinds[kind]) - cpu
                return {"round": number, "wall": wall, "cpu": cpu / done, "rate": done / wall / count, "late": late}

            return run

        rounds = min(bench.rounds, 5)
        raw["clients"] = bench.interleave("pairs", rounds, {kind: paced(kind) for kind in kinds})
        time.sleep(4)
        raw["memory"] = {
            OURS: sum(one.memory()["pss"] for one in kinds[OURS]),
            CHECKER: sum(one.memory()["pss"] for one in checkers),
            AUTH: sum(one.memory()["pss"] for one in kinds[AUTH]),
        }
        raw["wakeups"] = woken
    return raw


def drive_clients(proxies, seconds):
    """Sends each proxy `RATE` requests a second, evenly spread, over one connection each. Returns the number of
    responses, the time, and the number of requests that were not sent because the previous response was missing."""
    with contextlib.ExitStack() as stack:
        poll = stack.enter_context(contextlib.closing(select.epoll()))
        connections, requests, waiting = {}, {}, set()
        for one in proxies:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", one.port), timeout=20))
            number = connection.fileno()
            connections[number] = connection
            requests[number] = f"GET {one.path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            poll.register(number, select.EPOLLIN)
        order, pause = list(connections), 1 / (RATE * len(proxies))
        began = due = time.perf_counter()
        asked = done = late = 0
        while asked < RATE * seconds * len(proxies) or waiting:
            now = time.perf_counter()
            while due <= now and asked < RATE * seconds * len(proxies):
                number = order[asked % len(order)]
                if number in waiting:
                    late += 1
                else:
                    connections[number].send(requests[number])
                    waiting.add(number)
                asked, due = asked + 1, due + pause
            for number, _ in poll.poll(max(0, min(due - time.perf_counter(), 1)) if not waiting else 0.001):
                answer = connections[number].recv(65536)
                if not answer.startswith(b"HTTP/1.1 200 "):
                    raise ProgramFailed(f"one of {len(proxies)} proxies answers {answer[:80]!r}")
                # A response of 200 bytes comes in one piece.
                waiting.discard(number)
                done += 1
            if now - began > seconds + 30:
                raise ProgramFailed(f"{len(waiting)} of {len(proxies)} proxies do not answer")
        return done, time.perf_counter() - began, late


def report(raw):
    """Reports part 4."""
    count = raw["count"]
    section = ReportSection(f"4. {count} pairs on one host")
    section.text(
        f"{count} times `authproxy` and `proxy-healthcheck`, and as many nginx with `auth_request` beside them, each with "
        f"{RATE} requests a second over one connection; idle wake-ups are those of all pairs in {raw['seconds']} s."
    )
    memory = raw["memory"]
    pairs = memory[OURS] + memory[CHECKER]
    scaled = MEMORY * count / PAIRS
    section.table(
        "PSS in all",
        ["what", "in all", "each", "budget", "verdict"],
        [
            [
                f"{count} pairs",
                megabytes(pairs),
                f"{pairs / count / 1e6:.2f} MB",
                f"<= {megabytes(scaled)}",
                section.check(f"memory of {count} pairs", pairs, scaled, megabytes),
            ],
            *(
                [f"{count} `{name}`", megabytes(memory[name]), f"{memory[name] / count / 1e6:.2f} MB", "–", "–"]
                for name in (OURS, CHECKER, AUTH)
            ),
        ],
    )
    verdict = section.check(f"idle wake-ups of {count} pairs", raw["wakeups"], 0, str)
    section.text(f"Idle wake-ups of all pairs: {raw['wakeups']} (budget 0): {verdict}.")
    found, rows = raw["clients"], []
    for kind in (OURS, AUTH):
        cpu, rate = values(found[kind], "cpu"), values(found[kind], "rate")
        cost = ratio(median(cpu), median(values(found[AUTH], "cpu")))
        rows.append(
            [
                f"`{kind}`",
                section.failures(found[kind]) or micros(cpu),
                share(cost),
                f"{median(rate):.1f}" if rate else "–",
                sum(values(found[kind], "late")),
            ]
        )
    section.table(None, ["gateway", "CPU of a request", f"/ `{AUTH}`", "requests/s each", "not sent in time"], rows)
    return section
