"""A program of one's own: it greets as its settings say, and reads them again when it is notified."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

PATH = "/shared/conf/settings.json"


def load():
    with open(PATH, encoding="utf-8") as file:
        settings = json.load(file)
    if not 1 <= settings["stars"] <= 5:
        raise ValueError("stars: from 1 to 5")
    return settings


class Public(BaseHTTPRequestHandler):
    settings = load()

    def do_GET(self):
        self.answer(200, f"{self.settings['greeting']} {'*' * self.settings['stars']}\n")

    def answer(self, status, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Hook(Public):
    """On loopback, which all containers of a Pod share, and nobody else reaches."""

    def do_GET(self):
        self.answer(200, Public.settings["generation"])

    def do_POST(self):
        try:
            # One assignment: a request sees the old settings or the new ones, and never half of each.
            Public.settings = load()
        except Exception as error:
            self.answer(422, f"{error}\n")  # The old ones stay.
        else:
            self.answer(200, "read\n")


Thread(target=ThreadingHTTPServer(("127.0.0.1", 8081), Hook).serve_forever, daemon=True).start()
ThreadingHTTPServer(("", 8080), Public).serve_forever()
