"""Part 3: a thousand services with a hundred members each. Owns the ensemble that holds them and the parsing,
rendering, memory and first synchronisation of all of it."""

import json
import shutil
import subprocess
import time

from .ensemble import ZookeeperEnsemble, free_port
from .followers import SYNAPSE, FollowerProcess, available
from .front import HaproxyFront
from .measure import ProgramFailed, median
from .report import ReportSection, megabytes, milliseconds, number, spread
from .world import measured

HOOK = "bench_synapse"
# How many tasks a host has.
TASKS = 50
BUDGETS = {"full": 0.060, "single": 0.002, "parse": 0.150}
WORDS = {
    "parse": "parse of a configuration of 6 MB",
    "full": "full render",
    "single": "render after a change of one service",
}
MEMORY, IDLE, SYNC = 40e6, 6e6, 2.0
# Synapse 0.18.9 on the reference page.
REFERENCE = {"parse": "4.3 s", "full": "3.7 s", "single": "1.0 s", "most": "328 MB", "idle": "19.8 MB"}


def measure(bench):
    """Measures part 3."""
    return {
        "render": measured(bench, render),
        "idle": measured(bench, idle),
        "sync": measured(bench, sync),
        "services": services_of(bench),
        "members": members_of(bench),
    }


def services_of(bench):
    return bench.pick(1000, 20)


def members_of(bench):
    return bench.pick(100, 10)


def render(bench):
    """Seconds of the pure parts, measured in process."""
    available(bench, SYNAPSE)
    hook = bench.target / "release" / HOOK
    command = ["cargo", "build", "--release", "-p", "hostkit-tests", "--features", "bench", "--bin", HOOK]
    if subprocess.run(command, cwd=bench.repo).returncode:
        raise ProgramFailed(f"{HOOK} cannot be built")
    place = bench.directory("render")
    order = place / "synapse.json"
    # In lines, as people and programs write it.
    order.write_text(json.dumps(static(bench), indent=1))
    said = bench.run([hook, order, bench.rounds])["stdout"]
    shutil.rmtree(place)
    return json.loads(said)


def static(bench):
    """All services and members in one configuration, as a static list."""
    lines = {"global": ["maxconn 2000"], "defaults": ["mode http", "timeout connect 1s"]}
    haproxy = lines | {"config_file_path": "haproxy.cfg", "do_socket": False, "do_reloads": False}

    def service(at):
        endpoints = (member(bench, at, shard) for shard in range(members_of(bench)))
        members = [{"host": host, "port": port} for host, port in endpoints]
        return {"discovery": {"method": "base"}, "default_servers": members, "haproxy": {"port": 10000 + at}}

    return {"services": {f"service{at}": service(at) for at in range(services_of(bench))}, "haproxy": haproxy}


def member(bench, service, shard):
    """A unique endpoint: hosts have fifty tasks each, and a service no two on one."""
    at = service * members_of(bench) + shard
    hosts = max(1, services_of(bench) * members_of(bench) // TASKS)
    number = at % hosts
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 31000 + at // hosts


def idle(bench):
    """Resident bytes with two services of two members each."""
    available(bench, SYNAPSE)
    services = {name: {"port": free_port(), "options": "", "probe": "none", "slots": 8} for name in ("one", "two")}
    with ZookeeperEnsemble(bench) as ensemble, HaproxyFront(bench) as front:
        ensemble.create(services)
        ensemble.fill((name, *member(bench, 0, shard), shard) for name in services for shard in range(2))
        with FollowerProcess(bench, SYNAPSE, ensemble, front, services) as follower:
            follower.until("both services", lambda: len(front.live("two")) == 2, pause=0.05)
            time.sleep(bench.pick(10, 1))
            return follower.memory()


def sync(bench):
    """Seconds from the start until the file holds all members; requests to ZooKeeper; memory. HAProxy is not
    controlled: it would need more of the machine than all of this."""
    available(bench, SYNAPSE)
    names = [f"service{at}" for at in range(services_of(bench))]
    services = {name: {"port": 10000 + at, "options": "", "probe": "none"} for at, name in enumerate(names)}
    count = len(names) * members_of(bench)
    with ZookeeperEnsemble(bench) as ensemble, HaproxyFront(bench) as front:
        bench.log(f"  announcing {count} members")
        ensemble.create(services)
        shards = range(members_of(bench))
        ensemble.fill((name, *member(bench, at, shard), shard) for at, name in enumerate(names) for shard in shards)
        packets, began = ensemble.packets(), time.perf_counter()
        away = {"do_socket": False, "do_reloads": False}
        with FollowerProcess(bench, SYNAPSE, ensemble, front, services, **away) as follower:
            done = follower.until("all members", lambda: written(front.config) >= count, limit=120, pause=0.02)
            packets = ensemble.packets() - packets
            time.sleep(bench.pick(10, 1))
            again = ensemble.packets()
            changed = follower.memory()
            began_change = time.perf_counter()
            ensemble.announce(names[0], "10.255.255.1", 31000).get(timeout=30)
            seen = follower.until("one more", lambda: written(front.config) > count, pause=0.001)
            time.sleep(1)
            return {
                "seconds": done - began,
                "packets": packets,
                "change": seen - began_change,
                # Without our own.
                "change_packets": ensemble.packets() - again - 1,
                "file": front.config.stat().st_size,
                **changed,
            }


def written(path):
    """The number of members in a configuration: their addresses are in a network of their own."""
    return path.read_bytes().count(b" 10.")


def report(raw):
    """Reports part 3."""
    section = ReportSection(f"3. {raw['services']:,} services with {raw['members']} members each")
    section.text(
        "In process, from a list of members in the configuration; `sync` follows as many znodes of a real ZooKeeper. "
        "The column on the right is from the reference, **not this run**: Synapse 0.18.9 on another day."
    )
    columns = ["what", "found", "budget", "verdict", "Synapse, from the reference"]
    rows = []
    if not section.skipped("Parsing and rendering", raw["render"]):
        for name, limit in BUDGETS.items():
            took = raw["render"][name]
            verdict = section.check(WORDS[name], median(took), limit, milliseconds)
            rows.append([WORDS[name], spread(took, "ms"), f"<= {limit * 1000:.0f} ms", verdict, REFERENCE[name]])
    if not section.skipped("Memory with two services", raw["idle"]):
        found = raw["idle"]["now"]
        verdict = section.check("memory with two services", found, IDLE, megabytes)
        rows.append(["resident, two services", megabytes(found), "<= 6 MB", verdict, REFERENCE["idle"]])
    if not section.skipped("Following all of it", raw["sync"]):
        found = raw["sync"]
        verdict = section.check("memory with all services", found["most"], MEMORY, megabytes)
        rows.append(["resident at most, all services", megabytes(found["most"]), "<= 40 MB", verdict, REFERENCE["most"]])
        verdict = section.check("first synchronisation", found["seconds"], SYNC, lambda one: number(one, "s"))
        rows.append(["start to a complete file", number(found["seconds"], "s"), "<= 2 s", verdict, "–"])
        rows.append(["requests to ZooKeeper for it", f"{found['packets']:,}", "–", "–", "–"])
        rows.append(["one more member to a complete file", number(found["change"], "ms"), "–", "–", "–"])
        rows.append(["requests to ZooKeeper for that, pings among them", found["change_packets"], "–", "–", "–"])
    section.table(None, columns, rows)
    return section
