"""Parts 1 and 2: an object that is not on this host yet, from a fast origin and from one that limits each connection.
Owns how a fetch is prepared, checked and undone, the same for every client."""

import hashlib
import os
import shutil
import time

from . import archives
from . import origin as origins
from .measure import ProgramFailed, digest, median, ratio, sample, values
from .peers import PeerPrograms
from .report import ReportSection, megabytes, spread, times

NAMES = {100: "tiny-1.2.3.bin"}
OURS = ("s3cache", "s3cache, prefetch only", "s3cache s3://")
BEST = ("s5cmd", "s5cmd -p 8 -c 8")
SAME_WORK = "s5cmd, then sha256sum"
INTO_CACHE = "s3cache, prefetch only"
SCHEMES = ("http", "https")
WALL, CPU, RSS = 0.8, 1.0, 24e6
LIMITED_WALL = 1.0


def format_size(size):
    """Formats a size for people."""
    for unit, bytes_ in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size >= bytes_:
            return f"{size // bytes_} {unit}"
    return f"{size} B"


def client(bench, peers, origin, scheme, key, want, name):
    """A function that fetches the object once with the client `name`, and checks the result."""
    size, sha256 = want

    def fetch(number):
        place = bench.directory("fetch")
        out, cache = place / "out", place / "cache"
        command, env = peers.clients(origin, scheme, key, out, cache)[name]
        try:
            if not command[0]:
                raise ProgramFailed("it is neither installed nor installable here")
            # Dirty pages of one client must not slow the next one, nor the fsync of s3cache.
            os.sync()
            outcome = bench.run(command, **env)
            if name == "s3cache, prefetch only":
                out = bench.work / outcome["stdout"].strip()
            if out.stat().st_size != size:
                raise ProgramFailed(f"left {out.stat().st_size} bytes of {size}")
            # Reading a gigabyte again each time would take longer than fetching it.
            if (size <= 64 << 20 or number == 0) and digest(out) != sha256:
                raise ProgramFailed("left other bytes than the origin has")
            return sample(outcome)
        except FileNotFoundError as error:
            raise ProgramFailed("left no file") from error
        finally:
            shutil.rmtree(place)

    return fetch


def fetches(bench, peers, origin, scheme, size, names):
    """Measures all samples of one object over one scheme."""
    key = NAMES.get(size, "big-1.2.3.bin")
    want = (size, origin.object(key, size))
    try:
        clients = {name: client(bench, peers, origin, scheme, key, want, name) for name in names}
        return bench.interleave(f"{scheme} {format_size(size)}", bench.rounds, clients)
    finally:
        origin.remove(key)


def measure(bench, peers: PeerPrograms):
    """Measures part 1."""
    sizes = [100, bench.pick(64 << 20, 8 << 20), bench.pick(1 << 30, 64 << 20)]
    with origins.OriginServer(bench) as origin:
        names = [name for name in peers.clients(origin, "http", "x", "x", "x")]
        cells = [
            {"scheme": scheme, "size": size, "clients": fetches(bench, peers, origin, scheme, size, names)}
            for scheme in SCHEMES
            for size in sizes
        ]
        packed = archives.measure(bench, peers, origin)
    floor = bench.interleave("floor", 20, {"true": lambda _: sample(bench.run(["true"]))})
    return {"cells": cells, "archive": packed, "floor": floor["true"], "hash_rate": hash_rate()}


def hash_rate():
    """Bytes per second that one processor hashes with OpenSSL: the lower bound of verification."""
    piece = os.urandom(16 << 20)
    rates = []
    for _ in range(9):
        start = time.process_time()
        hashlib.sha256(piece)
        rates.append(len(piece) / (time.process_time() - start))
    return median(rates)


def best(clients, figure):
    """The better of the two s5cmd variants, by the median."""
    found = [median(values(clients.get(name), figure)) for name in BEST]
    return min((one for one in found if one is not None), default=None)


