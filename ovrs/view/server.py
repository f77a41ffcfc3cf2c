"""A small web server for one map on loopback: the page, its script, tiles, pixels. Serves nothing else."""

from __future__ import annotations

import json
import logging
import webbrowser
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from ovrs.errors import GridMismatchError, OptionError, OvrsError
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


class Viewer(ThreadingHTTPServer):
    """Serves one map, and a second one to compare with."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], maps: dict[str, MapTiles]) -> None:
        super().__init__(address, _Handler)
        self.maps = maps
        self.tile = lru_cache(maxsize=2000)(self._tile)

    def _tile(self, name: str, layer: str, z: int, x: int, y: int, hidden: frozenset[int]) -> bytes | None:
        return self.maps[name].tile(layer, z, x, y, hidden)

    @property
    def url(self) -> str:
        host = str(self.server_address[0])
        return f"http://{host}:{self.server_address[1]}/"


def open_viewer(mapped: Map, before: Map | None, host: str, port: int) -> Viewer:
    """A server that is bound but not serving yet.

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
    except OSError as error:
        raise OptionError(
            f"cannot listen on {host}:{port}: {error}; choose another --port (0 takes a free one)"
        ) from error


def serve(mapped: Map, before: Map | None, host: str, port: int, *, open_browser: bool) -> None:
    """Serve until interrupted (errors as `open_viewer`)."""
    server = open_viewer(mapped, before, host, port)
    print(f"viewer: {server.url}  (Ctrl-C ends it)", flush=True)
    if open_browser:
        webbrowser.open(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        log.info("viewer ended")
    finally:
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Viewer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path in STATIC:
            name, kind = STATIC[url.path]
            self._send((resources.files("ovrs.view") / "static" / name).read_bytes(), kind)
            return
        try:
            content = self._answer(url.path.strip("/").split("/"), {k: v[0] for k, v in parse_qs(url.query).items()})
        except OvrsError as error:  # a damaged chunk: the page stays, one line says why
            log.warning("%s", error)
            self.send_error(500, "the map is damaged, see `ovrs verify`")
            return
        except (ValueError, KeyError):
            content = None
        if content is None:
            self.send_error(404)
        else:
            self._send(*content)

    def _answer(self, parts: list[str], query: dict[str, str]) -> tuple[bytes, str] | None:
        maps = self.server.maps
        if parts == ["map.json"]:
            return _json({name: m.describe() for name, m in maps.items()})
        if parts[0] == "pixel" and len(parts) == 3:
            found = {name: m.at(int(parts[1]), int(parts[2])) for name, m in maps.items()}
            return _json(found)
        if parts[0] == "tiles" and len(parts) == 6 and parts[1] in maps and parts[2] in LAYERS:
            z, x, y = (int(p) for p in parts[3:])
            hidden = frozenset(int(h) for h in query.get("hide", "").split(",") if h)
            tile = self.server.tile(parts[1], parts[2], z, x, y, hidden)
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


def _json(content: Any) -> tuple[bytes, str]:
    return json.dumps(content).encode(), "application/json"
