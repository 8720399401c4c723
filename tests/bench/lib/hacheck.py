"""A health checker like hacheck: Python's own HTTP server, a thread for each request, a request to the server for
each. Run as `hacheck.py PORT SERVER_PORT`; answers GET /health with `ok` or 503."""

import http.server
import socketserver
import sys
import urllib.request


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        url = f"http://127.0.0.1:{sys.argv[2]}/private/stats/"
        try:
            with urllib.request.urlopen(url, timeout=4.5) as answer:
                answer.read(65536)
            code, body = 200, b"ok"
        except OSError as error:
            code, body = 503, str(error).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self):
        # Without a DNS query for its own name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]


Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
