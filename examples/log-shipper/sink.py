"""Where the logs go: keeps the last hundred records, shows them, and says which generation they came by."""

from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

records = deque(maxlen=100)
generation = ""


class Sink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        global generation
        records.append(self.rfile.read(int(self.headers["Content-Length"])).decode(errors="replace"))
        generation = self.headers.get("X-Generation", "")
        self.answer("")

    def do_GET(self):
        self.answer(generation if self.path == "/generation" else "".join(records))

    def answer(self, text):
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("", 8080), Sink).serve_forever()
