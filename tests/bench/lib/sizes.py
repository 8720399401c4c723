"""Part 8: the size of the programs."""

import struct

from .report import ReportSection, megabytes

LIMIT = 10e6
# SHT_SYMTAB of elf(5).
SYMBOL_TABLE = 2


def measure(bench, peers):
    """Measures part 8."""
    found = {}
    for path in (peers.s3cache, peers.pexrun):
        found[path.name] = size(path)
        if not found[path.name]["stripped"]:
            # Built with symbols for a profiler: the installed one is smaller.
            copy = bench.work / path.name
            bench.run(["strip", "-s", "-o", copy, path])
            found[path.name] |= {"bytes": copy.stat().st_size}
    return found


def size(path):
    """The length of a program, and whether it is stripped: whether none of its ELF sections is a symbol table."""
    content = path.read_bytes()
    (sections,) = struct.unpack_from("<Q", content, 0x28)
    length, count = struct.unpack_from("<HH", content, 0x3A)
    kinds = {struct.unpack_from("<I", content, sections + at * length + 4)[0] for at in range(count)}
    return {"bytes": len(content), "stripped": SYMBOL_TABLE not in kinds}


def report(raw):
    """Reports part 8."""
    section = ReportSection("8. Binaries")
    section.text("Release builds. The budget is that of `s3cache`; `pexrun` contains the same client and has the same budget.")
    rows = [
        [
            f"`{name}`",
            megabytes(found["bytes"]),
            "as built" if found["stripped"] else "for this table; it was built with symbols",
            "<= 10 MB",
            section.check(f"the binary `{name}`", found["bytes"], LIMIT, megabytes),
        ]
        for name, found in raw.items()
    ]
    section.table(None, ["program", "size", "stripped", "budget", "verdict"], rows)
    return section
