"""The origin: Debian's nginx over a directory, plain, over TLS 1.3, and limited per connection. Owns the
certificates, the objects, and the access log."""

import os
import pathlib
import socket
import subprocess
import time

from .measure import ProgramFailed, digest
from .world import PATH

BUCKET = "bucket"
# The rate of one connection to the limited origin (bytes per second).
LIMIT = 40 << 20

CONFIGURATION = """\
daemon off;
{user}
worker_processes auto;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    log_format bench '$request_method $uri $status $body_bytes_sent';
    access_log access.log bench;
    default_type application/octet-stream;
    sendfile on;
    keepalive_requests 1000000;
    root {root};
    server {{ listen 127.0.0.1:{http}; }}
    server {{
        listen 127.0.0.1:{https} ssl;
        ssl_certificate leaf.pem;
        ssl_certificate_key leaf.key;
        ssl_protocols TLSv1.3;
    }}
    server {{
        listen 127.0.0.1:{limited};
        limit_rate {limit};
        # With the default of 2m the last piece of every answer goes out unlimited, which favours small ranges.
        sendfile_max_chunk 256k;
    }}
}}
"""


class OriginServer:
    """A running nginx."""

    def __init__(self, bench):
        self.bench = bench
        self.prefix = bench.directory("nginx")
        self.root = self.prefix / "root"
        (self.root / BUCKET).mkdir(parents=True)
        self.ca = self.prefix / "ca.pem"

    def __enter__(self):
        certificates(self.prefix, self.bench)
        for _ in range(5):
            if self._start():
                return self
        raise ProgramFailed(f"nginx does not start: {(self.prefix / 'error.log').read_text()[-400:]}")

    def __exit__(self, *_):
        # Its master ends the workers.
        self.process.terminate()
        self.process.wait()

    def _start(self):
        self.http, self.https, self.limited = free_ports(3)
        (self.prefix / "nginx.conf").write_text(
            CONFIGURATION.format(
                # As root the workers would otherwise run as a user without access to the work directory.
                user="user root;" if os.geteuid() == 0 else "",
                root=self.root,
                http=self.http,
                https=self.https,
                limited=self.limited,
                limit=LIMIT,
            )
        )
        command = ["nginx", "-p", self.prefix, "-c", self.prefix / "nginx.conf", "-e", "error.log"]
        try:
            self.process = subprocess.Popen(command, env={"PATH": PATH}, stderr=subprocess.DEVNULL)
        except FileNotFoundError as error:
            raise ProgramFailed("nginx is not installed (Debian: nginx-light)") from error
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.limited), 1).close()
                return True
            except OSError:
                time.sleep(0.02)
        self.process.terminate()
        self.process.wait()
        return False

    def endpoint(self, scheme):
        """The S3 endpoint of `http`, `https` or `limited`."""
        port = {"http": self.http, "https": self.https, "limited": self.limited}[scheme]
        return f"{'https' if scheme == 'https' else 'http'}://127.0.0.1:{port}"

    def url(self, key, scheme="http"):
        """The URL of an object."""
        return f"{self.endpoint(scheme)}/{BUCKET}/{key}"

    def object(self, key, size):
        """Creates an object of random bytes and reads it into the page cache. Returns its digest."""
        path = self.path(key)
        with open(path, "wb") as file:
            left = size
            while left:
                left -= file.write(os.urandom(min(left, 1 << 20)))
        os.sync()
        return digest(path)

    def path(self, key):
        """The file of an object."""
        return self.root / BUCKET / key

    def remove(self, *keys):
        """Removes objects, because the disk is bounded."""
        for key in keys:
            self.path(key).unlink(missing_ok=True)

    def mark(self):
        """The current position in the access log."""
        return (self.prefix / "access.log").stat().st_size

    def since(self, mark, key):
        """The requests since the mark: responses with bytes of the object, their bytes, and other requests."""
        log = self.prefix / "access.log"
        # nginx writes a line at the end of a response, which may be just after the client has finished.
        seen = -1
        while seen != (seen := log.stat().st_size):
            time.sleep(0.1)
        gets = sent = other = 0
        with open(log, encoding="utf-8") as file:
            file.seek(mark)
            for line in file:
                method, uri, status, size = line.split()
                if method == "GET" and status in ("200", "206") and pathlib.Path(uri).match(key):
                    gets, sent = gets + 1, sent + int(size)
                else:
                    other += 1
        return {"gets": gets, "bytes": sent, "other": other}


def free_ports(count):
    """Ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def certificates(place, bench):
    """A certificate authority and a leaf. A self-signed leaf would not do: rustls rejects one that is an
    authority."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    (place / "leaf.ext").write_text(
        "basicConstraints=critical,CA:FALSE\n"
        "keyUsage=critical,digitalSignature\n"
        "extendedKeyUsage=serverAuth\n"
        "subjectAltName=DNS:localhost,IP:127.0.0.1\n"
    )
    may_sign = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
    authority = [*key, *may_sign, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=hostkit bench"]
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "leaf.ext"]
    for command in (
        ["req", "-x509", "-days", "30", *authority],
        ["req", "-new", *key, "-keyout", "leaf.key", "-out", "leaf.csr", "-subj", "/CN=localhost"],
        ["x509", "-req", "-days", "30", *signed, "-in", "leaf.csr", "-out", "leaf.pem"],
    ):
        made = subprocess.run(["openssl", *command], cwd=place, env=bench.env(), capture_output=True, text=True)
        if made.returncode:
            raise ProgramFailed(f"openssl {command[0]} failed: {made.stderr.strip()[-300:]}")
