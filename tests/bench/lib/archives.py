"""The cost of verifying an archive while it arrives: a tgz, beside the same bytes under a name that is not an
archive's, and beside tools that do the same work in sequence. A table of part 1."""

import os
import random
import shutil
import tarfile

from .measure import ProgramFailed, digest, median, ratio, sample, values
from .report import megabytes, spread, times

TGZ, BIN = "packed-1.2.3.tgz", "packed-1.2.3.bin"
OURS, UNCHECKED = "s3cache, a .tgz", "s3cache, the same bytes as a .bin"
SAME_WORK = "curl, then sha256sum and gzip -t"
RSS = 24e6


def pack(path, size):
    """Makes a tgz of about `size` bytes, which decompresses to twice as much, as hexadecimal digits do."""
    source = random.Random(1)
    plain = path.with_suffix(".plain")
    with open(plain, "w", encoding="ascii") as file:
        left = size
        while left > 0:
            left -= file.write(source.randbytes(1 << 19).hex()) // 2
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        archive.add(plain, "data")
    plain.unlink()
    os.sync()
    return path.stat().st_size, digest(path)


def measure(bench, peers, origin):
    """Measures all clients, interleaved."""
    size, sha256 = pack(origin.path(TGZ), bench.pick(256 << 20, 8 << 20))
    os.link(origin.path(TGZ), origin.path(BIN))
    try:
        return {"size": size, "clients": bench.interleave("a tgz", bench.rounds, clients(bench, peers, origin, sha256))}
    finally:
        origin.remove(TGZ, BIN)


def clients(bench, peers, origin, sha256):
    """A function for each row that fetches once and checks the result."""
    file = origin.path(TGZ)
    # `$0` is the target file; the command to fetch it follows.
    same_work = '"$@" && sha256sum "$0" && exec gzip -t <"$0"'

    def fetch(key, way):
        def once(number):
            place = bench.directory("fetch")
            out = place / "out"
            command, env = peers.clients(origin, "https", key, out, place / "cache")[way]
            if way == "curl":
                command = ["sh" if command[0] else None, "-c", same_work, out, *command]
            try:
                if not command[0]:
                    raise ProgramFailed("it is neither installed nor installable here")
                os.sync()
                outcome = bench.run(command, **env)
                kept = out if way == "curl" else bench.work / outcome["stdout"].strip()
                if number == 0 and digest(kept) != sha256:
                    raise ProgramFailed("left other bytes than the origin has")
                return sample(outcome)
            finally:
                shutil.rmtree(place)

        return once

    return {
        OURS: fetch(TGZ, "s3cache, prefetch only"),
        UNCHECKED: fetch(BIN, "s3cache, prefetch only"),
        SAME_WORK: fetch(TGZ, "curl"),
        "gzip -t": lambda _: sample(bench.run(["gzip", "-t", file])),
        "sha256sum": lambda _: sample(bench.run(["sha256sum", file])),
    }


def report(section, raw):
    """Adds the table to part 1."""
    found = raw["clients"]
    wall, cpu = ({name: median(values(one, figure)) for name, one in found.items()} for figure in ("wall", "cpu"))
    unit = times(list(wall.values()))
    rows = []
    for name, one in found.items():
        rss = max(values(one, "rss"), default=None)
        rows.append(
            [
                f"`{name}`",
                section.failures(one) or spread(values(one, "wall"), unit),
                spread(values(one, "cpu"), unit),
                spread(values(one, "rss"), "MB"),
                *(times_of(ratio(figure[name], figure[UNCHECKED])) for figure in (wall, cpu)),
                *(times_of(ratio(figure[name], figure[SAME_WORK])) for figure in (wall, cpu)),
                section.check("a .tgz: peak RSS", rss, RSS, megabytes, "RSS") if name == OURS else "–",
            ]
        )
    section.table(
        f"A tgz of {raw['size'] / 2**20:.0f} MiB over TLS 1.3, verified while it arrives",
        ["client", "wall", "CPU", "peak RSS", "wall / .bin", "CPU / .bin", "wall / same work", "CPU / same work", "verdict"],
        rows,
    )
    section.text(
        "An archive is decompressed and its checksums compared in a thread of its own, beside the one that hashes. The "
        "last two rows are these two alone, on a file that is in memory."
    )


def times_of(value):
    """Formats a ratio."""
    return "–" if value is None else f"{value:.2f}x"
