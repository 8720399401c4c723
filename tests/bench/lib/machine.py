"""Describes the machine without its host name and paths, for publication."""

import os
import platform
import re


def anonymous(text, bench):
    """The text without the paths of this machine."""
    for path, word in ((bench.work, "WORK"), (bench.target, "TARGET"), (bench.repo, "REPO")):
        text = text.replace(str(path), word)
    return re.sub(r"(?<![\w:/.])/(?:root|home|opt|tmp|work|usr|var)/[^\s:'\"]*/", "", text)


def filesystem(path):
    """The type of the filesystem of a path, and its relevant options."""
    found = ("", "unknown")
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            _, place, kind, *_ = line.split()
            inside = os.path.commonpath([place, path]) == place
            if inside and len(place) >= len(found[0]):
                found = (place, kind)
    return found[1]


def describe(bench):
    """The machine, as rows of a table."""
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        model = re.search(r"^model name\s*:\s*(.+)$", info.read(), re.M)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": f"{os.cpu_count()}, shared by the servers and everything measured",
        "processor": model[1] if model else platform.machine(),
        "memory": f"{memory / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "filesystem": filesystem(bench.work),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "python": platform.python_version(),
    }
