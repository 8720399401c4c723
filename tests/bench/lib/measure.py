"""Runs programs through the launcher, and computes statistics of samples. Owns the definition of a sample: wall, CPU,
peak memory."""

import contextlib
import hashlib
import marshal
import pathlib
import statistics
import subprocess
import sys


class ProgramFailed(Exception):
    """A program failed or left a wrong result; the text is its own message."""


class ProgramLauncher:
    """The client of launch.py."""

    def __init__(self, scratch):
        self.scratch = scratch

    def __enter__(self):
        script = pathlib.Path(__file__).with_name("launch.py")
        # Isolated and without site-packages: a third of the memory and of the start.
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self

    def __exit__(self, *_):
        # It ends its children before itself.
        self.process.terminate()
        self.process.wait()

    def batch(self, jobs):
        """Runs all jobs concurrently; returns their outcomes in the same order, failed or not."""
        for number, job in enumerate(jobs):
            job["stdout"] = str(self.scratch / f"{number}.out")
            job["stderr"] = str(self.scratch / f"{number}.err")
        asked = marshal.dumps(jobs)
        self.process.stdin.write(len(asked).to_bytes(4, "big") + asked)
        self.process.stdin.flush()
        head = self.process.stdout.read(4)
        if len(head) < 4:
            raise KeyboardInterrupt
        done = marshal.loads(self.process.stdout.read(int.from_bytes(head, "big")))
        for outcome, job in zip(done, jobs):
            outcome["stdout"] = pathlib.Path(job["stdout"]).read_text(errors="replace")
            outcome["error"] = None
            if outcome["exit"]:
                said = pathlib.Path(job["stderr"]).read_text(errors="replace") or outcome["stdout"]
                killed = f"killed by signal {-outcome['exit']}" if outcome["exit"] < 0 else f"exit {outcome['exit']}"
                outcome["error"] = " ".join(f"{killed}: {said}".split())[-400:]
        return done

    def run(self, job):
        """Runs one job; raises ProgramFailed with its message."""
        (outcome,) = self.batch([job])
        if outcome["error"]:
            raise ProgramFailed(outcome["error"])
        return outcome


def stop(process):
    """Ends a process (SIGTERM), and kills it after 20 s."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20)
    process.kill()
    process.wait()


def sample(outcome, **more):
    """The figures of an outcome."""
    return {name: outcome[name] for name in ("wall", "cpu", "rss")} | more


def digest(path):
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def values(result, name):
    """One figure of all samples of a client, for results that may be missing."""
    return [sample[name] for sample in (result or {}).get("samples", []) if name in sample]


def median(numbers):
    """The median, or None of no values."""
    return statistics.median(numbers) if numbers else None


def quantile(numbers, share):
    """The value that `share` of the numbers do not exceed (interpolated)."""
    if not numbers:
        return None
    ordered = sorted(numbers)
    place = (len(ordered) - 1) * share
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def ratio(ours, theirs):
    """The ratio of two medians, or None."""
    return ours / theirs if ours is not None and theirs else None