def report(raw):
    """Reports part 1."""
    section = ReportSection("1. Cold fetch")
    floor = raw["floor"]
    section.text(
        "One object into an empty cache, and for `s3cache` also to `--copy-to`; s3cache hashes (SHA-256), fsyncs "
        "and keeps it, the peers write it once. `sync` before every run. The budget compares equal work: a verified fetch into "
        f"the cache (`{INTO_CACHE}`) with `{SAME_WORK}`, over TLS; the copy to `--copy-to` and the ratios over plain "
        "http are for comparison. The last ratios are to the better of the two plain `s5cmd` rows, for wall and CPU "
        "separately. "
        f"Starting `true` in the same way shows {spread(values(floor, 'wall'), 'ms')} of wall, "
        f"{spread(values(floor, 'cpu'), 'ms')} of CPU and {megabytes(median(values(floor, 'rss')))}: the lower bound "
        "of these figures."
    )
    for cell in raw["cells"]:
        clients = cell["clients"]
        where = f"{format_size(cell['size'])} over {'TLS 1.3' if cell['scheme'] == 'https' else 'http'}"
        rows = []
        unit = times([median(values(found, "wall")) for found in clients.values()])
        for name, found in clients.items():
            rows.append(row(section, name, found, clients, cell["scheme"] == "https", where, unit))
        section.table(
            where,
            [
                "client",
                "wall",
                "CPU",
                "peak RSS",
                "wall / same work",
                "CPU / same work",
                "wall / s5cmd",
                "CPU / s5cmd",
                "budget",
                "verdict",
            ],
            rows,
        )
        cpu = best(clients, "cpu")
        if raw.get("hash_rate") and cpu and cell["size"] > 1 << 20:
            alone = cell["size"] / raw["hash_rate"]
            section.text(
                f"SHA-256 alone, by OpenSSL on this processor, takes {alone * 1000:.0f} ms of CPU for "
                f"{format_size(cell['size'])}: "
                f"{alone / cpu:.2f}x of all that s5cmd uses, which verifies nothing."
            )
    # Older results have none.
    if "archive" in raw:
        archives.report(section, raw["archive"])
    return section


def row(section, name, found, clients, judged, where, unit):
    """One client's line."""
    wall, cpu, rss = (values(found, figure) for figure in ("wall", "cpu", "rss"))
    same = {figure: median(values(clients.get(SAME_WORK), figure)) for figure in ("wall", "cpu")}
    walls, cpus = ratio(median(wall), same["wall"]), ratio(median(cpu), same["cpu"])
    budget = verdict = "–"
    if name in OURS:
        what = f"`{name}`, {where}"
        checks = [section.check(f"{what}: peak RSS", max(rss, default=None), RSS, megabytes, "RSS")]
        budget = "RSS <= 24 MB"
        if judged and name == INTO_CACHE:
            checks = [
                section.check(f"{what}: wall", walls, WALL, times_of, "wall"),
                section.check(f"{what}: CPU", cpus, CPU, times_of, "CPU"),
            ] + checks
            budget = f"wall <= {WALL}x, CPU <= {CPU}x, RSS <= 24 MB"
        verdict = "; ".join(checks)
    return [
        f"`{name}`",
        section.failures(found) or spread(wall, unit),
        spread(cpu, unit),
        spread(rss, "MB"),
        times_of(walls),
        times_of(cpus),
        times_of(ratio(median(wall), best(clients, "wall"))),
        times_of(ratio(median(cpu), best(clients, "cpu"))),
        budget,
        verdict,
    ]


def times_of(value):
    """Formats a ratio."""
    return "–" if value is None else f"{value:.2f}x"


LIMITED = ("s3cache", "s5cmd", "s5cmd -p 8 -c 8", "curl")


def measure_limited(bench, peers):
    """Measures part 2."""
    size = bench.pick(256 << 20, 64 << 20)
    with origins.OriginServer(bench) as origin:
        clients = fetches(bench, peers, origin, "limited", size, LIMITED)
    return {"size": size, "limit": origins.LIMIT, "clients": clients}


def report_limited(raw):
    """Reports part 2."""
    section = ReportSection("2. An origin that limits each connection")
    limit = raw["limit"] / 2**20
    section.text(
        f"{format_size(raw['size'])} over http from nginx with `limit_rate 40m`, {limit:.0f} MiB/s for each connection, as "
        "S3 "
        "limits each connection. Each client chooses its number of connections. The budget is wall <= 1.0x of s5cmd's "
        "best."
    )
    rows = []
    for name, found in raw["clients"].items():
        wall = median(values(found, "wall"))
        walls = ratio(wall, best(raw["clients"], "wall"))
        rate = raw["size"] / 2**20 / wall if wall else None
        ours = name in OURS
        rows.append(
            [
                f"`{name}`",
                section.failures(found) or spread(values(found, "wall"), "s"),
                spread(values(found, "cpu"), "s"),
                f"{rate:.0f} MiB/s" if rate else "–",
                f"{rate / limit:.1f}" if rate else "–",
                times_of(walls),
                "wall <= 1.0x" if ours else "–",
                section.check("the limited origin: wall", walls, LIMITED_WALL, times_of) if ours else "–",
            ]
        )
    section.table(
        None,
        ["client", "wall", "CPU", "rate", "connections' worth", "wall / s5cmd", "budget", "verdict"],
        rows,
    )
    return section
