"""Part 7: tasks that start together, some of them on the same artifacts, behind a slow leader. Owns the neighbour on
the same disk."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import time

from .cold import format_size, times_of
from .crowd import together
from .measure import ProgramFailed, digest, median, quantile, ratio, values
from .origin import OriginServer
from .peers import QUIET
from .report import ReportSection, number, spread
from .world import MeasurementSkipped


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


def measure(bench, peers):
    """Measures part 7."""
    count, kinds, size = bench.pick(40, 10), bench.pick(8, 4), bench.pick(32 << 20, 4 << 20)
    keys = [f"task-1.2.{kind}.bin" for kind in range(kinds)]
    with OriginServer(bench) as origin, contextlib.ExitStack() as stack:
        digests = [origin.object(key, size) for key in keys]
        unlimited, slow = None, []
        try:
            slow = [str(stack.enter_context(bench.throttled(25)))]
        except MeasurementSkipped as error:
            unlimited = str(error)

        def jobs(place, client, processes):
            for task in range(processes):
                out, url = place / f"out.{task}", origin.url(keys[task % kinds])
                job = bench.job(client(url, place / "cache", out))
                # The slow one starts first, and so leads the others that fetch the same.
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
                            raise ProgramFailed("left other bytes than the origin has")
                    felt = {
                        "before": [took for when, took in seen if when + took < began],
                        "during": [took for when, took in seen if when + took >= began and when <= ended],
                    }
                    walls = [one["wall"] for one in outcomes]
                    return found | origin.since(mark, "task-*.bin") | felt | {"walls": walls}
                finally:
                    shutil.rmtree(place)

            return run

        def ours(url, cache, out):
            return [peers.s3cache, url, f"--cache-dir={cache}", f"--copy-to={out}", *QUIET]

        def curl(url, _, out):
            return ["curl", "-sSf", "-o", out, url]

        clients = {
            "lone": tasks(ours, 1),
            "s3cache": tasks(ours, count),
            "lone curl": tasks(curl, 1),
            "curl": tasks(curl, count),
        }
        found = bench.interleave("tasks", bench.rounds, clients)
    return {"count": count, "kinds": kinds, "size": size, "unlimited": unlimited, "clients": found}


def report(raw):
    """Reports part 7."""
    section = ReportSection("7. Tasks that start together")
    count, kinds, size = raw["count"], raw["kinds"], raw["size"]
    section.text(
        f"{count} tasks fetch {kinds} artifacts of {format_size(size)}, each with `--copy-to`, 50 ms after the first of "
        "them, "
        "which has a quarter of a CPU and so is a slow leader. The same with `curl` for contrast. A neighbour writes "
        "and fsyncs 4 KiB every 20 ms on the same filesystem."
    )
    if raw["unlimited"]:
        section.text(f"The leader is not slowed down here: {raw['unlimited']}.")
    rows, felt, idle = [], [], []
    for name, lone in (("s3cache", "lone"), ("curl", "lone curl")):
        result = raw["clients"][name]
        alone = median(values(raw["clients"][lone], "wall"))
        walls = flat(values(result, "walls"))
        leaders = [one[0] for one in values(result, "walls")]
        bodies = [sent / (kinds * size) for sent in values(result, "bytes")]
        ours = name == "s3cache"
        verdict = section.check("tasks: bodies of each artifact", max(bodies, default=None), 1, str) if ours else "–"
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
                verdict,
            ]
        )
        idle += flat(values(result, "before"))
        felt.append([f"{count} x `{name}`", flat(values(result, "during"))])
    columns = ["tasks", "wall p50", "p99", "the leader", "a lone fetch", "p50 / lone", "p99 / lone", "bodies of each"]
    section.table(None, [*columns, "budget", "verdict"], rows)
    section.table(
        "Time of the neighbour's write and fsync",
        ["beside", "p50", "p99", "longest", "writes"],
        [
            [name, *(number(quantile(took, share), "ms") for share in (0.5, 0.99, 1)), len(took)]
            for name, took in [["nothing", idle], *felt]
        ],
    )
    return section


def flat(lists):
    """Flattens a list."""
    return [one for some in lists for one in some]
