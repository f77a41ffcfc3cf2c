"""A file server by ranges for tests, a process of its own as rasterio may hold Python's lock while GDAL waits for an answer.

`python webserver.py FOLDER` serves FOLDER/scene.tif and tells its port. FOLDER/says.json sets the headers of answers (`says`),
whether ranges are known (`ranges`), what every address must contain (`signature`), and seconds before each answer (`wait`).
"""

import json
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(sys.argv[-1])


class Web:
    """The server as tests see it."""

    def __init__(self, folder):
        self.folder = folder
        self.state = {"says": {}, "ranges": True, "signature": "", "wait": 0.0}
        self.set()
        self.process = subprocess.Popen([sys.executable, __file__, str(folder)], stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}/scene.tif"

    def set(self, **state):
        self.state |= state
        (self.folder / "says.new").write_text(json.dumps(self.state))
        (self.folder / "says.new").replace(self.folder / "says.json")

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer(head=False)

    def answer(self, *, head):
        state, content = json.loads((FOLDER / "says.json").read_text()), (FOLDER / "scene.tif").read_bytes()
        if (
            not self.path.startswith("/scene.tif")
            or self.path.startswith("/scene.tif.")
            or state["signature"] not in self.path
        ):
            self.send_error(403)
            return
        time.sleep(state["wait"])
        asked = self.headers.get("Range") if state["ranges"] else None
        first, last = 0, len(content) - 1
        if asked:
            start, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or last), last)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        if state["ranges"]:
            self.send_header("Accept-Ranges", "bytes")
        for name, value in {"Content-Length": str(last - first + 1), **state["says"]}.items():
            self.send_header(name, value)
        self.end_headers()
        if not head:
            self.wfile.write(content[first : last + 1])


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
