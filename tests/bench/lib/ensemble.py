"""A ZooKeeper of one server, and the members registered in it. Owns the format of a registration."""

import json
import logging
import pathlib
import shutil
import socket
import subprocess
import time

from .measure import ProgramFailed
from .world import MeasurementSkipped

JARS = "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-simple.jar"
ROOT = "/aurora/www-data/prod"
# How many creations are under way at once.
WINDOW = 1000


def free_port():
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def path_of(service):
    """The path of a service's members."""
    return f"{ROOT}/{service}"


def registration(host, port, shard=0):
    """The data that Aurora's executor writes."""
    endpoint = {"host": host, "port": port}
    more = {"aurora": endpoint, "http": endpoint}
    member = {"status": "ALIVE", "shard": shard, "serviceEndpoint": endpoint, "additionalEndpoints": more}
    return json.dumps(member).encode()


class ZookeeperEnsemble:
    """A running server with a client of our own; stopped when its context ends."""

    def __init__(self, bench):
        self.bench = bench

    def __enter__(self):
        try:
            from kazoo.client import KazooClient

            # Without a handler it reports on stderr that its connection ends.
            logging.getLogger("kazoo").addHandler(logging.NullHandler())
        except ImportError as error:
            raise MeasurementSkipped("python3-kazoo is not installed") from error
        if not pathlib.Path(JARS.split(":")[0]).exists():
            raise MeasurementSkipped("zookeeper is not installed")
        self.directory = self.bench.directory("zookeeper")
        self.port = free_port()
        config = self.directory / "zoo.cfg"
        config.write_text(
            f"tickTime=1000\ninitLimit=5\nsyncLimit=2\ndataDir={self.directory}\nclientPort={self.port}\n"
            "clientPortAddress=127.0.0.1\nadmin.enableServer=false\n4lw.commands.whitelist=*\nmaxClientCnxns=0\n"
        )
        java = ["java", "-Xmx512m", "-Xss256k", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        java += ["-Dzookeeper.forceSync=no", "-Djava.net.preferIPv4Stack=true", "-cp", f"{self.directory}:{JARS}"]
        java += ["org.apache.zookeeper.server.quorum.QuorumPeerMain", config]
        with open(self.directory / "log", "wb") as log:
            self.process = subprocess.Popen(java, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self.wait()
            self.client = KazooClient(hosts=self.hosts, timeout=20)
            self.client.start(timeout=30)
        except BaseException:
            self.__exit__()
            raise
        return self

    def wait(self):
        """Waits until the server answers."""
        limit = time.monotonic() + 60
        while self.ask("ruok") != "imok":
            if self.process.poll() is not None or time.monotonic() > limit:
                raise ProgramFailed("ZooKeeper does not start")
            time.sleep(0.1)

    def __exit__(self, *_):
        if client := getattr(self, "client", None):
            client.stop()
            client.close()
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def hosts(self):
        return f"127.0.0.1:{self.port}"

    def ask(self, word):
        """The server's reply to a four-letter word, or None."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=10) as asked:
                asked.sendall(word.encode())
                answer = b""
                while some := asked.recv(65536):
                    answer += some
        except OSError:
            return ""
        return answer.decode()

    def packets(self):
        """The number of packets that the server has received."""
        counters = dict(line.split(None, 1) for line in self.ask("mntr").splitlines() if "\t" in line)
        return int(counters["zk_packets_received"])

    def announce(self, service, host, port, shard=0):
        """Registers a member; returns a promise of its path."""
        made = self.client.create_async
        return made(f"{path_of(service)}/member_", registration(host, port, shard), ephemeral=True, sequence=True)

    def create(self, services):
        """Creates the paths of services."""
        for service in services:
            self.client.ensure_path(path_of(service))

    def fill(self, members):
        """Registers many members, given as (service, host, port, shard)."""
        pending = []
        for member in members:
            pending.append(self.announce(*member))
            if len(pending) == WINDOW:
                for promise in pending:
                    promise.get(timeout=60)
                pending.clear()
        for promise in pending:
            promise.get(timeout=60)
