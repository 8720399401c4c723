"""Part 8: how large the programs are."""

import struct

from .report import Section, megabytes

LIMIT = 10e6
# SHT_SYMTAB of elf(5).
SYMBOL_TABLE = 2


def measure(bench, peers):
    """Part 8."""
    found = {}
    for path in (peers.s3cache, peers.pexrun):
        found[path.name] = size(path)
        if not found[path.name]["stripped"]:
            # Built with symbols, for a profiler: what would be installed is smaller.
            copy = bench.work / path.name
            bench.run(["strip", "-s", "-o", copy, path])
            found[path.name] |= {"bytes": copy.stat().st_size}
    return found


def size(path):
    """The length of a program, and whether it is stripped: whether none of its ELF sections is a table of symbols."""
    content = path.read_bytes()
    (sections,) = struct.unpack_from("<Q", content, 0x28)
    length, count = struct.unpack_from("<HH", content, 0x3A)
    kinds = {struct.unpack_from("<I", content, sections + at * length + 4)[0] for at in range(count)}
    return {"bytes": len(content), "stripped": SYMBOL_TABLE not in kinds}


def report(raw):
    """Part 8, for people."""
    section = Section("8. Binaries")
    section.text("Release builds. The budget is that of `s3cache`; `pexrun` holds the same client and is held to it.")
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
