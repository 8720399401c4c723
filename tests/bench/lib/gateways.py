"""Programs that check keys in front of an API: authproxy and its peers, and the API itself. Owns their configuration,
their start, and their core."""

import contextlib
import hashlib
import os
import shutil
import subprocess

from .checkers import RunningServer
from .ensemble import free_port
from .measure import ProgramFailed
from .peers import build
from .world import PATH, MeasurementSkipped

AUTHPROXY, CHECKER = "authproxy", "proxy-healthcheck"
OURS, OURS_LOG = "authproxy", "authproxy, JSON log"
PLAIN, AUTH, AUTH_LOG = "nginx plain", "nginx auth_request", "nginx auth_request, JSON log"
HAPROXY = "haproxy map"
ALL = (OURS, OURS_LOG, PLAIN, AUTH, AUTH_LOG, HAPROXY)
DIRECT = "direct"

# One of a thousand keys. It is in the query, where all contenders can read it.
KEYS = [f"bench-{number}" for number in range(1000)]
KEY = KEYS[500]
ANSWER = '{"toppages": "' + "x" * 180 + '"}'
PACKAGES = {"nginx": "nginx-light", "haproxy": "haproxy", "memcached": "memcached", "h2load": "nghttp2-client"}

# The measured one has a core of its own; clients and servers share the other.
MEASURED, OTHERS = "1", "0"

NGINX = """
daemon off;
pid nginx.pid;
error_log error.log;
worker_processes 1;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
    keepalive_requests 1000000000;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    {http}
    server {{ listen 127.0.0.1:{port}; {server} }}
}}
"""
# The API, and a permissions backend with all keys: it is queried once a minute, and never measured.
API = """
    location / {{ default_type application/json; return 200 '{answer}'; }}
    location = /acl {{ default_type application/json; return 200 '{{"known":true,"id":"bench","rights":["all"]}}'; }}
    location = /auth {{ if ($http_x_key !~ "^bench-[0-9]+$") {{ return 403; }} return 204; }}
"""
UPSTREAM = "access_log off; upstream api {{ server 127.0.0.1:{api}; keepalive 128; }}"
LOG = """
    log_format json escape=json '{{"time":"$time_iso8601","client":"$remote_addr","method":"$request_method",'
        '"path":"$uri","status":$status,"bytes":$body_bytes_sent,"took":$request_time,"server":"$upstream_response_time"}}';
    access_log access.json json buffer=64k flush=1s;
    upstream api {{ server 127.0.0.1:{api}; keepalive 128; }}
"""
PASS = """
        proxy_pass http://api;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $host;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
"""
# $arg_apikey is empty in the subrequest: without `set` the cache would hold one verdict for all keys.
CHECK = """
    location / {{ set $k $arg_apikey; auth_request /auth; {through} }}
    location = /auth {{
        internal;
        proxy_pass http://api/auth;
        proxy_http_version 1.1;
        proxy_pass_request_body off;
        proxy_set_header Connection "";
        proxy_set_header Content-Length "";
        proxy_set_header X-Key $k;
        proxy_cache auth;
        proxy_cache_key $k;
        proxy_cache_valid 204 60s;
        proxy_cache_valid 403 10s;
    }}
"""
HAPROXY_CFG = """
global
    nbthread 1
    maxconn 8192
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option http-keep-alive
frontend keys
    bind 127.0.0.1:{port}
    http-request set-var(txn.id) url_param(apikey),map(keys.map)
    http-request deny deny_status 401 if !{{ var(txn.id) -m found }}
    http-request set-header X-Auth-Id %[var(txn.id)]
    default_backend api
backend api
    option forwardfor
    http-reuse always
    server api 127.0.0.1:{api}
"""


def need(program):
    """The path of a peer; raises MeasurementSkipped when it is not installed."""
    if not (path := shutil.which(program, path=PATH)):
        raise MeasurementSkipped(f"{program} is not installed (Debian: {PACKAGES.get(program, program)})")
    return path


