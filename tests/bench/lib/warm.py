"""Parts 3 and 5: a cached artifact, beside the cost of copying it, and in a cache that holds 100,000 others. Owns the
filling of that cache, which follows the layout documented in s3cache's cache/share.rs."""

import hashlib
import json
import os
import re
import shutil
import time

from .cold import format_size
from .measure import ProgramFailed, digest, median, quantile, ratio, sample, values
from .origin import BUCKET, OriginServer
from .peers import QUIET
from .report import ReportSection, milliseconds, number, quartiles, spread
from .world import PATH, MeasurementSkipped, measured

ALLOWED = 0.003
KEY = "warm-1.2.3.bin"


def measure(bench, peers):
    """Measures part 3."""
    size = bench.pick(256 << 20, 32 << 20)
    with OriginServer(bench) as origin:
        sha256 = origin.object(KEY, size)

        def on_xfs(bench):
            with bench.xfs() as place:
                return hits(bench, peers, origin, sha256, place, "xfs")

        return {
            "size": size,
            "disk": hits(bench, peers, origin, sha256, bench.directory("warm"), "disk"),
            "xfs": measured(bench, on_xfs),
            "sockets": measured(bench, lambda bench: sockets(bench, peers, origin)),
        }


def hits(bench, peers, origin, sha256, place, what):
    """Copies of a cached artifact by s3cache and of its blob by cp, both below `place`."""
    ours = [peers.s3cache, origin.url(KEY), f"--cache-dir={place / 'cache'}", *QUIET]
    blob = bench.run(ours)["stdout"].strip()

    def client(command, out):
        def copy(number):
            out.unlink(missing_ok=True)
            # Dirty pages of the last copy would slow down the next one.
            os.sync()
            outcome = bench.run(command)
            if number == 0 and digest(out) != sha256:
                raise ProgramFailed("left other bytes than the origin has")
            return sample(outcome, round=number)

        return copy

    one, two = place / "one", place / "two"
    # The difference is a few ms between two copies that may take a hundred: more rounds than elsewhere.
    found = bench.interleave(
        f"warm, {what}",
        3 * bench.rounds,
        {
            "s3cache": client([*ours, f"--copy-to={one}"], one),
            "cp --reflink=auto": client(["cp", "--reflink=auto", blob, two], two),
        },
    )
    for out in (one, two):
        out.unlink(missing_ok=True)
    return found


def sockets(bench, peers, origin):
    """How many sockets a warm hit opens, and a fetch as proof that they are counted: over http, and from S3 where a
    profile names the service, which is part of the cache key."""
    if not shutil.which("strace", path=PATH):
        raise MeasurementSkipped("strace is not installed")
    place = bench.directory("sockets")
    config, out = place / "config", place / "out"
    config.write_text(f"[profile bench]\nendpoint_url = {origin.endpoint('http')}\n")
    sources = {
        "http": [origin.url(KEY)],
        "s3": [f"s3://{BUCKET}/{KEY}", "--profile=bench", "--no-sign-request"],
    }
    counts = {}
    for scheme, source in sources.items():
        counts[scheme] = {}
        for name in ("fetch", "hit"):
            trace = place / name
            command = ["strace", "-f", "-qq", "-e", "trace=%network", "-o", trace, peers.s3cache, *source]
            command += [f"--cache-dir={place / 'cache'}", f"--copy-to={out}", *QUIET]
            bench.run(command, AWS_CONFIG_FILE=str(config))
            counts[scheme][name] = len(re.findall(r"\bsocket\(", trace.read_text()))
    shutil.rmtree(place)
    return counts


def differences(found, ours, theirs):
    """Ours less theirs, round by round, so that a disturbance of a round affects neither."""
    peer = {one["round"]: one["wall"] for one in found[theirs]["samples"]}
    return [one["wall"] - peer[one["round"]] for one in found[ours]["samples"] if one["round"] in peer]


def report(raw):
    """Reports part 3."""
    section = ReportSection("3. Warm hit")
    section.text(
        f"A cached, immutable name of {format_size(raw['size'])} to `--copy-to`, beside `cp --reflink=auto` of the "
        "blob. "
        "`sync` before every run, three times as many rounds as elsewhere. The difference is the median of the "
        "differences within each round."
    )
    rows = []
    for name, where in (("disk", "the machine's disk"), ("xfs", "xfs with reflinks (loop)")):
        found = raw[name]
        if section.skipped(f"The warm hit on {where}", found):
            continue
        ours, cp = found["s3cache"], found["cp --reflink=auto"]
        apart = differences(found, "s3cache", "cp --reflink=auto")
        rows.append(
            [
                where,
                section.failures(ours) or spread(values(ours, "wall"), "ms"),
                section.failures(cp) or spread(values(cp, "wall"), "ms"),
                quartiles(apart, "ms"),
                "<= 3 ms",
                section.check(f"the warm hit on {where}", median(apart), ALLOWED, milliseconds),
            ]
        )
    section.table(None, ["filesystem", "`s3cache`", "`cp`", "difference", "budget", "verdict"], rows)
    counts = raw["sockets"]
    if not section.skipped("Sockets of a warm hit", counts):
        rows = []
        for scheme, where in (("http", "over http"), ("s3", "from S3, named by a profile")):
            count = counts[scheme]
            verdict = section.check(f"sockets opened by a warm hit {where}", count["hit"], 0, str)
            rows.append([f"warm hit {where}", count["hit"], "0", verdict])
            rows.append([f"cold fetch {where}, to show that they are counted", count["fetch"], "–", "–"])
        section.table("Sockets opened (strace)", ["run", "socket(2)", "budget", "verdict"], rows)
    return section


