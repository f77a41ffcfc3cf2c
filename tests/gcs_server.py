"""A stand-in for Google Cloud Storage on loopback: its XML interface as documented, with generations and conditions."""

import email.utils
import hashlib
import json
import threading
import time
import urllib.parse
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.sax.saxutils import escape

BUCKET = "maps"


class Server(ThreadingHTTPServer):
    """Objects of one bucket in memory: content, generation, time of change."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects, self.generation, self.lock = {}, 0, threading.Lock()

    def handle_error(self, request, client_address):
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _say(self, code, body=b"", **headers):
        self.send_response_only(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, code, word):
        body = f"<?xml version='1.0'?><Error><Code>{word}</Code><Message>{word}</Message></Error>".encode()
        self._say(code, b"" if self.command == "HEAD" else body)

    def _key(self):
        bucket, _, key = urllib.parse.urlsplit(self.path).path.lstrip("/").partition("/")
        return (bucket == BUCKET and urllib.parse.unquote(key)) or ""

    def _told(self, key):
        content, generation, changed = self.server.objects[key]
        return {
            "ETag": f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"',
            "x_goog_generation": generation,
            "Last_Modified": email.utils.formatdate(changed, usegmt=True),
        }

    def do_PUT(self):
        body, key = self.rfile.read(int(self.headers.get("Content-Length") or 0)), self._key()
        if not key:
            return self._refuse(404, "NoSuchBucket")
        wanted = self.headers.get("x-goog-if-generation-match")
        with self.server.lock:
            there = self.server.objects.get(key)
            if wanted is not None and int(wanted) != (there[1] if there else 0):
                return self._refuse(412, "PreconditionFailed")
            self.server.generation += 1
            self.server.objects[key] = (body, self.server.generation, time.time())
            return self._say(200, **self._told(key))

    def do_GET(self):
        query, key = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query), self._key()
        if "list-type" in query:
            return self._list(query)
        with self.server.lock:
            if key not in self.server.objects:
                return self._refuse(404, "NoSuchKey")
            content, told = self.server.objects[key][0], self._told(key)
        if self.command == "HEAD":
            return self._say(200, Content_Length=len(content), **told)
        if "Range" not in self.headers:
            return self._say(200, content, **told)
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, len(content) - int(last))
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        return self._say(206, content[start:stop], Content_Range=f"bytes {start}-{stop - 1}/{len(content)}", **told)

    do_HEAD = do_GET  # noqa: N815

    def do_DELETE(self):
        with self.server.lock:
            there = self.server.objects.pop(self._key(), None)
        return self._refuse(404, "NoSuchKey") if there is None else self._say(204)

    def _list(self, query):
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        found, folders = [], set()
        with self.server.lock:
            for key, (content, _, changed) in sorted(self.server.objects.items()):
                rest = key[len(prefix) :]
                if not key.startswith(prefix):
                    continue
                if delimiter and delimiter in rest:
                    folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                    continue
                when = datetime.fromtimestamp(changed, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
                found.append(
                    f"<Contents><Key>{escape(key)}</Key><LastModified>{when}</LastModified>"
                    f"<ETag>{escape(self._told(key)['ETag'])}</ETag><Size>{len(content)}</Size></Contents>"
                )
        groups = "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders))
        body = f"<?xml version='1.0' encoding='UTF-8'?><ListBucketResult>{''.join(found)}{groups}</ListBucketResult>"
        return self._say(200, body.encode())


@contextmanager
def serving():
    """A server with the empty bucket `BUCKET`."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(server, folder):
    """Variables by which clients find the server."""
    account = {"gcs_base_url": f"http://127.0.0.1:{server.server_port}", "disable_oauth": True}
    file = folder / "account.json"
    file.write_text(json.dumps({**account, "client_email": "", "private_key": "", "private_key_id": ""}))
    return {"GOOGLE_SERVICE_ACCOUNT": str(file)}
