"""The peer: follows the members of services and reloads HAProxy on each change, as Synapse does for a new server and
as a template tool does for every change, but without the second that Synapse sleeps between two polls. Run as
`follow.py ORDER`, a JSON file: hosts, services ({name: {path, port, options}}), head, config, socket, master, check
(whether `haproxy -c` runs first)."""

import json
import os
import subprocess
import sys
import threading
import time

from kazoo.client import KazooClient
from kazoo.exceptions import NoNodeError

# Run as a program, not as a part of the package of its directory.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from lib.front import reloads, section, send_command  # noqa: E402

# How many seconds a reload may take.
LIMIT = 5


def render(order, members):
    text = order["head"]
    for name, service in order["services"].items():
        if service["port"]:
            text += section(f"frontend {name}", [f"bind 127.0.0.1:{service['port']}", f"default_backend {name}"])
        known = members[name].values()
        servers = [f"server {one} {one} {service['options']}".rstrip() for one in sorted(known)]
        text += section(f"backend {name}", servers)
    return text


def follow(client, name, path, members, changed):
    """Keeps the members of one service; reads only new nodes."""

    @client.ChildrenWatch(path)
    def _(children):
        known = members[name]
        for child in set(known) - set(children):
            del known[child]
        for child in set(children) - set(known):
            try:
                data, _ = client.get(f"{path}/{child}")
            except NoNodeError:
                # Removed since the listing; another listing follows.
                continue
            endpoint = json.loads(data)["additionalEndpoints"]["http"]
            known[child] = f"{endpoint['host']}:{endpoint['port']}"
        changed.set()


def reload(master):
    """Reloads and waits for the new worker: the master loses commands while it re-executes itself."""
    before = reloads(master)
    send_command(master, "reload")
    limit = time.monotonic() + LIMIT
    while time.monotonic() < limit and reloads(master) in (None, before):
        time.sleep(0.005)


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        order = json.load(file)
    client = KazooClient(hosts=order["hosts"])
    client.start(timeout=30)
    members, changed = {name: {} for name in order["services"]}, threading.Event()
    for name, service in order["services"].items():
        follow(client, name, service["path"], members, changed)
    written = None
    while True:
        changed.wait()
        changed.clear()
        text = render(order, {name: dict(known) for name, known in members.items()})
        if text == written:
            continue
        candidate = order["config"] + ".tmp"
        with open(candidate, "w", encoding="utf-8") as file:
            file.write(text)
        if order["check"] and subprocess.run(["haproxy", "-c", "-q", "-f", candidate]).returncode:
            continue
        os.rename(candidate, order["config"])
        reload(order["master"])
        written = text


if __name__ == "__main__":
    main()
