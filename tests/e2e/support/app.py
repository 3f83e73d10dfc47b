# A main process as people write them: reads its configuration at start, on SIGHUP and on POST /reload, keeps the old one
# if the new one is bad, and shows by HTTP what it runs.
import http.server
import os
import signal

PATH = "/shared/conf/app.txt"
loaded = open(PATH).read()
reloads = signals = 0


def reload():
    global loaded, reloads
    text = open(PATH).read()
    if text.startswith("bad"):
        return False
    loaded, reloads = text, reloads + 1
    return True


def hangup(*_):
    global signals
    signals += 1
    reload()


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, code, body):
        self.send_response(code)
        self.end_headers()
        self.wfile.write(str(body).encode())

    def do_GET(self):
        self.answer(200, {"/reloads": reloads, "/signals": signals}.get(self.path, loaded))

    def do_POST(self):
        self.answer(200 if reload() else 500, "")

    def log_message(self, *_):
        pass


signal.signal(signal.SIGHUP, hangup)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
print("started with", loaded, flush=True)
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
