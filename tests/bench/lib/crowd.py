"""Parts 4 and 7: many processes that want the same artifacts at the same time. Owns starting them together, counting
what the origin sent for them, and the neighbour on the same disk."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import time

from .cold import show, times_of
from .measure import Failed, digest, median, quantile, ratio, values
from .origin import Origin
from .peers import QUIET
from .report import Section, number, spread
from .world import Skipped, measured

KEY = "crowd-1.2.3.bin"


def together(bench, jobs):
    """Runs jobs at the same time; the wall is from the first start to the last end."""
    outcomes = bench.launcher.batch(jobs)
    errors = [one["error"] for one in outcomes if one["error"]]
    if errors:
        raise Failed(f"{len(errors)} of {len(jobs)}: {errors[0]}")
    return outcomes, {
        "wall": max(one["began"] + one["wall"] for one in outcomes) - outcomes[0]["began"],
        "cpu": sum(one["cpu"] for one in outcomes),
        "rss": max(one["rss"] for one in outcomes),
    }


def counted(origin, key, run):
    """What a run cost, and what the origin sent for it."""
    mark = origin.mark()
    found = run()
    return found | origin.since(mark, key)


def measure(bench, peers):
    """Part 4."""
    size, count = bench.pick(256 << 20, 16 << 20), bench.pick(64, 16)
    with Origin(bench) as origin:
        sha256 = origin.object(KEY, size)

        def ours(processes, within, copies):
            def run(number):
                place = bench.directory("crowd", within)
                base = [peers.s3cache, origin.url(KEY), f"--cache-dir={place / 'cache'}", *QUIET]
                outs = [place / f"out.{one}" for one in range(processes)]
                jobs = [bench.job([*base, f"--copy-to={out}"] if copies else base) for out in outs]
                os.sync()
                try:
                    outcomes, found = together(bench, jobs)
                    if not copies:
                        outs = [pathlib.Path(one["stdout"].strip()) for one in outcomes]
                    if any(out.stat().st_size != size for out in outs):
                        raise Failed("not every process has all of it")
                    # All 64 would be 16 GiB to read; the others are the same blob, cloned.
                    if number == 0 and any(digest(out) != sha256 for out in set(outs[:3])):
                        raise Failed("left other bytes than the origin has")
                    return found
                finally:
                    shutil.rmtree(place)

            return lambda number: counted(origin, KEY, lambda: run(number))

        def curls(processes):
            def run():
                os.sync()
                jobs = [bench.job(["curl", "-sSf", "-o", "/dev/null", origin.url(KEY)]) for _ in range(processes)]
                return together(bench, jobs)[1]

            return lambda _: counted(origin, KEY, run)

        def on_xfs(bench):
            with bench.xfs() as place:
                client = {"copies": ours(count, place, True), "copy": ours(1, place, True)}
                return bench.interleave("crowd with copies on xfs", bench.rounds, client)

        clients = {
            "1 s3cache": ours(1, None, False),
            f"{count} s3cache": ours(count, None, False),
            "1 curl": curls(1),
            f"{count} curl": curls(count),
        }
        return {
            "size": size,
            "count": count,
            "clients": bench.interleave("crowd", bench.rounds, clients),
            "xfs": measured(bench, on_xfs),
        }


def report(raw):
    """Part 4, for people."""
    size, count = raw["size"], raw["count"]
    section = Section("4. Many processes, one artifact")
    section.text(
        f"{count} processes are started together on one artifact of {show(size)} and an empty cache, over http. "
        "`s3cache` without `--copy-to` ends when the artifact is in the cache, verified; `curl` writes to `/dev/null`. "
        "Bodies are the bytes the origin sent over the bytes of the artifact (its access log)."
    )
    rows = []
    found = dict(raw["clients"])
    if not section.skipped("The same with `--copy-to` on xfs", raw["xfs"]):
        found["1 s3cache --copy-to, xfs"] = raw["xfs"]["copy"]
        found[f"{count} s3cache --copy-to, xfs"] = raw["xfs"]["copies"]
    lone = {}
    for name, result in found.items():
        processes, program = name.split(" ", 1)
        wall = values(result, "wall")
        if processes == "1":
            lone[program] = median(wall)
        bodies = [sent / size for sent in values(result, "bytes")]
        ours = program.startswith("s3cache")
        rows.append(
            [
                f"{processes} x `{program}`",
                section.failures(result) or spread(wall, "ms"),
                times_of(ratio(median(wall), lone.get(program))),
                spread(values(result, "cpu"), "s"),
                spread(values(result, "rss"), "MB"),
                spread(values(result, "gets"), ""),
                f"{max(bodies):.3f}" if bodies else "–",
                spread(values(result, "other"), ""),
                "1 body" if ours else "–",
                section.check(f"{name}: bodies", max(bodies, default=None), 1, lambda value: f"{value:.3f}") if ours else "–",
            ]
        )
    section.table(
        None,
        ["processes", "wall", "wall / one", "CPU of all", "largest RSS", "GETs with bytes", "bodies (most)", "other requests", "budget", "verdict"],
        rows,
    )
    return section


@contextlib.contextmanager
def neighbour(bench):
    """A neighbour on the same filesystem; the list is filled with (when, how long) when the context ends."""
    seen = []
    script = pathlib.Path(__file__).with_name("neighbour.py")
    file = bench.work / "neighbour"
    process = subprocess.Popen([sys.executable, "-I", "-S", script, file], stdout=subprocess.PIPE, text=True)
    try:
        yield seen
    finally:
        process.terminate()
        said, _ = process.communicate()
        seen += [tuple(map(float, line.split())) for line in said.splitlines()]


def measure_tasks(bench, peers):
    """Part 7."""
    count, kinds, size = bench.pick(40, 10), bench.pick(8, 4), bench.pick(32 << 20, 4 << 20)
    keys = [f"task-1.2.{kind}.bin" for kind in range(kinds)]
    with Origin(bench) as origin, contextlib.ExitStack() as stack:
        digests = [origin.object(key, size) for key in keys]
        unlimited, slow = None, []
        try:
            slow = [str(stack.enter_context(bench.throttled(25)))]
        except Skipped as error:
            unlimited = str(error)

        def jobs(place, client, processes):
            for task in range(processes):
                out, url = place / f"out.{task}", origin.url(keys[task % kinds])
                job = bench.job(client(url, place / "cache", out))
                # The slow one is there first, and so leads the others that want the same.
                yield job | ({"cgroups": slow} if task == 0 and processes > 1 else {"delay": 0.05})

        def tasks(client, processes):
            def run(number):
                place = bench.directory("tasks")
                os.sync()
                mark = origin.mark()
                try:
                    with neighbour(bench) as seen:
                        time.sleep(bench.pick(2, 1))
                        began = time.monotonic()
                        outcomes, found = together(bench, list(jobs(place, client, processes)))
                        ended = time.monotonic()
                    for task in range(processes):
                        if number == 0 and digest(place / f"out.{task}") != digests[task % kinds]:
                            raise Failed("left other bytes than the origin has")
                    return found | origin.since(mark, "task-*.bin") | {
                        "walls": [one["wall"] for one in outcomes],
                        "before": [took for when, took in seen if when + took < began],
                        "during": [took for when, took in seen if when + took >= began and when <= ended],
                    }
                finally:
                    shutil.rmtree(place)

            return run

        def ours(url, cache, out):
            return [peers.s3cache, url, f"--cache-dir={cache}", f"--copy-to={out}", *QUIET]

        def curl(url, _, out):
            return ["curl", "-sSf", "-o", out, url]

        clients = {"lone": tasks(ours, 1), "s3cache": tasks(ours, count), "lone curl": tasks(curl, 1), "curl": tasks(curl, count)}
        found = bench.interleave("tasks", bench.rounds, clients)
    return {"count": count, "kinds": kinds, "size": size, "unlimited": unlimited, "clients": found}


def report_tasks(raw):
    """Part 7, for people."""
    section = Section("7. Tasks that start together")
    count, kinds, size = raw["count"], raw["kinds"], raw["size"]
    section.text(
        f"{count} tasks want {kinds} artifacts of {show(size)}, each with `--copy-to`, 50 ms after the first of them, "
        "which has a quarter of a CPU and so is a slow leader. The same with `curl` for contrast. A neighbour writes and "
        "fsyncs 4 KiB every 20 ms on the same filesystem."
    )
    if raw["unlimited"]:
        section.text(f"The leader is not slowed down here: {raw['unlimited']}.")
    rows, felt = [], []
    idle = []
    for name, lone in (("s3cache", "lone"), ("curl", "lone curl")):
        result = raw["clients"][name]
        alone = median(values(raw["clients"][lone], "wall"))
        walls = flat(values(result, "walls"))
        leaders = [one[0] for one in values(result, "walls")]
        bodies = [sent / (kinds * size) for sent in values(result, "bytes")]
        ours = name == "s3cache"
        rows.append(
            [
                f"{count} x `{name}`",
                section.failures(result) or number(median(walls), "ms"),
                number(quantile(walls, 0.99), "ms"),
                spread(leaders, "ms"),
                number(alone, "ms"),
                times_of(ratio(median(walls), alone)),
                times_of(ratio(quantile(walls, 0.99), alone)),
                f"{max(bodies):.3f}" if bodies else "–",
                "1 body each" if ours else "–",
                section.check("tasks: bodies of each artifact", max(bodies, default=None), 1, lambda value: f"{value:.3f}") if ours else "–",
            ]
        )
        idle += flat(values(result, "before"))
        felt.append([f"{count} x `{name}`", flat(values(result, "during"))])
    section.table(
        None,
        ["tasks", "wall p50", "p99", "the leader", "a lone fetch", "p50 / lone", "p99 / lone", "bodies of each (most)", "budget", "verdict"],
        rows,
    )
    section.table(
        "What the neighbour's write and fsync take",
        ["beside", "p50", "p99", "longest", "writes"],
        [
            [name, number(median(took), "ms"), number(quantile(took, 0.99), "ms"), number(max(took, default=None), "ms"), len(took)]
            for name, took in [["nothing", idle], *felt]
        ],
    )
    return section


def flat(lists):
    """One list of all."""
    return [one for some in lists for one in some]
