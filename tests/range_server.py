"""Serves a folder with byte ranges, in a process of its own: `range_server.py FOLDER LOG`. Prints its port, logs each request.

GDAL asks for side files while rasterio holds the interpreter, so a server in a thread of the tests could not answer.
"""

import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER, LOG = Path(sys.argv[1]), Path(sys.argv[2])


class Handler(SimpleHTTPRequestHandler):
    """A query is ignored, as by many servers."""

    def do_GET(self):
        with LOG.open("a") as log:
            log.write(self.path + "\n")
        try:
            content = (FOLDER / self.path.split("?")[0].lstrip("/")).read_bytes()
        except OSError:
            self.send_error(404)
            return
        wanted = self.headers.get("Range")
        first, last = 0, len(content) - 1
        if wanted:
            bounds = wanted.removeprefix("bytes=").split("-")
            first, last = int(bounds[0]), min(int(bounds[1] or last), last)
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[first : last + 1])

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
sys.stdout.write(f"{server.server_port}\n")
sys.stdout.flush()
server.serve_forever()
