"""Turns raw results into RESULTS.md. Owns the format of figures, spreads and verdicts; the parts decide what is
measured, against which budget."""

import re

from .measure import median, quantile

UNITS = {"s": (1, "s", 2), "ms": (1000, "ms", 1), "MB": (1e-6, "MB", 1), "": (1, "", 0)}


def number(value, unit):
    """Formats a figure with its unit."""
    if value is None:
        return "–"
    scale, suffix, digits = UNITS[unit]
    return f"{value * scale:.{digits}f} {suffix}".strip()


def spread(samples, unit, middle=median):
    """The median and, in brackets, the smallest and the largest."""
    if not samples:
        return "–"
    scale, _, digits = UNITS[unit]
    low, high = min(samples) * scale, max(samples) * scale
    return f"{number(middle(samples), unit)} ({low:.{digits}f}..{high:.{digits}f})"


def quartiles(samples, unit):
    """The median and, in brackets, the quartiles: for differences, whose extremes are meaningless."""
    if not samples:
        return "–"
    scale, _, digits = UNITS[unit]
    low, high = quantile(samples, 0.25) * scale, quantile(samples, 0.75) * scale
    return f"{number(median(samples), unit)} (IQR {low:.{digits}f}..{high:.{digits}f})"


def times(medians):
    """The unit in which a table of times is readable."""
    known = [one for one in medians if one is not None]
    return "s" if known and min(known) >= 0.5 else "ms"


def megabytes(value):
    """Formats bytes in decimal megabytes."""
    return number(value, "MB")


def milliseconds(value):
    """Formats a short time."""
    return number(value, "ms")


class ReportSection:
    """One part of the report."""

    def __init__(self, title):
        self.title, self.blocks, self.missed = title, [], []

    def text(self, text):
        """Adds a paragraph."""
        self.blocks.append(text)

    def table(self, title, columns, rows):
        """Adds a table, with a line above it."""
        if title:
            self.blocks.append(f"**{title}**")
        lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
        self.blocks.append("\n".join(lines))

    def check(self, what, value, limit, show, label=""):
        """The verdict on a figure with an upper limit; a missed one is listed at the end."""
        label = f"{label} " if label else ""
        if value is None:
            self.missed.append(f"{what}: not measured, so not shown to keep {show(limit)}")
            return f"{label}not measured"
        if value <= limit:
            return f"{label}met"
        over = show(value - limit)
        if not any(digit in over for digit in "123456789"):
            over = f"less than the last digit of {show(limit)}"
        self.missed.append(f"{what}: {show(value)} against {show(limit)}, missed by {over}")
        return f"{label}missed by {over}"

    def skipped(self, what, raw):
        """Reports that something was not measured."""
        if raw is not None and "skipped" not in raw:
            return False
        why = raw["skipped"] if raw else "not part of this run"
        self.text(f"{what}: **skipped**, {why}.")
        self.missed.append(f"{what}: skipped, {why}")
        return True

    def failures(self, found):
        """Why a client has no figures, or fewer than expected."""
        if not found["failures"]:
            return None
        done, failed = len(found["samples"]), len(found["failures"])
        text = f"**failed** {failed} of {done + failed}: {found['failures'][-1]}"
        return f"{text}; else {spread([one['wall'] for one in found['samples']], 's')}" if done else text


HEAD = """\
# {title}

Written by `{script}` on {date}. All figures of a table come from one run on one machine, with the clients in
turn, in another order in each round. A figure is the median; in brackets are the smallest and the largest. Only ratios
within one table are comparable across machines. MB are 10^6 bytes, MiB are 2^20.

To reproduce: `{command}` (as root for the mounts and cgroups; `--help` lists the rest).
"""

QUICK = """
**This is a quick run**: small objects and few rounds. It shows that the benchmark works; its verdicts are meaningless.
"""


def render(title, script, results, sections):
    """Renders the chapter of one script."""
    command = script + (" --quick" if results["quick"] else "")
    text = [HEAD.format(title=title, script=script, date=results["date"], command=command)]
    if results["quick"]:
        text.append(QUICK)
    text.append("\n| machine | |\n|---|---|")
    text += [f"| {name} | {value} |" for name, value in results["machine"].items()]
    text.append("\n| program | version |\n|---|---|")
    text += [f"| {name} | {value} |" for name, value in results["versions"].items()]
    missed = []
    for part, section in sections.items():
        made = results["parts"][part]
        text.append(f"\n## {section.title}\n")
        text.append("\n\n".join(section.blocks))
        text.append(
            f"\nMeasured {made['date']} with `--rounds {made['rounds']}`, `{made['version']}`, load average before it "
            f"{made['load']}."
        )
        missed += [f"* {section.title.split('.')[0]}: {line}" for line in section.missed]
    text.append("\n## Missed budgets\n")
    text.append("\n".join(missed) if missed else "None.")
    return "\n".join(text) + "\n"


def put(page, chapter):
    """Replaces the chapter with the same title in the page."""
    title = chapter.partition("\n")[0]
    old = page.read_text() if page.exists() else ""
    chapters = re.split(r"^(?=# )", old, flags=re.M)
    kept = [one if one.partition("\n")[0] != title else chapter for one in chapters if one]
    if chapter not in kept:
        kept.append(chapter)
    page.write_text("\n".join(one.rstrip("\n") + "\n" for one in kept))
