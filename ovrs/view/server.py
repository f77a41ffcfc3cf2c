"""A small web server for one map on loopback: the page, its script, tiles, pixels. Serves nothing else.

A request must name the server as its host: a web page elsewhere whose name leads to loopback (DNS rebinding) gets nothing.
"""

from __future__ import annotations

import contextlib
import html
import ipaddress
import json
import logging
import socket
import sys
import threading
import webbrowser
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from ovrs.errors import GridMismatchError, OptionError, OvrsError, told
from ovrs.names import shown
from ovrs.store.cautions import cautions
from ovrs.store.place import UNREADABLE
from ovrs.view.tiles import MapTiles

if TYPE_CHECKING:
    from ovrs.store.map import Map

log = logging.getLogger(__name__)

STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/viewer.js": ("viewer.js", "text/javascript; charset=utf-8"),
    "/viewer.css": ("viewer.css", "text/css; charset=utf-8"),
}
LAYERS = ("image", "classes", "confidence")
CONNECTIONS = 64
"""Served at the same time; a browser opens about six."""
IDLE_SECONDS = 30.0
"""How long a connection may say nothing."""


class Viewer(ThreadingHTTPServer):
    """Serves one map, and a second one to compare with."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], maps: dict[str, MapTiles]) -> None:
        super().__init__(address, _Handler)
        self.maps = maps
        self.host = address[0]
        self.notes = _notes(maps["map"].map)
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        self.tile = lru_cache(maxsize=2000)(self._tile)

    def _tile(self, name: str, layer: str, z: int, x: int, y: int, hidden: frozenset[int]) -> bytes | None:
        return self.maps[name].tile(layer, z, x, y, hidden)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, or close it at once where too many are open."""
        if not self._free.acquire(blocking=False):
            log.warning("more than %d connections at once; one was closed", CONNECTIONS)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection until it ends."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Tell a connection that broke in one line; most are browsers that went on to another tile."""
        error = sys.exception()
        quiet = isinstance(error, (ConnectionError, TimeoutError))
        log.log(logging.DEBUG if quiet else logging.WARNING, "connection of %s: %r", client_address, error)

    def is_own_name(self, host: str) -> bool:
        """Whether the `Host` of a request is an address, or a name that this server was started with."""
        name = urlsplit(f"//{host}").hostname or ""
        own = {"localhost", self.host.lower()}
        if not _is_loopback(self.host):  # others call this machine by its name
            own |= {socket.gethostname().lower(), socket.gethostname().lower().partition(".")[0]}
        if name in own:
            return True
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(name) is not None
        return False

    @property
    def url(self) -> str:
        """The address of the page."""
        host = str(self.server_address[0])
        return f"http://{host}:{self.server_address[1]}/"


def _notes(mapped: Map) -> bytes:
    """HTML below the legend: what a reader should know, and why a click shows no scores."""
    told = cautions(mapped.record)
    if mapped.scores is None:
        told.append("A click shows the scores of all classes where the map was made with --set run.store_scores=true.")
    items = "".join(f"<p>{html.escape(shown(text))}</p>" for text in told)
    return f'<h2>Before you use this map</h2><div id="notes">{items}</div>'.encode() if told else b""


def open_viewer(mapped: Map, before: Map | None, host: str, port: int) -> Viewer:
    """Return a server that is bound but not serving yet.

    Raises:
        GridMismatchError: The two maps lie on different grids.
        OptionError: The port is taken.
    """
    maps = {"map": MapTiles(mapped)}
    if before is not None:
        maps["before"] = MapTiles(before)
        one, other = (m.map.grid for m in maps.values())
        if one.shape != other.shape or one.affine != other.affine or one.crs != other.crs:
            raise GridMismatchError(
                f"{mapped.name} and {before.name} lie on different grids and cannot be compared here"
            )
    try:
        return Viewer((host, port), maps)
    except (OSError, OverflowError) as error:
        raise OptionError(
            f"cannot listen on {host}:{port}: {error}; choose another --port (0 takes a free one)"
        ) from error


def serve(mapped: Map, before: Map | None, host: str, port: int, *, open_browser: bool) -> None:
    """Serve until interrupted (errors as `open_viewer`)."""
    server = open_viewer(mapped, before, host, port)
    if not _is_loopback(host):
        log.warning("everybody who reaches %s sees the map and its scene; there is no password", server.url)
    if mapped.scores is None:
        print("note: a click shows all scores only where the map was made with --set run.store_scores=true", flush=True)
    print(f"viewer: {server.url}  (Ctrl-C ends it)", flush=True)
    if open_browser:
        webbrowser.open(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        log.info("viewer ended")
    finally:
        server.server_close()


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


class _Handler(BaseHTTPRequestHandler):
    server: Viewer
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        hosts = self.headers.get_all("Host") or []
        try:
            own = len(hosts) == 1 and self.server.is_own_name(hosts[0])
            url = urlsplit(self.path)
        except ValueError:  # brackets without an address
            self.send_error(400)
            return
        if not own:
            self.send_error(421, explain=f"ask for {self.server.url}")
            return
        if url.path in STATIC:
            name, kind = STATIC[url.path]
            page = (resources.files("ovrs.view") / "static" / name).read_bytes()
            self._send(page.replace(b"<!-- notes -->", self.server.notes) if name == "index.html" else page, kind)
            return
        try:
            asked = _asked(url.path, url.query)
        except ValueError:
            self.send_error(404)
            return
        try:
            content = self._answer(*asked)
        except ConnectionError:
            raise
        except (OvrsError, MemoryError, *UNREADABLE) as error:  # a damaged chunk: the page stays, one line says why
            log.warning("%s: %s", self.path, told(error))
            self.send_error(500, "the map or its scene cannot be read, see `ovrs verify`")
            return
        if content is None:
            self.send_error(404)
        else:
            self._send(*content)

    def _answer(self, words: list[str], numbers: list[int], hidden: frozenset[int]) -> tuple[bytes, str] | None:
        maps = self.server.maps
        if words == ["map.json"] and not numbers:
            return _json({name: m.describe() for name, m in maps.items()})
        if words == ["pixel"] and len(numbers) == 2:
            row, col = numbers
            return _json({name: m.at(row, col) for name, m in maps.items()})
        if words[:1] == ["tiles"] and len(words) == len(numbers) == 3 and words[1] in maps and words[2] in LAYERS:
            z, x, y = numbers
            tile = self.server.tile(words[1], words[2], z, x, y, hidden)
            return None if tile is None else (tile, "image/png")
        return None

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header(
            "Content-Security-Policy",
            "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'",
        )
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        log.debug(format, *args)


def _asked(path: str, query: str) -> tuple[list[str], list[int], frozenset[int]]:
    """Words and numbers of a path, and the classes that are hidden.

    Raises:
        ValueError: Numbers are no numbers.
    """
    parts = path.strip("/").split("/")
    count = next((i for i, part in enumerate(parts) if part[:1].isdigit() or part[:1] == "-"), len(parts))
    hidden = parse_qs(query).get("hide", [""])[0]
    return parts[:count], [int(part) for part in parts[count:]], frozenset(int(h) for h in hidden.split(",") if h)


def _json(content: Any) -> tuple[bytes, str]:
    return json.dumps(content).encode(), "application/json"
