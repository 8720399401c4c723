"""A program that shares the disk: writes 4 KiB and fsyncs it every 20 ms, and records the time of each. Run as
`neighbour.py FILE`; runs until SIGTERM, then prints one line per write: start (CLOCK_MONOTONIC) and duration."""

import os
import signal
import sys
import time

PERIOD = 0.020
BLOCK = b"\x2a" * 4096
BLOCKS = 256


def main():
    seen = []
    running = True

    def stop(*_):
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, stop)
    file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o644)
    due = time.monotonic()
    while running:
        time.sleep(max(0, due - time.monotonic()))
        began = time.monotonic()
        os.pwrite(file, BLOCK, len(seen) % BLOCKS * len(BLOCK))
        os.fsync(file)
        ended = time.monotonic()
        seen.append((began, ended - began))
        # Paced, not a flood: missed writes are not repeated.
        due = max(due + PERIOD, ended)
    sys.stdout.writelines(f"{began:.6f} {took:.6f}\n" for began, took in seen)


if __name__ == "__main__":
    main()