def programs(bench):
    """Our builds: release, built when missing, unless others are given. Also returns which are outdated."""
    if bench.bins:
        return {name: bench.bins / name for name in (AUTHPROXY, CHECKER)}, []
    paths = {name: bench.target / "release" / name for name in (AUTHPROXY, CHECKER)}
    # Each by itself: built together, the small one would carry features of the library that only the other needs.
    return paths, [name for path in paths.values() for name in build(bench, [path])]


class GatewayServer(RunningServer):
    """A program that serves on a port and admits only requests with a key, on one core; stopped when its context
    ends."""

    def __init__(self, bench, command, port, core=MEASURED):
        super().__init__(bench, ["taskset", "-c", core, *command], port, f"/toppages/?apikey={KEY}")

    def url(self):
        """The requested URL, with the key."""
        return f"http://127.0.0.1:{self.port}{self.path}"

    def refuses(self):
        """Fails if it admits a request without a key: then it does less work than the others."""
        command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{self.port}/toppages/"]
        status = subprocess.run(command, env=self.bench.env(), capture_output=True, text=True).stdout
        if status not in ("401", "403"):
            raise ProgramFailed(f"{self.command[3]} answers {status} without a key")


def nginx(bench, port, http, server):
    """The command of an nginx."""
    prefix = bench.directory("nginx")
    (prefix / "nginx.conf").write_text(NGINX.format(port=port, http=http, server=server))
    return [need("nginx"), "-p", prefix, "-c", prefix / "nginx.conf", "-e", "error.log"]


def api(bench):
    """The API behind all of them: 200 bytes of JSON, as cheap as possible."""
    port = free_port()
    server = API.format(answer=ANSWER)
    return GatewayServer(bench, nginx(bench, port, "access_log off;", server), port, OTHERS)


@contextlib.contextmanager
def memcached(bench):
    """Starts a memcached for the second level of the cache; returns its port."""
    port = free_port()
    command = ["taskset", "-c", OTHERS, need("memcached"), "-u", "root", "-l", "127.0.0.1", "-U", "0", "-p", str(port)]
    process = subprocess.Popen(command, env=bench.env(), stdin=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def flags(bench, port, api_port, cache_port, log):
    """The flags of authproxy with all its features: rights, both levels of the cache, trusted proxies, metrics."""
    secret = bench.work / "secret"
    if not secret.exists():
        secret.touch(mode=0o600)
        secret.write_text(hashlib.sha256(os.urandom(32)).hexdigest())
    return [
        f"--port={port}",
        "--listen=127.0.0.1",
        f"--server=http://127.0.0.1:{api_port}",
        "--right=all",
        f"--acl-server=http://127.0.0.1:{api_port}/acl",
        "--cache=1",
        "--cache_prefix=bench",
        f"--memcache_servers=127.0.0.1:{cache_port}",
        f"--cache-secret-file={secret}",
        "--trusted-proxies=127.0.0.1/32",
        f"--admin=127.0.0.1:{free_port()}",
        f"--access-log={log}",
    ]


def gateway(bench, kind, api_port, cache_port):
    """Starts one of the contenders."""
    port = free_port()
    if kind in (OURS, OURS_LOG):
        log = "json" if kind == OURS_LOG else "off"
        return GatewayServer(bench, [programs(bench)[0][AUTHPROXY], *flags(bench, port, api_port, cache_port, log)], port)
    if kind == HAPROXY:
        directory = bench.directory("haproxy")
        (directory / "keys.map").write_text("".join(f"{key} {key}\n" for key in KEYS))
        text = HAPROXY_CFG.format(port=port, api=api_port).replace("keys.map", str(directory / "keys.map"))
        (directory / "haproxy.cfg").write_text(text)
        return GatewayServer(bench, [need("haproxy"), "-db", "-f", directory / "haproxy.cfg"], port)
    http = (LOG if kind == AUTH_LOG else UPSTREAM).format(api=api_port)
    if kind == PLAIN:
        return GatewayServer(bench, nginx(bench, port, http, f"location / {{ {PASS} }}"), port)
    http += "proxy_cache_path cache keys_zone=auth:10m;"
    return GatewayServer(bench, nginx(bench, port, http, CHECK.format(through=PASS)), port)