def measure_large(bench, peers):
    """Measures part 5."""
    entries = bench.pick(100_000, 5_000)
    with OriginServer(bench) as origin:
        origin.object(KEY, 1 << 20)
        caches = {"almost empty": bench.directory("cache"), "large": bench.directory("cache")}
        out = bench.work / "large.out"
        for cache in caches.values():
            bench.run([peers.s3cache, origin.url(KEY), f"--cache-dir={cache}", *QUIET])
        bench.log(f"  filling a cache with {entries} entries")
        filler = fill(caches["large"], entries)
        check = bench.run([peers.s3cache, filler, f"--cache-dir={caches['large']}", "--offline", *QUIET])
        if not check["stdout"].strip().endswith(".bin"):
            raise ProgramFailed("s3cache does not see what was put into the cache: its layout has changed")

        def client(cache, fetch):
            def run(number):
                # Another query is another source, which is not cached yet.
                url = origin.url(KEY) + (f"?{number}" if fetch else "")
                return sample(bench.run([peers.s3cache, url, f"--cache-dir={cache}", f"--copy-to={out}", *QUIET]))

            return run

        os.sync()
        again = {name: client(cache, False) for name, cache in caches.items()}
        anew = {name: client(cache, True) for name, cache in caches.items()}
        return {
            "entries": entries,
            "hit": bench.interleave("large cache, hits", bench.pick(500, 50), again),
            "fetch": bench.interleave("large cache, fetches", bench.pick(100, 10), anew),
        }


def fill(cache, entries):
    """Adds entries to the caller's part of a cache without fetching them: empty blobs, because they are never read.
    Returns the source of the last one."""
    share = cache / str(os.geteuid())
    index, blobs = share / "index/v1", share / "blobs"
    name = "filler-1.2.3.bin"
    for at in range(entries):
        source = f"http://127.0.0.1:1/{at}/{name}"
        key = hashlib.sha256(source.encode()).hexdigest()
        sha256 = hashlib.sha256(key.encode()).hexdigest()
        folder = blobs / sha256[:2] / sha256
        folder.mkdir(parents=True, mode=0o755)
        os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY, 0o555))
        found = os.stat(folder / name)
        entry = {
            "source": source,
            "name": name,
            "sha256": sha256,
            "size": 0,
            "etag": None,
            "fetched": int(time.time()),
            "fetch_id": f"bench-{at}",
            "vouched": None,
            "stamp": {
                "size": 0,
                "mtime": list(divmod(found.st_mtime_ns, 10**9)),
                "ctime": list(divmod(found.st_ctime_ns, 10**9)),
                "inode": found.st_ino,
            },
        }
        (index / key[:2]).mkdir(exist_ok=True, mode=0o755)
        (index / key[:2] / key).write_text(json.dumps(entry))
    return source


def report_large(raw):
    """Reports part 5."""
    section = ReportSection("5. A large cache")
    section.text(
        f"A cache with {raw['entries']:,} entries beside one with a single entry: a warm hit, and a fetch, of 1 MiB, "
        "both with `--copy-to`. There is no budget; the number of entries should not matter."
    )
    rows = []
    for what, word in (("hit", "warm hit"), ("fetch", "fetch")):
        walls = {name: values(found, "wall") for name, found in raw[what].items()}
        for name, found in raw[what].items():
            wall = walls[name]
            rows.append(
                [
                    f"{word}, {name} cache (n = {len(wall)})",
                    section.failures(found) or spread(wall, "ms"),
                    number(quantile(wall, 0.99), "ms"),
                    compared(wall, walls["almost empty"], 0.5),
                    compared(wall, walls["almost empty"], 0.99),
                ]
            )
    section.table(None, ["what", "wall p50", "p99", "p50 / almost empty", "p99 / almost empty"], rows)
    return section


def compared(ours, theirs, share):
    """The ratio of two quantiles."""
    found = ratio(quantile(ours, share), quantile(theirs, share))
    return "–" if found is None else f"{found:.2f}x"
