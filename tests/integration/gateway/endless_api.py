"""An API in a process of its own, for bodies of any size. Its one argument is the file for its port.

``GET /<n>`` is answered with n bytes, ``GET /chunked/<n>`` with n bytes in chunks; a POST with how many bytes it had.
"""

from __future__ import annotations

import socketserver
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BLOCK = bytes(1_048_576)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        chunked, _, count = self.path[1:].rpartition("/")
        self.send_response(200)
        self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", count)))
        self.end_headers()
        left = int(count)
        while left:
            block = BLOCK[:left]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
            left -= len(block)
        self.wfile.write(b"0\r\n\r\n" if chunked else b"")

    def do_POST(self) -> None:
        total = 0
        if self.headers["Content-Length"] is not None:
            while total < int(self.headers["Content-Length"]):
                total += len(self.rfile.read1(1_048_576))
        else:
            while size := int(self.rfile.readline(), 16):
                total += size
                self.rfile.read(size + 2)
            self.rfile.readline()
        self.send_response(200)
        self.send_header("Content-Length", str(len(str(total))))
        self.end_headers()
        self.wfile.write(str(total).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test asks for no log."""


class Api(ThreadingHTTPServer):
    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer would look up a name
        self.server_name, self.server_port = "localhost", self.server_address[1]


if __name__ == "__main__":
    with Api(("127.0.0.1", 0), Handler) as server:
        port_file = Path(sys.argv[1])
        port_file.with_suffix(".new").write_text(str(server.server_port))
        port_file.with_suffix(".new").rename(port_file)
        server.serve_forever()
