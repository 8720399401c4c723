"""Part 4: many processes that fetch the same artifact concurrently. Owns their joint start and the count of bytes
that the origin sent."""

import os
import pathlib
import shutil

from .cold import format_size, times_of
from .measure import ProgramFailed, digest, median, ratio, values
from .origin import OriginServer
from .peers import QUIET
from .report import ReportSection, spread
from .world import measured

KEY = "crowd-1.2.3.bin"


def together(bench, jobs):
    """Runs jobs concurrently; the wall time is from the first start to the last end."""
    outcomes = bench.launcher.batch(jobs)
    errors = [one["error"] for one in outcomes if one["error"]]
    if errors:
        raise ProgramFailed(f"{len(errors)} of {len(jobs)}: {errors[0]}")
    return outcomes, {
        "wall": max(one["began"] + one["wall"] for one in outcomes) - outcomes[0]["began"],
        "cpu": sum(one["cpu"] for one in outcomes),
        "rss": max(one["rss"] for one in outcomes),
    }


def measure(bench, peers):
    """Measures part 4."""
    size, count = bench.pick(256 << 20, 16 << 20), bench.pick(64, 16)
    with OriginServer(bench) as origin:
        sha256 = origin.object(KEY, size)

        def ours(processes, within, copies):
            def run(number):
                mark = origin.mark()
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
                        raise ProgramFailed("not every process has all of it")
                    # All 64 would be 16 GiB to read; the others are clones of the same blob.
                    if number == 0 and any(digest(out) != sha256 for out in set(outs[:3])):
                        raise ProgramFailed("left other bytes than the origin has")
                    return found | origin.since(mark, KEY)
                finally:
                    shutil.rmtree(place)

            return run

        def curls(processes):
            def run(_):
                mark = origin.mark()
                os.sync()
                jobs = [bench.job(["curl", "-sSf", "-o", "/dev/null", origin.url(KEY)]) for _ in range(processes)]
                return together(bench, jobs)[1] | origin.since(mark, KEY)

            return run

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
    """Reports part 4."""
    size, count = raw["size"], raw["count"]
    section = ReportSection("4. Many processes, one artifact")
    section.text(
        f"{count} processes are started together on one artifact of {format_size(size)} and an empty cache, over http. "
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
        verdict = section.check(f"{name}: bodies", max(bodies, default=None), 1, str) if ours else "–"
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
                verdict,
            ]
        )
    columns = ["processes", "wall", "wall / one", "CPU of all", "largest RSS", "GETs with bytes", "bodies (most)"]
    section.table(None, [*columns, "other requests", "budget", "verdict"], rows)
    return section
