"""Part 5: the program by itself: its size, its start, and its check of a large configuration."""

import json
import shutil

from . import scale, sizes
from .followers import SYNAPSE, available, program
from .measure import median, sample, values
from .report import ReportSection, megabytes, milliseconds, spread

SIZE, HELP, CHECK = 4e6, 0.010, 0.100


def measure(bench):
    """Measures part 5."""
    available(bench, SYNAPSE)
    binary, _ = program(bench)
    place = bench.directory("starts")
    order = place / "synapse.json"
    found = scale.static(bench)
    for service in found["services"].values():
        # A thousand services without their members: those are elsewhere in practice.
        del service["default_servers"][2:]
    order.write_text(json.dumps(found))
    peer = shutil.which("true")
    clients = {
        "help": lambda _: sample(bench.run([binary, "--help"])),
        "check": lambda _: sample(bench.run([binary, "-c", order, "--check"])),
        "true": lambda _: sample(bench.run([peer])),
    }
    raw = {"clients": bench.interleave("starts", 3 * bench.rounds, clients), "size": sizes.size(binary)}
    raw["services"] = len(found["services"])
    return raw


def report(raw):
    """Reports part 5."""
    section = ReportSection("5. Start, check, size")
    section.text("Compared with starting `true` in the same way, the lower bound of this measurement.")
    words = {
        "help": ("`synapse --help`", HELP, "<= 10 ms"),
        "check": (f"`synapse --check`, {raw['services']:,} services", CHECK, "<= 100 ms"),
        "true": ("`true`", None, "–"),
    }
    rows = []
    for name, (word, limit, budget) in words.items():
        found = raw["clients"][name]
        walls = values(found, "wall")
        verdict = section.check(word, median(walls), limit, milliseconds) if limit else "–"
        failed = section.failures(found)
        rows.append([word, failed or spread(walls, "ms"), spread(values(found, "rss"), "MB"), budget, verdict])
    size = raw["size"]["bytes"]
    verdict = section.check("the binary `synapse`", size, SIZE, megabytes)
    rows.append(["size of the binary", megabytes(size), "–", "<= 4 MB", verdict])
    section.table(None, ["what", "wall, or size", "peak RSS", "budget", "verdict"], rows)
    return section
