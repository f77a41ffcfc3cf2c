"""An object store that speaks S3 on loopback, and a gate before it that loses answers, throttles or knows no conditions.

The gate is an HTTP server of this process; faults are set on it while a run goes on.
"""

import http.client
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BUCKET = "maps"


class Gate(ThreadingHTTPServer):
    """Passes requests on to the store. `before` and `after` are called with method and path, `headers` changes them."""

    daemon_threads = True

    def __init__(self, host, port):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = (host, port)
        self.calls = []
        self.reset()

    def reset(self):
        self.throttled = lambda method, path: False
        self.lost = lambda method, path: False
        self.ignored = ()
        self.refused = lambda method, path, headers: 0
        self.delay = lambda method, path: 0.0
        self.calls.clear()

    def handle_error(self, request, client_address):
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _pass(self):
        gate, length = self.server, int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        gate.calls.append((self.command, self.path))
        if gate.throttled(self.command, self.path):
            return self._say(
                503, {}, b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            )
        if code := gate.refused(self.command, self.path, self.headers):
            return self._say(code, {}, b"<Error><Code>NotImplemented</Code><Message>not implemented</Message></Error>")
        time.sleep(gate.delay(self.command, self.path))
        headers = {k: v for k, v in self.headers.items() if k.lower() not in gate.ignored}
        there = http.client.HTTPConnection(*gate.store, timeout=60)
        try:
            there.request(self.command, self.path, body, headers)
            answer = there.getresponse()
            content = answer.read()
        finally:
            there.close()
        if gate.lost(self.command, self.path):  # done, but nobody hears of it
            self.close_connection = True
            self.connection.close()
            return None
        return self._say(answer.status, dict(answer.getheaders()), content)

    def _say(self, code, headers, content):
        self.send_response_only(code)
        length = headers.get("Content-Length", str(len(content))) if self.command == "HEAD" else str(len(content))
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815


@contextmanager
def serving():
    """The gate of a store with one empty bucket, `BUCKET`."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    gate = Gate(*server.get_host_and_port())
    thread = threading.Thread(target=gate.serve_forever, daemon=True)
    thread.start()
    try:
        yield gate
    finally:
        gate.shutdown()
        gate.server_close()
        thread.join()
        server.stop()


def environment(gate):
    """Variables by which clients find the store."""
    address = f"127.0.0.1:{gate.server_port}"
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{address}",
        "AWS_S3_ENDPOINT": address,
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
    }


def make_bucket(gate):
    """An empty bucket; one that is there stays."""
    there = http.client.HTTPConnection(*gate.store, timeout=30)
    there.request("PUT", f"/{BUCKET}")
    there.getresponse().read()
    there.close()


def forget_clients():
    """Close the clients that fsspec keeps: they know the environment of an earlier test."""
    import gc

    import s3fs

    kind = s3fs.S3FileSystem
    for files in list(kind._cache.values()):
        if files._s3 is not None:
            kind.close_session(files.loop, files._s3)
    kind.clear_instance_cache()
    gc.collect()
